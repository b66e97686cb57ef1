"""Families whose connector puts neighbouring patches side by side: InternVL 3, Idefics 3 and SmolVLM."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dslight.checkpoints.families.family import (
    HEAD,
    TEXT,
    TOWER,
    Family,
    Section,
    decoder,
    dtype_of,
    is_tied,
    needs,
    resample,
    tower,
)
from dslight.checkpoints.families.llava import BEHIND


def _internvl(config: Any) -> Section:
    strategy = {"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"}
    needs(config, strategy, "internvl")
    layer = config.vision_feature_layer
    projector = {"factor": round(1 / config.downsample_ratio), "norm": "post", "eps": 1e-5}
    return {
        "vision_encoder": tower(config),
        "projector": {"PixelShuffleMLPProjector": projector},
        "stacking": {"LowResolution": {"tap": "final" if layer == -1 else layer}},
        "language_model": decoder(config, is_tied(config)),
    }


def _internvl_tiles(config: Any, pixels: Section) -> Section | None:
    """Its processor cuts whatever the file of the image processor says of it."""
    if not pixels:
        return None
    tap = _internvl(config)["stacking"]["LowResolution"]["tap"]
    return {
        "stacking": {"SequenceConcat": {"thumbnail": "last", "tap": tap}},
        "views": {
            "DynamicTileViews": {
                "most": pixels.get("max_patches", 12), "least": pixels.get("min_patches", 1), **resample(pixels),
            }
        },
    }  # fmt: skip


INTERNVL = Family(
    title="InternVL 3",
    model=_internvl,
    names=(
        TOWER,
        (r"model\.multi_modal_projector\.layer_norm\.", "projector.net.norm."),
        (r"model\.multi_modal_projector\.linear_1\.", "projector.net.mlp.0."),
        (r"model\.multi_modal_projector\.linear_2\.", "projector.net.mlp.2."),
        TEXT,
        HEAD,
    ),
    views=lambda config, pixels: {"SingleView": {"fit": "squash"}},
    left_out=((r"model\.vision_tower\.embeddings\.mask_token", "it stands for hidden patches in training"), *BEHIND),
    tiles=_internvl_tiles,
    around=("<img>", "</img>"),
    remarks=("with a file of its image processor, images are cut into tiles, which stand in front of the whole one",),
)

LARGEST = 4096
"""Pixels of the longer side of an image that Idefics 3's processor goes up to."""
SIGLIP = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
           "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout")  # fmt: skip
"""Fields that a vision tower has, which is SigLIP's under another name."""


def _idefics3(config: Any) -> Section:
    vision: Section = {name: getattr(config.vision_config, name) for name in SIGLIP}
    vision |= {"model_type": "siglip_vision_model", "vision_use_head": False}
    projector = {"factor": config.scale_factor, "layers": 1, "bias": False}
    return {
        "vision_encoder": {"HFVisionEncoder": {"config": vision, "dtype": dtype_of(config)}},
        "projector": {"PixelShuffleMLPProjector": projector},
        "stacking": {"LowResolution": {"tap": "final"}},
        "language_model": decoder(config, is_tied(config)),
    }


def _idefics3_tiles(config: Any, pixels: Section) -> Section | None:
    """Where its processor splits images, and brings their longer side to whole views."""
    if not pixels or not pixels.get("do_image_splitting", True):
        return None
    view = (pixels.get("max_image_size") or {}).get("longest_edge", 364)
    longest, side = (pixels.get("size") or {}).get("longest_edge", 4 * 364), config.vision_config.image_size
    if view != side:
        raise ValueError(f"max_image_size.longest_edge: {view}; the tower takes views of {side}")
    if longest % side or longest > LARGEST:
        raise ValueError(f"size.longest_edge: {longest}; only whole views of {side} have a recipe here, to {LARGEST}")
    return {
        "stacking": {"SequenceConcat": {"thumbnail": "last"}},
        "views": {"SplitViews": {"side": longest // side, **resample(pixels)}},
        "tile_marks": {
            "crop": "<fake_token_around_image><row_{row}_col_{column}>", "row_end": "\n", "crops_end": "\n",
            "base": "<fake_token_around_image><global-img>",
        },
        "around": ("", "<fake_token_around_image>"),
    }  # fmt: skip


def buckets(side: int) -> Tensor:
    """Which row of its table a whole image of ``side`` x ``side`` patches takes for each, int64 ``[side * side]``.

    Places are fractions of the image, sorted into as many buckets; rounding puts some into the one before.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    places = (torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side))).clamp(max=1.0 - 1e-6)
    found = torch.bucketize(places, boundaries, right=True)
    return (found[:, None] * side + found).flatten()


def _table(name: str, tensor: Tensor, config: Any) -> Tensor:
    if not name.endswith("embeddings.position_embedding.weight"):
        return tensor
    return tensor[buckets(config.vision_config.image_size // config.vision_config.patch_size)]


IDEFICS3 = Family(
    title="Idefics 3 and SmolVLM",
    model=_idefics3,
    names=(
        (r"model\.vision_model\.", "vision_encoder.model."),
        (r"model\.connector\.modality_projection\.proj\.", "projector.net.mlp.0."),
        (r"model\.text_model\.", "language_model.model.model."),
        HEAD,
    ),
    views=lambda config, pixels: {"SingleView": {"fit": "squash"}},
    tiles=_idefics3_tiles,
    changed=_table,
    around=("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    remarks=(
        "with a file of its image processor that says so, images are cut into tiles between texts, which stand in "
        "front of the whole one",
    ),
)
