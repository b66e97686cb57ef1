"""A tiny model of any kind that transformers knows: its default configuration, shrunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dslight.components.decoders.shrunk import DEPTH, WIDTH, shrunk


def tiny(kind: str) -> dict[str, Any]:
    """The configuration of a tiny model of ``kind``, as a recipe has it.

    Raises:
        ValueError: transformers does not know it.
    """
    from transformers import AutoConfig

    odd = ODD.get(kind, {})
    try:
        defaults = AutoConfig.for_model(kind).to_dict()
    except Exception:  # one that has no valid defaults; the library's own error has no class of ours
        inside = {name: value for name, value in odd.items() if isinstance(value, Mapping)}
        defaults = AutoConfig.for_model(kind, **inside).to_dict()
    return {"model_type": kind, **shrunk(defaults, odd)}


_GEMMA4_KIND = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
ODD: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 48},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
        "text_config": {"num_key_value_heads": 4, "head_dim": 12, "per_layer_config": {}},
    },
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 12, "per_layer_config": {}},
    "electra": {"embedding_size": WIDTH},  # others are refused
    "rembert": {"input_embedding_size": WIDTH, "output_embedding_size": WIDTH},
    "xmod": {"default_language": "en_XX"},
    "gemma3n_text": {"intermediate_size": [48] * DEPTH, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]},
    "gemma3n": {
        "text_config": {"intermediate_size": [48] * DEPTH, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]},
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
        "is_decoder": True,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": 64,
        "shape_embed_dim": 16,
        "shape_vocab_size": 64,
    },
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}
_INDEXED = {"indexer_n_heads": 16, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
_INDEXED |= {"indexer_compress_ratio": 2}
ODD |= {"qwen4_exp": {"text_config": _INDEXED}, "qwen4_exp_text": _INDEXED}
_DRAFTER = {"num_kv_shared_layers": DEPTH, "num_hidden_layers": DEPTH, "layer_types": _GEMMA4_KIND}
ODD |= {"gemma4_unified_assistant": {"text_config": _DRAFTER}}
_NO_EMBEDDINGS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "model_type": "gemma4_text"}
ODD |= {"gemma4_assistant": {"text_config": _DRAFTER | _NO_EMBEDDINGS}}
"""What a kind needs beside."""
