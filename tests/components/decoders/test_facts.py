"""What is discovered of a decoder before a weight is read, on kinds that differ in just that."""

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, BertConfig, BertLMHeadModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from dslight.components import HFCausalLM
from dslight.components.decoders import facts
from dslight.components.decoders.shrunk import shrunk
from dslight.components.decoders.trials import known, tried
from dslight.matrix.tiny import tiny
from dslight.types import VisualTokens


def outline(kind: str, **changes: Any) -> Any:
    """A tiny model of ``kind``, without memory."""
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    fields = tiny(kind) | changes
    if kind == "gemma4_unified_assistant" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("transformers 5.23 makes none of four layers")
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields))


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("llama4_text", "model.layers"),  # its get_decoder() is the model with its head
        ("modernbert-decoder", "model.layers"),
        ("longcat_flash", "model.layers"),  # its configuration counts twice the layers
        ("bart", "model.decoder.layers"),
    ],
)
def test_layers_are_found_wherever_they_are(kind, layers):
    assert known(outline(kind)).layers == layers


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("deepseek_v4", "its residual stream is 4 streams per position"),
        ("gemma3n_text", "its residual stream is 4 predictions per position"),
        ("qwen4_exp_text", "its residual stream is 4 streams of width 32 side by side"),
        ("xlnet", "its layers take time first"),
        ("dory", "looped .called in the order 0, 1, 2, 1, 2, 3."),
        ("inkling2_loop_text", "looped .called in the order 0, 1, 2, 1, 2, 1, 2, 3."),
        ("reformer", "a pass in training is refused by transformers: If training"),
        ("xlm", "there is no one residual stream"),
        ("gemma4_unified_assistant", "a pass over ids alone is refused by transformers: inputs_embeds and shared_kv"),
    ],
)
def test_a_stream_that_a_stack_cannot_be_added_to_is_refused_by_what_it_is(kind, said):
    with pytest.raises(ValueError, match=rf"pretrained: {kind} \(\w+, transformers 5\..*{said}"):
        known(outline(kind))


def test_a_decoder_that_looks_ahead_is_refused():
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
    with pytest.raises(ValueError, match="it is not causal"):
        HFCausalLM.of(BertLMHeadModel(config))
    assert HFCausalLM(config={**tiny("bert")}).model.config.is_decoder  # what is asked for is a decoder


def test_embeddings_that_are_narrower_than_the_stream_are_refused():
    with pytest.raises(ValueError, match="its embedding has width 16 and its residual stream 32"):
        known(outline("electra", embedding_size=16, is_decoder=True))


def test_positions_begin_where_the_model_begins_them():
    """RoBERTa's begin behind the id of padding."""
    assert known(outline("llama")).begins(outline("llama")) == 0
    model = outline("roberta", is_decoder=True, pad_token_id=5)
    assert known(model).begins(model) == 6
    assert known(outline("mamba")).begins(model) is None


def test_a_model_of_fewer_layers_than_the_copy_would_have_is_tried_too():
    fields = {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
    facts = known(outline("gemma3_text", **fields))
    assert (len(facts.layers_of(facts.copy)), tried(facts, "pads")) == (2, True)


def test_what_cannot_pad_or_pack_is_known():
    asked = ("pads", "answers padded", "packs")
    assert [tried(known(outline("llama")), question) for question in asked] == [True, True, True]
    assert [tried(known(outline("bart")), question) for question in asked] == [False, False, False]
    assert not tried(known(outline("rwkv")), "pads")
    assert tried(known(outline("mamba")), "pads")


def test_discovery_leaves_random_numbers_and_the_device_alone(monkeypatch):
    monkeypatch.setattr(facts, "_KNOWN", {})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with torch.device("meta"):
        found = facts.discover(outline("llama"))
        assert torch.rand(1).is_meta
    assert torch.equal(torch.rand(2), expected)
    assert {parameter.device.type for parameter in found.copy.parameters()} == {"cpu"}


def test_a_model_whose_copy_cannot_be_run_is_watched_in_its_first_pass(monkeypatch, tiny_lm):
    def fail(model: Any) -> Any:
        raise RuntimeError("sizes do not go together")

    monkeypatch.setattr(facts, "_KNOWN", {})
    monkeypatch.setattr(facts, "copy_of", fail)
    ids = torch.randint(3, 64, (2, 5))
    lm = tiny_lm("llama")
    assert (lm.facts.copy, lm.facts.layers, lm.pads, lm.answers_padded) == (None, "model.layers", False, False)
    lm(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool), None)
    outline("dory")  # or there is none
    looped = HFCausalLM(config=tiny("dory"))
    with pytest.raises(ValueError, match="its 4 layers are looped"):
        looped(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool), None)


