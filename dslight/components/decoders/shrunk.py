"""A tiny copy of any model of transformers: its configuration, shrunk field by field.

Nearly all architectures share their fields' names, so sizes go by name (:data:`SIZES`). Four layers are taken of those
that there are, so that every sort among them (sliding and full attention, recurrent, dense and sparse) is there; what
says how a model works stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import torch

from dslight.upstream.transformers import attention_of

WIDTH, DEPTH, VOCABULARY = 32, 4, 64
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_decoder_layers")
_LAYERS += ("num_blocks",)
SIZES: list[tuple[str, int]] = [
    (r"hidden_size|d_model|n_embd|dim|emb_dim|embed_dim|embedding_dim|word_embed_proj_dim|lru_width", WIDTH),
    (r"(input_|output_)?embedding_size|backbone_hidden_size", WIDTH),
    (r"num_hidden_layers|n_layers?|num_layers|(num_)?(de|en)coder_layers|num_blocks|depth", DEPTH),
    (r"(de|en)coder_attention_heads|num_(de|en)coder_attention_heads|attention_heads|n_heads?|num_heads", 4),
    (r"(swa_)?num_attention_heads|num_kv_heads|n_mamba_heads", 4),
    (r"(swa_)?num_key_value_heads|num_global_key_value_heads|num_query_groups", 2),
    (r"(swa_)?(global_)?head_dim|kv_channels|d_head|dim_head|attention_head_size|v_head_dim|swa_v_head_dim", 8),
    (r"(shared_|dense_)?intermediate_size(_mlp)?|(de|en)coder_ffn_dim|ffn_dim|n_inner|d_inner|dff|dim_ff", 48),
    (r"ffn_hidden_size|feed_forward_size|block_ff_dim", 48),
    (r".*(moe|expert)s?_.*(intermediate|hidden)_size", 24),
    (r"(decoder_|unpadded_)?vocab_size(_per_layer_input)?|n_words", VOCABULARY),
    (r"(moe_)?num_(local_)?experts|n_routed_experts", 4),
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
    (r"index(er)?_n_heads", 16),
    (r"index_head_dim", 8),
    (r"index_topk", 4),
    (r"hidden_size_per_layer_input", 8),
    (r"(laurel|adapter|gated_norm|loop_gate)_rank|hc_lowrank|router_hidden_size", 8),
    (r"num_kv_shared_layers", 2),
    (r"max_window_layers|first_k_dense_replace|num_dense_layers", 1),
    (r"n_input_layers|n_output_layers|(attn|expert)_layer_offset", 1),
    (r"n_recurrent_layers", 2),
    (r"loop_layer_index_start|n_layers_per_attn_res_block", 1),
    (r"loop_layer_index_end", 3),
    (r"sliding_window_pattern|_sliding_window_pattern|full_attention_interval|layer_group_size", 2),
    (r"attn_layer_period|expert_layer_period|global_attn_every_n_layers|no_rope_layer_interval", 2),
    (r"num_nextn_predict_layers", 0),
    (r"n_positions|n_ctx|max_position_embeddings|context_length|max_target_positions|max_source_positions", 128),
    (r"num_channels", 3),
    (r"image_size", 32),
    (r"patch_size", 8),
]
RATES = r".*drop(out|_rate|_path_rate)?(_p|_prob)?|.*_pdrop|.*layerdrop|.*_jitter_noise|mask_(time|feature)_prob"
TOKENS = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 1}
TOKENS |= {"forced_eos_token_id": None, "forced_bos_token_id": None}
_NESTED = re.compile(r".*_config|decoder|(audio|text)_encoder")


def shrunk(fields: Mapping[str, Any], odd: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields to change, and what to, given all fields of a configuration.

    Args:
        fields: the configuration as a dictionary.
        odd: what is to be otherwise; nested for a configuration inside.
    """
    odd = odd or {}
    made: dict[str, Any] = {}
    depth = next((fields[name] for name in _LAYERS if isinstance(fields.get(name), int)), None)
    per_layer = {n: v for n, v in fields.items() if depth and isinstance(v, list) and len(v) == depth}
    chosen = _chosen(list(zip(*per_layer.values(), strict=True)), depth or 0)
    for name, value in fields.items():
        if name in odd and not (isinstance(odd[name], Mapping) and _NESTED.fullmatch(name)):
            continue
        if isinstance(value, Mapping) and _NESTED.fullmatch(name) and "model_type" in value:
            kind = {"model_type": value["model_type"]} if value["model_type"] else {}
            made[name] = {**kind, **shrunk(value, odd.get(name))}
        elif name == "rope_parameters" and isinstance(value, Mapping):
            made[name] = _plain(value)
        elif name in per_layer:
            made[name] = [value[at] for at in chosen]
        elif name == "pad_token_id":
            made[name] = value if isinstance(value, int) and 0 <= value < VOCABULARY else 0
        elif name == "architecture" and isinstance(value, str):  # of an image tower of timm
            made[name] = "mobilenetv3_small_050"
        elif name in TOKENS:
            made[name] = TOKENS[name]
        elif name == "num_kv_shared_layers" and value == depth:  # a drafter's, that has none of its own
            made[name] = DEPTH
        elif isinstance(value, int) and not isinstance(value, bool):
            sizes = [size for key, size in SIZES if re.fullmatch(key, name) and (value or not size)]
            made |= {name: min(value, sizes[-1]) if name in _LAYERS else sizes[-1]} if sizes else {}
        elif isinstance(value, float) and re.fullmatch(RATES, name):
            made[name] = 0.0
    made |= _alike(fields, made)
    return made | {name: value for name, value in odd.items() if not isinstance(value, Mapping) or name not in made}


