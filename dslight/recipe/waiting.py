"""Which parts are built without memory, and read once they are sharded: where the strategy shards (FSDP2), an encoder
or a decoder whose weights all come from a file.

A part that begins at random, wholly or with adapters, is built whole by every process, as it would be without
sharding, and then sharded: projectors and gates are small, and a large part from nothing is rare.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from lightning.pytorch.strategies import ModelParallelStrategy

from dslight.checkpoints import load_checkpoint
from dslight.components import Component, HFCausalLM, HFVisionEncoder, LanguageModel, VisionEncoder
from dslight.errors import WeightsError
from dslight.recipe.schema import Section
from dslight.vlm import VLM

KINDS = {"vision_encoder": VisionEncoder, "language_model": LanguageModel}
"""The parts that may be too large to be held whole by every process."""


def parts_that_wait(
    recipe: Mapping[str, Any], trainer: Section, model: VLM | Component, given: Mapping[str, str], restored: bool
) -> dict[str, str | None]:
    """Parts to be built without memory -> the file or folder with all their weights; ``None``: the run's checkpoint.

    Args:
        recipe: as composed.
        trainer: its section.
        model: made of it on the meta device.
        given: part -> path, what ``weights`` says.
        restored: all weights will come from a run's checkpoint.
    """
    if not isinstance(model, VLM) or not _shards(trainer):
        return {}
    if restored:
        return dict.fromkeys(KINDS)
    found: dict[str, str | None] = {}
    for name in KINDS:
        path = given.get(name) or _pretrained(recipe["model"][name], model.parts()[name])
        if path is None or getattr(model.parts()[name], "adapted", False):
            continue
        with suppress(WeightsError):  # one that cannot be read in shares is read whole, or refused then
            if load_checkpoint(model, path, [name], strict=False, read=False).fits:
                found[name] = path
    return found


def read(model: VLM, waiting: Mapping[str, str | None]) -> None:
    """This process's share of the parts that were built without memory."""
    for name, path in waiting.items():
        if path is not None:
            load_checkpoint(model, path, [name])


def _shards(trainer: Section) -> bool:
    """Whether the strategy shards (FSDP2)."""
    named = getattr(trainer.config.get("trainer"), "strategy", None)
    module, _, name = str(getattr(named, "class_path", "")).rpartition(".")
    return bool(module) and issubclass(getattr(import_module(module), name), ModelParallelStrategy)


def _pretrained(section: Mapping[str, Any], part: Any) -> str | None:
    """The folder with the weights of a part whose recipe names a checkpoint of transformers, fetched if need be."""
    source = (section.get("init_args") or {}).get("pretrained")
    if not isinstance(part, HFCausalLM | HFVisionEncoder) or not isinstance(source, str):
        return None
    if Path(source).exists():
        return source
    try:
        return snapshot_download(source, allow_patterns=["*.safetensors", "*.safetensors.index.json"])
    except (OSError, ValueError):  # transformers says it better
        return None
