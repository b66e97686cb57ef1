"""Qwen2-VL to Qwen3-VL and what descends from them: towers of any image size, positions of several axes, and from
Qwen3-VL on a merger for each stack.

Which stack enters where is not what the list of indexes looks like: features are gathered in the order of the tower's
blocks, and each is merged by the merger that stands in the list where its index stands. So ``[2, 0]`` puts block 0,
merged by the second merger, behind layer 0. Here taps are written in the order of the blocks, each with that merger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dslight.checkpoints.families.family import (
    HEAD,
    TEXT,
    TEXT_OF_ITS_OWN,
    Family,
    Names,
    Section,
    decoder,
    dtype_of,
    is_tied,
    needs,
    written,
)

MERGERS = (
    "its mergers (visual.merger, visual.deepstack_merger_list) are the projector: stage.train.projector trains them, "
    "and they freeze with it, not with the tower"
)


def _tower(config: Any) -> Section:
    return {"NativeVisionEncoder": {"config": written(config.vision_config), "dtype": dtype_of(config)}}


def _levels(config: Any) -> list[int]:
    """The blocks that are read, in their order."""
    return sorted(set(config.vision_config.deepstack_visual_indexes or ()))


def _stacked(config: Any) -> Section:
    levels = _levels(config)
    merger = {"factor": config.vision_config.spatial_merge_size, "hidden": "merged", "norm": "pre"}
    if levels:
        merger |= {"stack_norm": "post", "per_level": True}
    taps = {"DeepStackTaps": {"taps": [index + 1 for index in levels], "tap": -1}}
    return {
        "vision_encoder": _tower(config),
        "projector": {"PixelShuffleMLPProjector": merger},
        "stacking": taps if levels else {"LowResolution": {"tap": -1}},
        "language_model": decoder(config, is_tied(config)),
    }


def _merger(name: str, net: str) -> Names:
    return (
        (rf"model\.visual\.{name}\.norm\.", f"projector.{net}.norm."),
        (rf"model\.visual\.{name}\.linear_fc1\.", f"projector.{net}.mlp.0."),
        (rf"model\.visual\.{name}\.linear_fc2\.", f"projector.{net}.mlp.2."),
    )


def _mergers(config: Any) -> Names:
    levels, listed = _levels(config), [int(index) for index in config.vision_config.deepstack_visual_indexes or ()]
    names = _merger("merger", "nets.0" if levels else "net")
    for level, index in enumerate(levels, start=1):
        names += _merger(rf"deepstack_merger_list\.{listed.index(index)}", f"nets.{level}")
    return names


def _thinker(config: Any) -> Section:
    """The tower and the decoder are Qwen3-VL-MoE's, under other names."""
    needs(config.text_config, {"norm_topk_prob": True, "use_sliding_window": False}, "qwen3_omni_moe")
    made = _stacked(config)
    encoder: Section = {"config": written(config.vision_config, model_type="qwen3_vl_vision")}
    encoder |= {"dtype": dtype_of(config), "tokens_per_second": float(config.position_id_per_seconds)}
    lm = decoder(config, is_tied(config), model_type="qwen3_vl_moe_text")
    return {**made, "vision_encoder": {"NativeVisionEncoder": encoder}, "language_model": lm}


def _thinker_mergers(config: Any) -> Names:
    listed, levels = [int(index) for index in config.vision_config.deepstack_visual_indexes or ()], _levels(config)
    nets = [("merger", "nets.0" if levels else "net")]
    nets += [(rf"merger_list\.{listed.index(index)}", f"nets.{level}") for level, index in enumerate(levels, start=1)]
    return tuple(
        pair
        for name, net in nets
        for pair in (
            (rf"(?:model\.)?visual\.{name}\.ln_q\.", f"projector.{net}.norm."),
            (rf"(?:model\.)?visual\.{name}\.mlp\.", f"projector.{net}.mlp."),
        )
    )


def _plain(config: Any, rms: bool) -> Section:
    merger = {"factor": config.vision_config.spatial_merge_size, "hidden": "merged", "norm": "pre"}
    return {
        "vision_encoder": _tower(config),
        "projector": {"PixelShuffleMLPProjector": {**merger, **({"rms": True} if rms else {})}},
        "stacking": {"LowResolution": {"tap": -1}},
        "language_model": decoder(config, is_tied(config)),
    }