def _chosen(layers: list[Any], depth: int) -> list[int]:
    """Of all layers, so many that every sort is there, as often and in the order of their first ones."""
    sorts: dict[str, list[int]] = {}
    for at in range(depth):
        sorts.setdefault(repr(layers[at]) if layers else "", []).append(at)
    turns = [at for turn in zip_longest(*sorts.values()) for at in turn if at is not None]
    return turns[:DEPTH]


def _alike(fields: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that are equal in the configuration stay equal."""
    found = {}
    for heads, shared in (("num_attention_heads", "num_key_value_heads"), ("n_heads", "num_key_value_heads")):
        if shared in made and fields.get(heads) == fields[shared]:
            found[shared] = made[heads]
    for narrow in ("embedding_size", "input_embedding_size", "word_embed_proj_dim"):
        if narrow in made and fields[narrow] != fields.get("hidden_size"):
            found[narrow] = WIDTH // 2
    if "head_dim" in made and fields.get("qk_rope_head_dim") == fields["head_dim"]:
        found["head_dim"] = made["qk_rope_head_dim"]
    if "head_dim" in made and "expand" in fields and "state_size" in fields:  # of Mamba's heads
        found["head_dim"] = fields["expand"] * WIDTH // made["num_heads"]
    for wide in ("attention_hidden_size", "attention_head_dim"):
        if isinstance(fields.get(wide), int) and fields.get("hidden_size"):
            heads = 1 if wide == "attention_hidden_size" else 4
            ratio = fields[wide] * (1 if heads == 1 else fields["num_attention_heads"]) // fields["hidden_size"]
            found[wide] = ratio * WIDTH // heads
    if fields.get("n_recurrent_layers") and "mlp" in (fields.get("layer_types") or ()):  # Dory: two entries per layer
        pairs = [kind for kind in fields["layer_types"] if kind != "mlp"]
        kinds = (list(dict.fromkeys(pairs)) * DEPTH)[:DEPTH]
        found |= {"num_hidden_layers": 2 * DEPTH, "n_input_layers": 2, "n_recurrent_layers": DEPTH}
        found |= {"n_output_layers": 2, "layer_types": [each for kind in kinds for each in (kind, "mlp")]}
    found |= {name: min(fields[name], 2) for name in _CHOSEN_EXPERTS if isinstance(fields.get(name), int)}
    return found


_CHOSEN_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts", "moe_top_k")


def _plain(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings without lists as long as a head; sections of several axes stay sections."""
    if any(isinstance(value, Mapping) for value in rope.values()):
        return {name: _plain(value) if isinstance(value, Mapping) else value for name, value in rope.items()}
    lists = {name for name, value in rope.items() if isinstance(value, list | tuple)}
    kept = {name: value for name, value in rope.items() if name not in lists}
    if lists - {"mrope_section"}:
        kept["rope_type"] = "default"
    return kept | {"mrope_section": [2, 1, 1]}  # read by those alone whose positions have several axes


def copy_of(model: Any) -> Any:
    """A random model of the same class, on the CPU in float32, with ``model``'s configuration shrunk.

    Raises:
        Exception: whatever the class raises where sizes that go together were not known here.
    """
    config = model.config
    fields = {name: value for name, value in config.to_dict().items() if name not in _LEFT_OUT}
    made = type(config).from_dict(_merged(fields, shrunk(fields)))
    with torch.device("cpu"), torch.random.fork_rng([]):
        torch.manual_seed(0)
        copy = type(model)(made).float()
        with torch.no_grad():  # the usual start (0.02) leaves all logits nearly equal at this size
            for parameter in copy.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.2)
    if (kind := attention_of(config)) in ("sdpa", "eager") and kind != attention_of(copy.config):
        copy.set_attn_implementation(kind)
    return copy.eval()


_LEFT_OUT = {"per_layer_config", "quantization_config", "dtype", "torch_dtype"}


def _merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` with ``changes``, also of the configurations inside."""
    made = {name: value for name, value in fields.items() if name not in _LEFT_OUT}
    for name, value in changes.items():
        inside = made.get(name)
        if isinstance(value, Mapping) and isinstance(inside, Mapping) and _NESTED.fullmatch(name):
            value = _merged(inside, value)
        made[name] = value
    return made
