"""What dslight expects of transformers beyond its documentation. Where one of these fails,
``dslight/upstream/transformers.py`` is to be mended, and nothing else.
"""

import logging

import pytest
import torch
from packaging.version import Version
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers import __version__ as version

from dslight.upstream.torch import fake_tensors
from dslight.upstream.transformers import (
    SPARE,
    Joined,
    attend_by,
    attention_of,
    from_settings,
    give_room,
    is_news,
    is_recurrent,
    joined,
    masks_windows,
    recomputes_with_hooks,
    registers_attention,
    remember_coordinates,
    vision_geometry,
    whole_layers,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 16, "pad_token_id": 0}
WIDTHS = {"intermediate_size": 16, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
RECURRENT = {"intermediate_size": 32, "state_size": 4, "time_step_rank": 2}


def decoder(kind: str, attention: str = "sdpa", **more):
    config = AutoConfig.for_model(kind, **TINY, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_configuration_says_which_attention_its_model_was_made_with(attention):
    assert attention_of(decoder("llama", attention, intermediate_size=16).config) == attention
    assert attention_of(object()) is None


@pytest.mark.parametrize(("key", "said"), [("mrope_section", False), ("slip", True)])
def test_sections_of_rotary_axes_are_no_news_and_a_slip_is(key, said, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    rope = {"rope_type": "default", "rope_theta": 1e4, key: [2, 1, 1]}
    AutoConfig.for_model("qwen2_vl_text", **TINY, num_key_value_heads=2, rope_parameters=rope)
    assert ("Unrecognized keys in `rope_parameters`" in caplog.text) == said
    assert all(is_news(record) for record in caplog.records)


def test_a_class_makes_a_model_of_settings_in_a_type_and_with_an_attention():
    from transformers import Qwen3VLVisionModel

    small = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8}
    settings = AutoConfig.for_model("qwen3_vl_vision", **small)
    model = from_settings(Qwen3VLVisionModel, settings, {"dtype": torch.bfloat16, "attn_implementation": "eager"})
    assert isinstance(model, Qwen3VLVisionModel)
    assert attention_of(model.config) == "eager"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["qwen2_5_vl_vision", "qwen3_vl_vision"])
@torch.no_grad()
def test_a_tower_takes_what_it_would_work_out_from_its_grids(kind):
    """Nothing of it is left over for the layers, and the features are the same."""
    from transformers import Qwen2_5_VLVisionConfig, Qwen3VLVisionConfig, Qwen3VLVisionModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

    small = {
        "depth": 2,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "out_hidden_size": 8,
        "patch_size": 4,
    }
    if kind == "qwen3_vl_vision":
        tower = Qwen3VLVisionModel(Qwen3VLVisionConfig(**small, num_position_embeddings=16))
    else:
        settings = Qwen2_5_VLVisionConfig(**small, window_size=16, fullatt_block_indexes=[1])
        tower = Qwen2_5_VisionTransformerPretrainedModel(settings)
    grids, pixels = torch.tensor([[1, 4, 6], [1, 2, 10]]), torch.randn(44, 3 * 2 * 16)
    made, seen = vision_geometry(tower, grids), []
    tower.blocks[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    expected = tower.eval()(pixels, grids).last_hidden_state
    assert torch.equal(tower(pixels, torch.zeros(2, 3, dtype=torch.int64), **made).last_hidden_state, expected)
    assert seen[0] == seen[1]


def test_a_model_attends_by_a_function_that_transformers_takes_for_flash():
    calls = []

    def attention(module, query, key, value, attention_mask, **options):
        calls.append(options["cu_seq_lens_q"].tolist())
        return query.transpose(1, 2), None

    from transformers import Qwen3VLVisionModel

    AttentionInterface.register("a_flash_of_ours", attention)
    small = {
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_heads": 1,
        "out_hidden_size": 8,
        "patch_size": 4,
    }
    tower = Qwen3VLVisionModel(AutoConfig.for_model("qwen3_vl_vision", **small))
    attend_by(tower, "a_flash_of_ours")
    tower(torch.randn(16, 3 * 2 * 16), torch.tensor([[1, 2, 6], [1, 2, 2]]))
    assert calls == [[0, 12, 16]]


@pytest.mark.parametrize(
    ("kind", "recurrent"), [("llama", False), ("gemma3_text", False), ("mamba", True), ("rwkv", True)]
)
def test_what_carries_a_state_along_says_so(kind, recurrent):
    with torch.device("meta"):
        assert is_recurrent(decoder(kind, "eager", **(RECURRENT if kind == "mamba" else {}))) == recurrent


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "qwen2"])
def test_windows_are_masked_by_one_function_and_a_mask_for_each_kind_of_layer_is_taken_in_place_of_it(kind):
    torch.manual_seed(0)
    model = decoder(kind, **WIDTHS, **({"use_sliding_window": True, "max_window_layers": 0} if kind == "qwen2" else {}))
    model.eval()
    assert masks_windows(model.get_decoder())
    ids = torch.arange(8)[None] + 1
    index = torch.arange(8)
    seen = index[:, None] >= index
    near = seen & (index[:, None] - index < 4)
    kinds = set(getattr(model.config, "layer_types", None) or ["sliding_attention"])
    masks = {"full_attention": seen[None, None], "sliding_attention": near[None, None]}
    mask = masks if len(kinds) == 2 else masks[kinds.pop()]
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
        given = model(input_ids=ids, attention_mask=mask, position_ids=index[None], use_cache=False).logits
        blind = model(input_ids=ids[:, 4:], use_cache=False).logits
    torch.testing.assert_close(given, expected)
    assert not torch.allclose(blind[:, -1], expected[:, -1])  # what lies behind the window counts, layer by layer


