"""A conformance kit for DeepStack: tiny checkpoints of the model families that inject visual tokens layer by layer,
requests, and the numbers that have to come out however a request is computed.

    from dslight.conformance import run
    print(run(MyAdapter()).to_text())

``docs/conformance.md`` describes the files, the protocol and what is known of other libraries.
"""

# ruff: noqa: F401
from typing import TYPE_CHECKING

from dslight.lazy import offered

if TYPE_CHECKING:
    from dslight.conformance.kit import Array, Batch, Family, Request, families
    from dslight.conformance.protocol import Adapter, Model, NotOffered, Session
    from dslight.conformance.runner import Outcome, Report, run

__getattr__, __dir__, __all__ = offered(__name__, __file__)
