"""LLaVA-1.5 and LLaVA-NeXT (1.6), in transformers' form."""

from __future__ import annotations

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
