"""Granite 4 Vision: an explicit map from layers of the encoder to layers of the language model, slots of zeros, and a
window Q-Former per stack.
"""

from __future__ import annotations

from typing import Any

from dslight.checkpoints.families.family import (
    HEAD,
    TEXT,
    TOWER,
    Family,
    Names,
    Section,
    decoder,
    grids,
    is_tied,
    tower,
)
from dslight.checkpoints.families.llava import BEHIND

CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")


def _model(config: Any) -> Section:
    if not config.deepstack_layer_map:
        raise ValueError("granite4_vision: deepstack_layer_map: missing, so nothing would reach the language model")
    mapped = [(int(tap), int(site)) for tap, site in config.deepstack_layer_map]
    spatial = [int(site) for site in config.spatial_target_layers] if config.spatial_vision_layer is not None else []
    sites = [site for _, site in mapped] + spatial
    if twice := sorted({site for site in sites if sites.count(site) > 1}):
        raise ValueError(
            f"granite4_vision: deepstack_layer_map, spatial_target_layers: two streams enter at layer {twice[0]}; "
            f"there the release keeps the later one alone, here both would be added"
        )
    stacks = [{"sites": [site], "view": "base", "sampler": "identity", "tap": tap} for tap, site in mapped]
    tap = config.spatial_vision_layer
    stacks += [{"sites": [site], "view": "base", "sampler": "identity", "tap": tap} for site in spatial]
    queries, window = map(int, config.downsample_rate.split("/"))
    former = config.qformer_config
    sources = ["area"] * len(mapped) + list(CORNERS[: len(spatial)])
    projector = {
        "window": window, "queries": queries, "queries_from": sources, "heads": former.num_attention_heads,
        "depth": former.num_hidden_layers, "hidden": former.intermediate_size,
        "dropout": config.projector_dropout, "per_level": True,
    }  # fmt: skip
    stacking = {"sequence": "tiles", "base": "zero", "newline": True, "unpad": True, "stacks": stacks}
    head = {"vision_use_head": False} if "siglip" in config.vision_config.model_type else {}
    return {
        "vision_encoder": tower(config, **head),
        "projector": {"WindowQFormerProjector": projector},
        "stacking": {"DeepStack": stacking},
        "language_model": decoder(config, is_tied(config), model_type="granite"),
    }


def _levels(config: Any) -> Names:
    """A net per level: those of the mapped layers, then the corners'."""
    first = len(config.deepstack_layer_map)
    return tuple(
        (rf"model\.spatial_projectors\.{index}\.", f"projector.nets.{first + index}.") for index in range(len(CORNERS))
    )


GRANITE4_VISION = Family(
    title="Granite 4 Vision",
    model=_model,
    names=(
        TOWER,
        (r"model\.layerwise_projectors\.", "projector.nets."),
        (r"model\.image_newline$", "stacking.newline"),
        TEXT,
        HEAD,
    ),
    levels=_levels,
    views=lambda config, pixels: {"AnyResViews": {"grids": grids(config), "fit": "pad"}},
    left_out=BEHIND,
    remarks=(
        "the Q-Formers (layerwise_projectors, spatial_projectors) are the projector, and train and freeze as one",
    ),
)
