"""The families that the kit is made of: tiny configurations of the model classes in transformers that inject visual
tokens layer by layer, one per class, with the requests that each is asked.

Only :mod:`dslight.conformance.produce` needs this; whoever runs the kit reads the folders that it wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE, START, END, VIDEO, AUDIO = 60, 61, 62, 63, 59
NEW = 8
"""Tokens that are generated behind a prompt."""
PATCH, MERGED = 4, 8
"""Side in pixels of a patch, and of the 2 x 2 patches that become one visual token, of Qwen's towers."""

_QWEN_VISION = {
    "depth": 4, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": PATCH,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32, "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1, 2],
}  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 128, "eos_token_id": None,
    "bos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
_QWEN_TEXT = {**_TEXT, "head_dim": 8, "rope_parameters": _MROPE}
_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip
_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
    "tie_word_embeddings": False,
}  # fmt: skip
_GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2, "logits_scaling": 0.5,
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How a family of the kit is made.

    Attributes:
        model: the class in transformers.
        config: its configuration's class.
        settings: of the configuration.
        injection: in a sentence, where its stacks are added.
        pixels: how its images become its class's inputs: ``patches``, ``anyres`` or ``tiles``.
        video: how a video stands in the sequence: ``stamped``, frame by frame behind their times; ``whole``; or none.
        std: of the weights' matrices.
        deviations: cases in which the class does not come to its own numbers, and which outcome is right, and why.
        streams: whether its text model alone is asked, too, with any stacks at the inputs of any layers.
    """

    model: str
    config: str
    settings: Mapping[str, Any]
    injection: str
    pixels: str = "patches"
    video: str = ""
    std: float = 0.2
    streams: bool = False
    deviations: Mapping[str, str] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "qwen3_vl": Recipe(
        "Qwen3VLForConditionalGeneration", "Qwen3VLConfig",
        {"vision_config": _QWEN_VISION, "text_config": _QWEN_TEXT, **_IDS},
        "added to the outputs of layers 0, 1, 2; three position axes", video="stamped",
    ),
    "qwen3_vl_moe": Recipe(
        "Qwen3VLMoeForConditionalGeneration", "Qwen3VLMoeConfig",
        {"vision_config": _QWEN_VISION, "text_config": {**_QWEN_TEXT, **_EXPERTS}, **_IDS},
        "added to the outputs of layers 0, 1, 2; three position axes; experts", video="stamped",
    ),
    "qwen3_omni_thinker": Recipe(
        "Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeThinkerConfig",
        {
            "vision_config": _QWEN_VISION, "text_config": {**_QWEN_TEXT, **_EXPERTS}, **_IDS,
            "audio_config": {
                "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 4,
                "d_model": 4, "downsample_hidden_size": 2, "output_dim": 32, "max_source_positions": 8, "n_window": 2,
            },
            "audio_token_id": AUDIO, "audio_start_token_id": 57, "audio_end_token_id": 58,
        },
        "added to the outputs of layers 0, 1, 2; positions in time; experts", video="whole",
    ),
    "cohere_compass": Recipe(
        "CohereCompassForConditionalGeneration", "CohereCompassConfig",
        {
            "vision_config": _QWEN_VISION,
            "text_config": {
                **_TEXT, "logit_scale": 1.0, "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
                "rope_parameters": {"sliding_attention": _MROPE, "full_attention": None},
            },
            **_IDS,
        },
        "added to the outputs of layers 0, 1, 2 of a parallel decoder with windows", video="stamped",
    ),
    "granite4_vision": Recipe(
        "Granite4VisionForConditionalGeneration", "Granite4VisionConfig",
        {
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 16,
                "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4,
            },
            "text_config": {"model_type": "granite4_vision_text", **_TEXT, **_GRANITE},
            "qformer_config": {
                "model_type": "blip_2_qformer", "num_hidden_layers": 1, "intermediate_size": 16,
                "cross_attention_frequency": 1, "max_position_embeddings": 16, "use_qformer_text_input": False,
            },
            "image_token_index": IMAGE, "image_grid_pinpoints": [[16, 32], [32, 16]], "downsample_rate": "2/4",
            "vision_feature_select_strategy": "full",
            "deepstack_layer_map": [[-2, 3]], "spatial_vision_layer": -1,
            "spatial_target_layers": [1, 0],
        },
        "zeros at the visual positions; three groups added to the inputs of layers 3, 1, 0",
        pixels="anyres", streams=True,
        deviations={
            "greedy in pieces": "transformers 5.24 raises KeyError: its generate cuts the pooled tokens of an encoder, "
            "and this encoder gives stacks alone. Right is the answer behind the prompt in one pass: the class's own "
            "passes over pieces, handed its features piece by piece, come to it (case `chunks`).",
        },
    ),
    "granite_docling": Recipe(
        "GraniteDoclingForConditionalGeneration", "GraniteDoclingConfig",
        {
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
                "image_size": 16, "patch_size": 4, "out_hidden_size": 32, "scale_factor": 2,
                "deepstack_visual_indexes": [0, 1, 3], "use_fine_route": False,
            },
            "text_config": {**_TEXT, **_GRANITE},
            "image_token_id": IMAGE, "tie_word_embeddings": False, "pad_token_id": 0,
        },
        "added to the outputs of layers 0, 1, 2; tiles of a page", pixels="tiles",
    ),
}  # fmt: skip
"""By the family's folder in the kit."""
