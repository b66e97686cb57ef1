"""Granite Docling: layers of the encoder as stacks; its base tokens pass another kind of net than these."""

from __future__ import annotations

import re
from typing import Any

from dslight.checkpoints.families.family import HEAD, Family, Section, decoder, dtype_of, is_tied
from dslight.checkpoints.families.shuffled import SIGLIP


def _model(config: Any) -> Section:
    vision = config.vision_config
    factor = vision.scale_factor
    base = {
        "factor": factor, "norm": "pre", "eps": 1e-5, "bias": False, "position": "hidden", "hidden_norm": True,
        "out_norm": True,
    }  # fmt: skip
    mergers = {"factor": factor, "norm": "post", "eps": 1e-5, "per_level": True}
    kinds = [{"PixelShuffleMLPProjector": base}, {"PixelShuffleMLPProjector": mergers}]
    tapped = _tapped(config)
    tower: Section = {name: getattr(vision, name) for name in SIGLIP}
    tower |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    stacking: Section = {"LowResolution": {"tap": "final"}}
    if tapped:
        sites = list(range(1, len(tapped) + 1))
        stacking = {"DeepStackTaps": {"taps": [index + 1 for index in tapped], "sites": sites, "tap": "final"}}
    return {
        "vision_encoder": {"HFVisionEncoder": {"config": tower, "dtype": dtype_of(config)}},
        "projector": {"PerLevelProjector": {"kinds": kinds}},
        "stacking": stacking,
        "language_model": decoder(config, is_tied(config), model_type="granite"),
    }


def _tapped(config: Any) -> list[int]:
    """The layers whose outputs are stacked, shallow to deep: the release goes by them in this order, and looks only
    whether one is in its list.
    """
    vision = config.vision_config
    return [index for index in range(vision.num_hidden_layers) if index in vision.deepstack_visual_indexes]


def _levels(config: Any) -> tuple[tuple[str, str], ...]:
    """A merger per layer that is read; others, of a layer that is named twice or is not there, are never called."""
    coarse, nets = r"model\.vision_model\.connector\.coarse\.deepstack_mergers", "projector.kinds.1.nets"
    parts = {"layer_norm": "norm", "linear_1": "mlp.0", "linear_2": "mlp.2"}
    return tuple(
        (rf"{coarse}\.{level}\.{theirs}\.", f"{nets}.{level}.{ours}.")
        for level in range(len(_tapped(config)))
        for theirs, ours in parts.items()
    )


_CONNECTOR = {
    "ln_in": "norm", "coarse.projection": "mlp.0", "ln_mid": "mlp.norm", "mlp_fc2": "mlp.2", "ln_out": "out_norm",
}  # fmt: skip

GRANITE_DOCLING = Family(
    title="Granite Docling",
    model=_model,
    names=(
        *(
            (rf"model\.vision_model\.connector\.{re.escape(theirs)}\.", f"projector.kinds.0.net.{ours}.")
            for theirs, ours in _CONNECTOR.items()
        ),
        (r"model\.vision_model\.(?=embeddings|encoder|post_layernorm)", "vision_encoder.model."),
        (r"model\.text_model\.", "language_model.model.model."),
        HEAD,
    ),
    levels=_levels,
    views=lambda config, pixels: {"SingleView": {"fit": "squash"}},
    left_out=(
        (r"model\.vision_model\.connector\.fine\.", "of the fine route, which makes four times as many tokens a tile"),
        (r"model\.density_router\.", "it chooses between the coarse and the fine route"),
        (r"model\.vision_model\.connector\.coarse\.deepstack_mergers\.", "no layer is merged by it"),
        (r"(?:model\.)?mtp\.", "heads for serving engines"),
    ),
    around=("<fake_token_around_image><row_1_col_1>", "\n"),
    remarks=(
        "its connector (ln_in to ln_out and the mergers, vision_model.connector) is the projector, and trains and "
        "freezes as one",
        "the coarse route alone; the release can also take a page by its fine route, of four times as many tokens",
        "one view per image; the release also cuts large images into tiles between markers of text, which stand in "
        "front of that view",
    ),
)
