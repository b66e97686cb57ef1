"""PaliGemma and Gemma 3: decoders that see the prompt, or the tokens of each image, in both directions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dslight.checkpoints.families.family import (
    HEAD,
    TEXT,
    TOWER,
    Family,
    Section,
    decoder,
    is_tied,
    needs,
    resample,
    tower,
)

POOLER = ((r"model\.vision_tower\..*\.?head\.", "it pools an image to one vector, which nobody asks for"),)


def _parts(config: Any, seen: str, projector: Section) -> Section:
    changes: Section = {"vision_use_head": False} if "siglip" in config.vision_config.model_type else {}
    # what is seen both ways is said by `bidirectional`; the decoder alone is causal
    lm = decoder(config, is_tied(config), use_bidirectional_attention=None)
    made = next(iter(lm.values()))
    made["config"].pop("use_bidirectional_attention", None)
    made["bidirectional"] = seen
    return {
        "vision_encoder": tower(config, **changes),
        "projector": projector,
        "stacking": {"LowResolution": {}},
        "language_model": lm,
    }


def _gemma3(config: Any) -> Section:
    needs(config.text_config, {"use_bidirectional_attention": False}, "gemma3")
    vision = config.vision_config
    side, kept = vision.image_size // vision.patch_size, int(config.mm_tokens_per_image**0.5)
    pooled = {
        "factor": side // kept, "layers": 1, "pool_first": True, "norm": "pre", "eps": vision.layer_norm_eps,
        "bias": False,
    }  # fmt: skip
    return _parts(config, "images", {"AveragePoolProjector": pooled})


def _whole(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Gemma's norms multiply by one more than their weight."""
    return tensor.float() + 1 if name == "projector.net.norm.weight" else tensor


PALIGEMMA = Family(
    title="PaliGemma",
    model=lambda config: _parts(config, "prompt", {"MLPProjector": {"layers": 1}}),
    names=(TOWER, (r"model\.multi_modal_projector\.linear\.", "projector.net.0."), TEXT, HEAD),
    views=lambda config, pixels: {"SingleView": {"fit": "squash", **resample(pixels)}},
    left_out=POOLER,
    around=("", "{bos}"),
    template={"Markers": {"human_end": "\n"}},
    remarks=(
        "all in front of an answer is seen in both directions (model.language_model.bidirectional: prompt), so the "
        "beginning of a prompt is computed for each question anew",
        "of several images in a prompt, the token of the beginning stands behind each; its processor writes it once, "
        "behind the last",
    ),
)
GEMMA3 = Family(
    title="Gemma 3",
    model=_gemma3,
    names=(
        TOWER,
        (r"model\.multi_modal_projector\.mm_input_projection_weight$", "projector.net.0.weight"),
        (r"model\.multi_modal_projector\.mm_soft_emb_norm\.", "projector.net.norm."),
        TEXT,
        HEAD,
    ),
    views=lambda config, pixels: {"SingleView": {"fit": "squash", **resample(pixels)}},
    left_out=POOLER,
    changed=_whole,
    turned=("projector.net.0.weight",),
    around=("\n\n{boi_token_id}", "{eoi_token_id}\n\n"),
    written="boi_token_id",
    remarks=(
        "the tokens of an image see each other in both directions (model.language_model.bidirectional: images)",
        "one view per image: its processor's crops (pan and scan), which are off unless asked for, are not made",
    ),
)
