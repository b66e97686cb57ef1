"""A tiny model of any kind that transformers knows: its default configuration, shrunk field by field.

Nearly all architectures share their fields' names, so sizes go by name (:data:`SIZES`); what is left is in
:data:`ODD`. Four layers are taken of what a kind has by default, so that every sort of layer among them (sliding and
full attention, recurrent, dense and sparse) is there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

WIDTH, DEPTH, VOCABULARY = 32, 4, 64
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_decoder_layers")
_LAYERS += ("num_blocks",)
SIZES: list[tuple[str, int]] = [
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embedding_dim|word_embed_proj_dim|lru_width|attention_hidden_size", WIDTH),
    (r"embedding_size|input_embedding_size|output_embedding_size|backbone_hidden_size", WIDTH),
    (r"num_hidden_layers|n_layers?|num_layers|(num_)?(de|en)coder_layers|num_blocks|attn_layers", DEPTH),
    (r"(de|en)coder_attention_heads|num_(de|en)coder_attention_heads|attention_heads|n_heads?|num_heads", 4),
    (r"(swa_)?num_attention_heads|num_kv_heads|n_mamba_heads", 4),
    (r"(swa_)?num_key_value_heads|num_global_key_value_heads|num_query_groups", 2),
    (r"(swa_)?(global_)?head_dim|kv_channels|d_head|dim_head|attention_head_size|v_head_dim|swa_v_head_dim", 8),
    (r"(shared_|dense_)?intermediate_size(_mlp)?|(de|en)coder_ffn_dim|ffn_dim|n_inner|d_inner|dff|dim_ff", 48),
    (r"ffn_hidden_size|feed_forward_size|block_ff_dim", 48),
    (r".*(moe|expert)s?_.*(intermediate|hidden)_size", 24),
    (r"(decoder_|unpadded_)?vocab_size(_per_layer_input)?|n_words", VOCABULARY),
    (r"(moe_)?num_(local_)?experts|n_routed_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts", 2),
    (r"num_shared_experts|n_shared_experts|moe_num_shared_experts|n_group|topk_group|num_expert_group", 1),
    (r"sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size|local_attention", 6),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank|head_dim_half", 16),
    (r"qk_nope_head_dim", 8),
    (r"qk_rope_head_dim", 4),
    (r"qk_head_dim", 12),
    (r"rotary_dim", 4),
    (r"linear_(key|value)_head_dim|linear_head_dim", 8),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads", 4),
    (r"mamba_d_state|ssm_state_size|state_size|ssm_cfg_state", 8),
    (r"mamba_n_heads|mamba_num_heads", 4),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 16),
    (r"mamba_n_groups|mamba_ngroups|n_groups", 1),
    (r"mamba_d_ssm", 64),
    (r"mamba_chunk_size|chunk_size", 8),
    (r"index_n_heads", 2),
    (r"index_head_dim", 8),
    (r"index_topk", 4),
    (r"hidden_size_per_layer_input", 8),
    (r"(laurel|adapter|gated_norm|loop_gate)_rank|hc_lowrank|router_hidden_size", 8),
    (r"num_kv_shared_layers", 2),
    (r"max_window_layers|first_k_dense_replace|num_dense_layers", 1),
    (r"sliding_window_pattern|_sliding_window_pattern|full_attention_interval|layer_group_size", 2),
    (r"attn_layer_period|expert_layer_period|global_attn_every_n_layers|no_rope_layer_interval", 2),
    (r"num_nextn_predict_layers", 0),
    (r"n_positions|n_ctx|max_position_embeddings|context_length|max_target_positions|max_source_positions", 128),
    (r"num_channels", 3),
    (r"image_size", 32),
    (r"patch_size", 8),
]
RATES = r".*drop(out|_rate|_path_rate)?(_p|_prob)?|.*_pdrop|(de|en)coder_layerdrop|layerdrop|.*_jitter_noise|mask_time_prob|mask_feature_prob"
TOKENS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 1}
TOKENS |= {"forced_eos_token_id": None, "forced_bos_token_id": None}
_NESTED = re.compile(r".*_config|decoder|(audio|text)_encoder")


def shrunk(defaults: Mapping[str, Any], odd: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields to change, and what to, given all fields of a configuration.

    Args:
        defaults: the default configuration as a dictionary.
        odd: what is to be otherwise; nested for a configuration inside.
    """
    odd = odd or {}
    made: dict[str, Any] = {}
    depth = next((defaults[name] for name in _LAYERS if isinstance(defaults.get(name), int)), None)
    per_layer = {n: v for n, v in defaults.items() if depth and isinstance(v, list) and len(v) == depth > DEPTH}
    chosen = _chosen(list(zip(*per_layer.values(), strict=True)), depth or 0)
    for name, value in defaults.items():
        if name in odd and not (isinstance(odd[name], Mapping) and _NESTED.fullmatch(name)):
            continue
        if isinstance(value, Mapping) and _NESTED.fullmatch(name) and "model_type" in value:
            kind = {"model_type": value["model_type"]} if value["model_type"] else {}
            made[name] = {**kind, **shrunk(value, odd.get(name))}
        elif name in per_layer:
            made[name] = [value[at] for at in chosen]
        elif name in TOKENS:
            made[name] = TOKENS[name]
        elif isinstance(value, int) and not isinstance(value, bool):
            made |= {name: size for key, size in SIZES if re.fullmatch(key, name) and (value or size == 0)}
        elif isinstance(value, float) and re.fullmatch(RATES, name):
            made[name] = 0.0
    return made | {name: value for name, value in odd.items() if not isinstance(value, Mapping) or name not in made}


def _chosen(layers: list[Any], depth: int) -> list[int]:
    """Of all layers, so many that every sort is there, in their order."""
    first = list({repr(sort): at for at, sort in reversed(list(enumerate(layers)))}.values())
    taken = sorted(first)[:DEPTH]
    taken += [at for at in range(depth) if at not in taken][: DEPTH - len(taken)]
    return sorted(taken)


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
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}, "ffn_config": {"hidden_size": WIDTH, "ffn_hidden_size": 48}},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note": {
        "vision_config": {"adapter_in_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
        "text_config": {"num_key_value_heads": 4, "head_dim": 12, "per_layer_config": {}}},
    "dots3_note_text": {"num_key_value_heads": 4, "head_dim": 12, "per_layer_config": {}},
    "gemma3n_text": {"intermediate_size": [48] * DEPTH, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]},
    "gemma3n": {
        "text_config": {"intermediate_size": [48] * DEPTH, "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0]},
        "vision_config": {"architecture": "mobilenetv3_small_050"},
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
_INDEXED = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
_INDEXED |= {"indexer_compress_ratio": 2}
ODD |= {"qwen4_exp": {"text_config": _INDEXED}, "qwen4_exp_text": _INDEXED}
_DRAFTER = {"num_kv_shared_layers": DEPTH, "num_hidden_layers": DEPTH, "layer_types": _GEMMA4_KIND}
ODD |= {"gemma4_unified_assistant": {"text_config": _DRAFTER}}
_NO_EMBEDDINGS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "model_type": "gemma4_text"}
ODD |= {"gemma4_assistant": {"text_config": _DRAFTER | _NO_EMBEDDINGS}}
"""What a kind needs beside."""
