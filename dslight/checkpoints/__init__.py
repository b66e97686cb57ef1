# ruff: noqa: F401 - what the package offers, imported when it is asked for
"""Checkpoints of the field, in and out: LLaVA, llava-hf, the released DeepStack models, and our own."""

from typing import TYPE_CHECKING

from dslight.lazy import offered

if TYPE_CHECKING:
    from dslight.checkpoints.load import LoadReport, load_checkpoint, parts_in

__getattr__, __dir__, __all__ = offered(__name__, __file__)
