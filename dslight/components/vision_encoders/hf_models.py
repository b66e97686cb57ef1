"""Vision models of transformers: which part of a checkpoint they are, how they are built and called."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.component import on_meta
from dslight.components.transformers_config import check_agreement, configuration, no_code, settings_of
from dslight.components.vision_encoders.stream import Pass, one_line
from dslight.errors import WeightsError
from dslight.types import Grid

IN_A_WHOLE_MODEL = {
    r"^(model\.)?(vision_tower|vision_encoder|visual)\.(vision_model\.)?": "",
    r"^model\.vision_model\.": "",
}
"""Where multimodal models keep their vision part, for transformers' ``key_mapping``."""


def vision_settings(
    pretrained: str | None,
    config: Mapping[str, Any] | None,
    trust: bool,
    refusal: Callable[[Any], str | None] = lambda part: None,
) -> tuple[Any, str]:
    """The configuration of the vision part, and the argument that it comes from.

    Args:
        pretrained: hub name or folder.
        config: fields of a configuration.
        trust: code that the checkpoint brings along.
        refusal: why a vision part could not be read either, if so.

    Raises:
        ValueError: for a configuration that has none, and for the fields of a whole model.
    """
    if config is not None and "model_type" not in config:
        raise ValueError(
            "config.model_type: missing; name a vision model of transformers, e.g. clip_vision_model, dinov2"
        )
    if pretrained is None or (config is not None and on_meta()):
        key = "config.model_type"
        settings = configuration(config or {})
        part = getattr(settings, "vision_config", None)
        if part is not None:
            why = refusal(part)
            rest = (
                f"; describe its vision part alone, {part.model_type}" if why is None else f"; its vision part: {why}"
            )
            raise ValueError(f"{key}: {settings.model_type!r} is more than a vision encoder{rest}")
        return settings, key
    whole = settings_of(pretrained, trust)
    settings = getattr(whole, "vision_config", None) or whole
    check_agreement(config or {}, settings, pretrained)
    return settings, f"pretrained: {pretrained}"


def build(settings: Any, options: Mapping[str, Any]) -> Any:
    """The model of a configuration, with random weights.

    Raises:
        ValueError: transformers has none that goes with it; the sentence begins with a verb.
    """
    from transformers import AutoModel

    try:
        return AutoModel.from_config(settings, **options)
    except Exception as error:  # transformers lists all that it knows
        if "Unrecognized configuration class" in str(error):
            raise ValueError(
                "is no model that transformers builds from the configuration of its vision part"
            ) from error
        raise ValueError(f"cannot be built: {one_line(error)}") from error


def of_checkpoint(kind: Any, pretrained: str, settings: Any, options: Mapping[str, Any]) -> tuple[Any, set[str]]:
    """A model of transformers with a checkpoint's weights, and the names of those that it has not.

    Args:
        kind: the class that reads it.
        pretrained: hub name or folder.
        settings: its configuration.
        options: as of ``from_pretrained``.
    """
    with no_code(pretrained, "pretrained"):
        model, report = kind.from_pretrained(
            pretrained, config=settings, output_loading_info=True, key_mapping=IN_A_WHOLE_MODEL, **options
        )
    return model, set(report["missing_keys"])


def refuse_lacking(model: nn.Module, missing: set[str], pretrained: str | None, new: tuple[str, ...] = ()) -> None:
    """Name what a checkpoint has not.

    Args:
        model: what is kept of what was read.
        missing: names, with or without the ``vision_model.`` of older versions of transformers.
        pretrained: for the message.
        new: beginnings of names that no checkpoint has.

    Raises:
        WeightsError: something is missing.
    """
    names = [name for name, _ in model.named_parameters() if not name.startswith(new)]
    if lacking := [name for name in names if {name, f"vision_model.{name}"} & missing]:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise WeightsError(f"pretrained: the checkpoint {pretrained} lacks {', '.join(lacking[:3])}{more}")


def output_of(model: nn.Module, pixels: Tensor, options: Mapping[str, Any]) -> Any:
    """The model's features behind its last layer."""
    output = model(pixel_values=pixels, **options)
    return getattr(output, "last_hidden_state", output[0] if isinstance(output, tuple) else output)