# --- halves of multimodal models


@pytest.mark.parametrize("kind", ["qwen3_vl_text", "gemma3", "qwen3_vl", "llava"])
def test_the_language_half_of_a_multimodal_model_is_a_decoder(kind):
    fields = shrunk(AutoConfig.for_model(kind).to_dict())
    lm = HFCausalLM(config={"model_type": kind, **fields}).eval()
    assert lm.depth == 4
    assert not [name for name, _ in lm.named_parameters() if "visual" in name or "vision" in name]
    ids = torch.randint(5, 55, (1, 7))
    none = torch.zeros_like(ids, dtype=torch.bool)
    assert lm(ids, torch.ones_like(ids), none, None).shape == (1, 7, lm.vocabulary)


def test_gemma_4_sees_at_a_slot_what_its_own_multimodal_model_puts_there(tmp_path):
    """Its embeddings per layer read the id where an image stands, which is that of padding."""
    torch.manual_seed(0)
    fields = shrunk(AutoConfig.for_model("gemma4").to_dict())
    fields["text_config"]["vocab_size"] = fields["text_config"]["vocab_size_per_layer_input"] = 300
    theirs: Any = AutoModelForImageTextToText.from_config(AutoConfig.for_model("gemma4", **fields, image_token_id=299))
    theirs.save_pretrained(tmp_path)
    theirs.eval()
    lm = HFCausalLM(str(tmp_path)).eval()
    assert lm.facts.reads_ids
    ids, mask = torch.randint(5, 55, (1, 8)), torch.zeros(1, 8, dtype=torch.bool)
    mask[0, 2:5] = True
    image = torch.randn(3, lm.width)
    seen: list[Any] = []
    theirs.model.language_model.register_forward_pre_hook(lambda _, args, kw: seen.append(kw), with_kwargs=True)
    with torch.no_grad():
        text = theirs(input_ids=ids.masked_fill(mask, theirs.config.text_config.pad_token_id))
        embeds = seen[0]["inputs_embeds"].clone()
        embeds[mask] = image
        per_layer = seen[0]["per_layer_inputs"]
        hidden = theirs.model.language_model(inputs_embeds=embeds, per_layer_inputs=per_layer).last_hidden_state
        expected = theirs.lm_head(hidden)
        ours = lm(ids.masked_fill(mask, 7), torch.ones_like(ids), mask, VisualTokens(image[None]))
    assert text.logits.shape == ours.shape
    cap = theirs.config.text_config.final_logit_softcapping
    torch.testing.assert_close(ours, expected if not cap else cap * torch.tanh(expected / cap), atol=1e-5, rtol=1e-5)


def test_stacks_at_layers_that_use_keys_and_values_of_earlier_ones_are_refused():
    lm = HFCausalLM(config=tiny("gemma4_text") | {"num_kv_shared_layers": 2})
    lm.check_sites([0, 1])
    with pytest.raises(ValueError, match=r"a stack at layer 2 would reach no token behind it: layers from 2 on"):
        lm.check_sites([1, 2])


def test_a_checkpoint_without_all_weights_is_refused(tiny_lm, tmp_path):
    """Transformers would begin a missing head at random, and say so in a warning."""
    tiny_lm("llama", tie_word_embeddings=False).model.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not hold all weights of LlamaForCausalLM: lm_head.weight would begin"):
        HFCausalLM(str(tmp_path))


@pytest.mark.parametrize("kind", ["musicgen", "siglip", "t5"])
def test_what_is_no_decoder_is_refused_in_a_sentence(kind):
    with pytest.raises(ValueError, match=rf"config.model_type: .*{kind}"):
        HFCausalLM(config={"model_type": kind})