def test_a_decoder_that_masks_its_windows_itself_is_told_apart():
    assert not masks_windows(decoder("gpt2", n_inner=16).get_decoder())


def test_checkpointed_layers_are_known_by_whether_they_recompute_their_hooks():
    model = decoder("llama", intermediate_size=16)
    layer = model.get_decoder().layers[0]
    assert not recomputes_with_hooks(layer)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    passes: list[None] = []
    hook = layer.register_forward_pre_hook(lambda module, args: passes.append(None))
    model(input_ids=torch.ones(1, 4, dtype=torch.int64), use_cache=False).logits.sum().backward()
    hook.remove()
    assert recomputes_with_hooks(layer) == (len(passes) == 2)
    assert recomputes_with_hooks(layer) == (Version(version) < Version("5.23"))
    assert not recomputes_with_hooks(layer.eval())


def test_coordinates_that_were_asked_for_before_fake_tensors_stay_real():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = AutoModel.from_config(AutoConfig.for_model("dinov3_vit", image_size=48, patch_size=16, **shape)).eval()
    remember_coordinates(model, (3, 3))
    with fake_tensors():
        model(torch.zeros(1, 3, 48, 48))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 48, 48)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_registered_attention_is_called_in_every_layer_with_the_mask_that_was_given(kind):
    model = decoder(kind, **WIDTHS)
    assert registers_attention(model)
    seen: list[object] = []

    def attend(module, query, key, value, attention_mask, **options):
        seen.append(attention_mask)
        return AttentionInterface()["sdpa"](module, query, key, value, None, is_causal=True, scaling=options["scaling"])

    AttentionInterface.register("dslight_test", attend)
    AttentionMaskInterface.register("dslight_test", AttentionMaskInterface()["sdpa"])
    ids, given = torch.ones(1, 3, dtype=torch.int64), torch.zeros(1, 5, 6, 7, dtype=torch.int64)
    expected = model(input_ids=ids, use_cache=False).logits
    model.set_attn_implementation("dslight_test")
    options = {"attention_mask": given, "position_ids": torch.arange(3)[None], "use_cache": False}
    torch.testing.assert_close(model(input_ids=ids, **options).logits, expected)
    assert len(seen) == 2
    assert all(mask is given for mask in seen)


def test_a_decoder_with_attentions_of_its_own_is_told_apart():
    assert not registers_attention(decoder("falcon"))


def test_experts_of_a_file_are_joined_as_transformers_joins_them():
    widths = {"intermediate_size": 16, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    with torch.device("meta"):
        model = decoder("mixtral", **widths)
    at = "model.layers.1.block_sparse_moe.experts"
    names = [f"{at}.{expert}.w{which}.weight" for expert in (1, 0) for which in (3, 2, 1)]
    groups = {group.target: group for group in joined(model, [*names, "lm_head.weight"])}
    assert groups["lm_head.weight"] == Joined("lm_head.weight", {"lm_head.weight": ["lm_head.weight"]})
    fused = groups["model.layers.1.mlp.experts.gate_up_proj"]
    parts = {name: torch.randn(16, 16) for name in names}
    ((name, tensor),) = fused.made(model, parts.__getitem__).items()
    assert name == fused.target
    expected = [torch.cat([parts[f"{at}.{expert}.w{which}.weight"] for which in (1, 3)]) for expert in (0, 1)]
    assert torch.equal(tensor, torch.stack(expected))


def test_a_cache_keeps_every_column_or_it_does_not_join_and_room_changes_nothing():
    ids = torch.arange(12).view(2, 6)
    windows = decoder("mistral", **WIDTHS)
    assert not whole_layers(windows(ids, use_cache=True).past_key_values, 6)
    model = decoder("llama", intermediate_size=16).eval()
    with torch.inference_mode():
        plain, roomy = (model(ids, use_cache=True).past_key_values for _ in range(2))
        assert len(whole_layers(roomy, 6)) == 2
        assert not whole_layers(roomy, 5)
        give_room(roomy)
        for step in range(SPARE + 4):  # beyond the room that there is at first
            if step == 3:
                for cache in (plain, roomy):
                    cache.batch_select_indices(torch.tensor([1]))
            ids = torch.full((2 if step < 3 else 1, 1), step % 16)
            one, two = (model(ids, past_key_values=cache, use_cache=True).logits for cache in (plain, roomy))
            torch.testing.assert_close(one, two)