def options_at(model: nn.Module, other_size: bool) -> dict[str, Any]:
    """What the model's forward is called with, beside pixels.

    Raises:
        ValueError: for a model that is not called with pixels alone.
    """
    wanted = inspect.signature(model.forward).parameters
    needed = [n for n, p in wanted.items() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if "pixel_values" not in wanted or set(needed) - {"pixel_values"}:
        raise ValueError(
            f"is called with {', '.join(needed) or 'no pixel_values'}, and not with the pixels of a view alone"
        )
    return {"interpolate_pos_encoding": True} if other_size and "interpolate_pos_encoding" in wanted else {}


def grid_of(seen: Pass, pixels: Tensor, settings: Any) -> Grid:
    """(rows, columns) of patches: what the first convolution makes of the pixels, else what the configuration says."""
    for path in seen.order:
        for call in seen.calls[path]:
            gave = call.gave
            of_pixels = call.given is not None and call.given.shape == pixels.shape
            if of_pixels and isinstance(gave, Tensor) and gave.ndim == 4 and gave.shape[1] != 3:
                return int(gave.shape[2]), int(gave.shape[3])
    if getattr(settings, "patch_size", None) is None:
        raise ValueError("does not say how its patches lie")
    patch = pair(settings.patch_size)
    return pixels.shape[2] // patch[0], pixels.shape[3] // patch[1]


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of one number or two."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def has_table(model: Any) -> bool:
    """Whether positions are an ``nn.Embedding`` with a row for each token, as CLIP's and SigLIP's."""
    embeddings = getattr(model, "embeddings", None)
    table = getattr(embeddings, "position_embedding", None)
    return isinstance(table, nn.Embedding) and hasattr(embeddings, "position_ids")


def resize_positions(embeddings: Any, size: int, grid: Grid, prefix: int | None) -> None:
    """Resize the position table ``[prefix + P, C]`` of CLIP's and SigLIP's embeddings to another (square) image."""
    table = embeddings.position_embedding.weight.detach()
    side = math.isqrt(len(table))
    prefix = len(table) - side * side if prefix is None else prefix
    side = math.isqrt(len(table) - prefix)
    patches = table[prefix:].float().T.view(1, -1, side, side)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    table = torch.cat([table[:prefix], patches.flatten(2)[0].T.to(table.dtype)])
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=False)
    count = len(table)
    embeddings.register_buffer("position_ids", torch.arange(count, device=table.device)[None], persistent=False)
    embeddings.image_size, embeddings.num_patches, embeddings.num_positions = size, count - prefix, count


OF_TIMM = {
    "data2vec": "beit",
    "qwen3_5": "qwen3_vit",
    "qwen3_vl": "qwen3_vit",
    "sam": "samvit",
    "siglip2": "naflexvit_*siglip",
    "vit_mae": "vit_*.mae",
}
"""Kinds that timm knows by another name."""


OF_ANY_SIZE = {
    "NativeVisionEncoder": (
        "qwen2_vl_vision",
        "qwen2_5_vl_vision",
        "qwen3_vl_vision",
        "qwen3_vl_moe_vision",
        "qwen3_5_vision",
        "qwen3_5_moe_vision",
        "cohere_compass_vision",
    ),
    "NaFlexEncoder": ("siglip2_vision_model",),
}
"""Class of ours that takes images of any size -> model types whose features were compared with transformers'."""


def instead(settings: Any) -> str:
    """The end of a refusal: which class of ours takes this kind, or which models of timm are of it, if any."""
    import timm

    if name := next((name for name, kinds in OF_ANY_SIZE.items() if settings.model_type in kinds), None):
        return f"; {name} takes it, images of any size"
    if settings.model_type == "timm_wrapper":
        return (
            f"; it is timm's {getattr(settings, 'architecture', 'model')}: name that in TimmEncoder or TimmFeatureMaps"
        )
    words = re.sub(r"_(vision|model|image|encoder)\b", "", settings.model_type.replace("-", "_")).split("_")
    for count in range(len(words), 0, -1):
        stem = "_".join(words[:count])
        pattern = OF_TIMM.get(stem, stem)
        found = timm.list_models(pattern if "*" in pattern else f"{pattern}*", pretrained="." in pattern)
        if found and (len(stem) > 3 or stem in OF_TIMM):
            return f"; timm has {found[0]}, for TimmEncoder or TimmFeatureMaps"
    return ""
