"""LLaVA-1.5, LLaVA-NeXT (1.6) and LLaVA-OneVision, in transformers' form."""

from __future__ import annotations

import re
from typing import Any

from dslight.checkpoints.families.family import (
    HEAD,
    TEXT,
    TOWER,
    Family,
    Section,
    decoder,
    grids,
    is_tied,
    needs,
    resample,
    tower,
)

NAMES = (
    TOWER,
    (r"model\.multi_modal_projector\.linear_1\.", "projector.net.0."),
    (r"model\.multi_modal_projector\.linear_2\.", "projector.net.2."),
    (r"model\.image_newline$", "stacking.newline"),
    TEXT,
    HEAD,
)
BEHIND = ((r"model\.vision_tower\..*(post_layernorm|\.head)\b", "it comes behind the layer that is read"),)


def _parts(config: Any, stacking: Section, title: str) -> Section:
    whole = "siglip" in config.vision_config.model_type  # has no class token
    needs(
        config,
        {
            "projector_hidden_act": "gelu",
            "multimodal_projector_bias": True,
            "vision_feature_select_strategy": "full" if whole else "default",
        },
        title,
    )
    head = {"vision_use_head": False} if whole else {}
    return {
        "vision_encoder": tower(config, **head),
        "projector": {"MLPProjector": {"layers": 2}},
        "stacking": stacking,
        "language_model": decoder(config, is_tied(config)),
    }


LLAVA = Family(
    title="LLaVA-1.5",
    model=lambda config: _parts(config, {"LowResolution": {"tap": config.vision_feature_layer}}, "llava"),
    names=NAMES,
    views=lambda config, pixels: {"SingleView": {"fit": "pad", "pad_color": [122, 116, 104]}},
    left_out=BEHIND,
    remarks=(
        "views are padded to a square, as LLaVA-1.5 was trained; transformers' processor crops the centre instead",
    ),
)

LLAVA_NEXT = Family(
    title="LLaVA-NeXT",
    model=lambda config: _parts(
        config,
        {"SequenceConcat": {"newline": True, "unpad": True, "tap": config.vision_feature_layer}},
        "llava_next",
    ),
    names=NAMES,
    views=lambda config, pixels: {"AnyResViews": {"grids": grids(config), "fit": "pad"}},
    left_out=BEHIND,
)


def _onevision(config: Any) -> Section:
    said = config.vision_aspect_ratio
    if not (budget := re.fullmatch(r"anyres_max_(\d+)", said)):
        raise ValueError(f"llava_onevision: vision_aspect_ratio: {said!r}; anyres_max_N has a recipe here")
    laid = {"newline": True, "unpad": True, "most": int(budget[1]), "tap": config.vision_feature_layer}
    return _parts(config, {"SequenceConcat": laid}, "llava_onevision")


def _onevision_views(config: Any, pixels: Section) -> Section:
    """Of several images none is cut; they are padded with the mean of the pixels."""
    mean = pixels.get("image_mean") or [0.48145466, 0.4578275, 0.40821073]
    said = {"fit": "pad", "several_color": [int(value * 255) for value in mean], **resample(pixels)}
    return {"AnyResViews": {"grids": grids(config), **said}}


LLAVA_ONEVISION = Family(
    title="LLaVA-OneVision",
    model=_onevision,
    names=NAMES,
    views=_onevision_views,
    left_out=BEHIND,
    remarks=("images alone: frames of a video are images here, and the release pools their tokens 2 x 2",),
)
