"""From a configuration to the parts that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from dslight.components.component import on_meta
from dslight.components.unread import unread
from dslight.limits import at_most
from dslight.recipe.compose import flatten
from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import parse
from dslight.recipe.strangers import refuse_strangers
from dslight.vlm import VLM


def built(config: Any, attention: str | None = None) -> VLM:
    """The model of a configuration, in torch's default dtype. Within ``torch.device("meta")``, as transformers reads
    checkpoints, its parameters have no memory; buffers have, since those that no file holds are computed here.

    Args:
        config: a :class:`~dslight.in_transformers.config.DslightConfig`.
        attention: of the decoder, where another than the recipe's is wanted.

    Raises:
        RecipeError: for a recipe that cannot be built, names code that nobody imported, or weights of its own.
    """
    if not isinstance(config.recipe, Mapping) or not isinstance(config.recipe.get("model"), Mapping):
        raise RecipeError("config.json: has no recipe of a model; open the folder that dslight export wrote")
    recipe = {"model": deepcopy(dict(config.recipe["model"]))}
    where = config.name_or_path or "config.json"
    refuse_strangers(recipe, where)
    for key, value in flatten(recipe).items():
        if key.endswith(".pretrained") and value:
            raise RecipeError(f"{where}: its {key} is {value!r}; all weights of an exported model are its own")
    if attention is not None and "DslightForConditionalGeneration" in (config.architectures or ()):
        lm = recipe["model"]["language_model"]
        if lm.get("class_path") == "dslight.components.HFCausalLM":
            lm.setdefault("init_args", {})["attention"] = attention
    section, waits = parse(recipe).sections["model"], on_meta()
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in section.build().parameters())
    at_most("parameters", count, f"{where}: {count:,} parameters", RecipeError)
    dtype = torch.get_default_dtype()
    with torch.device("cpu"):
        if waits:
            with unread():
                model = section.build()
        if not waits or any(buffer.is_meta for buffer in model.buffers()):  # buffers made of parameters
            model = section.build()
    return rounded(model, dtype)


def rounded(model: VLM, dtype: torch.dtype) -> VLM:
    """The model in a dtype; buffers that no checkpoint holds stay as they are computed."""
    kept = model.state_dict(keep_vars=True)
    for tensor in [*model.parameters(), *(value for value in kept.values() if not value.requires_grad)]:
        if tensor.is_floating_point() and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
    return model