def _views(config: Any, pixels: Section) -> Section:
    """The budget of pixels, as either form of the processor's file says it."""
    size = pixels.get("size") or {}
    least = pixels.get("min_pixels") or size.get("shortest_edge")
    most = pixels.get("max_pixels") or size.get("longest_edge")
    given = {"min_pixels": least, "max_pixels": most}
    return {"class_path": "dslight.NativeViews", "init_args": {k: int(value) for k, value in given.items() if value}}


def _watched(stamps: bool) -> Callable[[Any, Section], Section]:
    """How videos are looked at: with their times as text and a budget of pixels for all frames (Qwen3-VL), or with
    positions and a budget for each.
    """
    side = 32 if stamps else 28  # of the tokens by which the processor's own budget counts

    def video(config: Any, pixels: Section) -> Section:
        size = pixels.get("size") or {}
        least = pixels.get("min_pixels") or size.get("shortest_edge") or 128 * side**2
        most = pixels.get("max_pixels") or size.get("longest_edge") or 768 * side**2
        taken = {"least": int(pixels.get("min_frames") or 4), "most": int(pixels.get("max_frames") or 768)}
        budget = {"min_pixels": int(least), "max_pixels": int(most), "budget": "video" if stamps else "frame"}
        return {"fps": float(pixels.get("fps") or 2), **taken, **budget, "stamps": stamps}

    return video


VISUAL = (r"model\.visual\.(?!merger|deepstack_merger_list)", "vision_encoder.model.")
UNCALLED = ((r"model\.visual\.deepstack_merger_list\.", "no block is merged by it"),)
PLAIN: Names = (
    (r"model\.visual\.merger\.ln_q\.", "projector.net.norm."),
    (r"model\.visual\.merger\.mlp\.", "projector.net.mlp."),
)

QWEN2_VL = Family(
    title="Qwen2-VL",
    model=lambda config: _plain(config, rms=False),
    names=(*PLAIN, VISUAL, TEXT_OF_ITS_OWN, HEAD),
    views=_views,
    video=_watched(stamps=False),
    remarks=(MERGERS,),
)
QWEN2_5_VL = Family(
    title="Qwen2.5-VL",
    model=lambda config: _plain(config, rms=True),
    names=(*PLAIN, VISUAL, TEXT_OF_ITS_OWN, HEAD),
    views=_views,
    video=_watched(stamps=False),
    remarks=(MERGERS,),
)
QWEN3_VL = Family(
    title="Qwen3-VL",
    model=_stacked,
    names=(VISUAL, TEXT_OF_ITS_OWN, HEAD),
    levels=_mergers,
    views=_views,
    video=_watched(stamps=True),
    left_out=UNCALLED,
    remarks=(MERGERS,),
)
THINKER = Family(
    title="Qwen3-Omni's thinker",
    model=_thinker,
    names=(
        (r"(?:model\.)?visual\.(?!merger|merger_list)", "vision_encoder.model."),
        TEXT_OF_ITS_OWN,
        # before transformers 5.24 its parts stood side by side in memory
        (r"model\.(?=(?:layers|embed_tokens|norm)\.)", "language_model.model.model.language_model."),
        HEAD,
    ),
    levels=_thinker_mergers,
    views=_views,
    video=_watched(stamps=False),
    left_out=(
        (r"(?:model\.)?visual\.merger_list\.", "no block is merged by it"),
        (r"(?:model\.)?audio_tower\.", "it hears, and no part here does"),
    ),
    remarks=(
        MERGERS.replace("deepstack_merger_list", "merger_list"),
        "it sees and writes: sound is left out",
        "times of video frames are whole positions; the release has fractions of one where the rate asks for them",
    ),
)
OMNI = replace(THINKER, title="Qwen3-Omni", inside=("thinker_config", "thinker."))
COMPASS = Family(
    title="Cohere Compass",
    model=_stacked,
    names=(VISUAL, TEXT, HEAD),
    levels=_mergers,
    views=_views,
    video=_watched(stamps=True),
    left_out=UNCALLED,
    remarks=(MERGERS,),
)
