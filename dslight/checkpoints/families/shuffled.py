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
    around=("<img>", "</img>"),
    remarks=("one view per image; the release also cuts large images into tiles, which stand in front of that view",),
)

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
    changed=_table,
    around=("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    remarks=(
        "one view per image; the release also cuts large images into tiles between markers of text, which stand in "
        "front of that view",
    ),
)
