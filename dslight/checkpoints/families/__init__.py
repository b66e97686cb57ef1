"""Released families that can be begun from, by transformers' ``model_type``."""

from __future__ import annotations

from dslight.checkpoints.families.docling import GRANITE_DOCLING
from dslight.checkpoints.families.family import Family
from dslight.checkpoints.families.gemma import GEMMA3, PALIGEMMA
from dslight.checkpoints.families.granite import GRANITE4_VISION
from dslight.checkpoints.families.llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION
from dslight.checkpoints.families.qwen import COMPASS, OMNI, QWEN2_5_VL, QWEN2_VL, QWEN3_VL, THINKER
from dslight.checkpoints.families.shuffled import IDEFICS3, INTERNVL

FAMILIES: dict[str, Family] = {
    "llava": LLAVA,
    "llava_next": LLAVA_NEXT,
    "llava_onevision": LLAVA_ONEVISION,
    "paligemma": PALIGEMMA,
    "gemma3": GEMMA3,
    "granite4_vision": GRANITE4_VISION,
    "granite_docling": GRANITE_DOCLING,
    "internvl": INTERNVL,
    "idefics3": IDEFICS3,
    "smolvlm": IDEFICS3,
    "qwen2_vl": QWEN2_VL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen3_vl": QWEN3_VL,
    "qwen3_vl_moe": QWEN3_VL,
    "cosmos3_omni": QWEN3_VL,
    "cohere_compass": COMPASS,
    "qwen3_omni_moe_thinker": THINKER,
    "qwen3_omni_moe": OMNI,
}


def family_of(kind: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        ValueError: it is not known.
    """
    if kind in FAMILIES:
        return FAMILIES[kind]
    raise ValueError(f"model type {kind!r} is not known; known: {', '.join(sorted(FAMILIES))}")
