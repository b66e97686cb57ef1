"""The language-model path against transformers' own passes (the authors' numbers are in ``golden_model``)."""

import threading

import pytest
import torch
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from dslight.components import HFCausalLM
from dslight.types import VisualTokens

DECODERS = ["llama", "qwen2", "phi3", "gemma3_text", "gpt2"]
LENGTH = 12


def batch(seed=0, images=((2, 3), (7, 4)), rows=3):
    """Row 0 has two images, row 1 is text only, further rows one image; all rows are of one length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, LENGTH), generator=generator)
    mask = torch.zeros(rows, LENGTH, dtype=torch.bool)
    for start, count in images:
        mask[0, start : start + count] = True
    mask[2:, 4:9] = True
    slots = torch.randn(4, int(mask.sum()), 32, generator=generator)
    return ids, torch.ones_like(ids), mask, VisualTokens(slots, (1, 2, 2))


def dense_reference(lm, ids, attention, mask, visual):
    """Transformers' own forward from embeddings, with each layer's forward wrapped by hand to add a dense map first."""
    embeds = lm.embedding(ids).detach().clone()
    embeds[mask] = visual.base.to(embeds.dtype)
    originals = [layer.forward for layer in lm.layers]
    for site, layer in enumerate(lm.layers):
        dense = torch.zeros(*ids.shape, lm.width)
        for at, stack in zip(visual.sites, visual.stacks, strict=True):
            if at == site:
                dense[mask] += stack
        layer.forward = lambda hidden, *a, _f=layer.forward, _d=dense, **k: _f(hidden + _d, *a, **k)
    try:
        return lm.model(inputs_embeds=embeds, attention_mask=attention, use_cache=False).logits
    finally:
        for layer, original in zip(lm.layers, originals, strict=True):
            layer.forward = original


# --- every architecture ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
def test_slots_enter_where_transformers_would_take_them(tiny_lm, kind):
    lm, inputs = tiny_lm(kind), batch()
    ours = lm(*inputs)
    torch.testing.assert_close(ours, dense_reference(lm, *inputs), atol=1e-5, rtol=0)
    assert (ours - lm(*inputs[:3], None)).abs().max() > 0.1


@pytest.mark.parametrize("kind", DECODERS)
def test_text_alone_is_the_plain_model(tiny_lm, kind):
    lm, (ids, attention, mask, visual) = tiny_lm(kind), batch()
    plain = lm.model(input_ids=ids, attention_mask=attention).logits
    none = VisualTokens(visual.slots[:, :0], visual.sites)
    torch.testing.assert_close(lm(ids, attention, torch.zeros_like(mask), none), plain)
    torch.testing.assert_close(lm(ids, attention, mask, None), plain)


@pytest.mark.parametrize("kind", DECODERS)
def test_generation_with_a_cache_is_the_full_recompute(tiny_lm, kind):
    lm, (ids, attention, mask, visual) = tiny_lm(kind), batch()
    cached = lm.generate(ids, attention, mask, visual, max_new_tokens=6, pad_token_id=0)
    grown, seen, slots = ids, attention, mask
    for _ in range(6):
        new = lm(grown, seen, slots, visual)[:, -1].argmax(-1, keepdim=True)
        grown = torch.cat([grown, new], dim=1)
        seen = torch.cat([seen, torch.ones_like(new)], dim=1)
        slots = torch.cat([slots, torch.zeros_like(new, dtype=torch.bool)], dim=1)
    assert torch.equal(cached, grown[:, LENGTH:])
    uncached = lm.generate(ids, attention, mask, visual, max_new_tokens=6, pad_token_id=0, use_cache=False)
    assert torch.equal(uncached, cached)
    assert not torch.equal(cached, lm.generate(ids, attention, mask, None, max_new_tokens=6, pad_token_id=0))


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("cuts", [(5,), (3, 4, 8, 11), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)])
def test_a_prompt_in_chunks_is_the_prompt_in_one_pass(tiny_lm, kind, cuts):
    lm, (ids, attention, mask, visual) = tiny_lm(kind), batch()
    whole, cache, parts = lm(ids, attention, mask, visual), DynamicCache(config=lm.model.config), []
    with lm._injecting(mask, visual):
        for start, end in zip((0, *cuts), (*cuts, LENGTH), strict=True):
            out = lm.model(input_ids=ids[:, start:end], attention_mask=attention[:, :end], past_key_values=cache)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


def test_checkpointing_that_would_forget_the_stacks_is_refused(tiny_lm):
    """Older transformers recompute ``__call__``: gradients would be wrong without a word when reentrant."""
    lm, (ids, attention, mask, visual) = tiny_lm().train(), batch()
    layer = type(lm.layers[0])
    older = type("Older", (layer,), {"__call__": lambda self, *args, **kwargs: layer.__call__(self, *args, **kwargs)})
    for each in lm.layers:
        each.__class__ = older
    lm(ids, attention, mask, visual)
    for each in lm.layers:
        each.gradient_checkpointing = True
    with pytest.raises(RuntimeError, match="recomputes a layer together with its hooks"):
        lm(ids, attention, mask, visual)
    lm.eval()
    lm(ids, attention, mask, visual)  # nothing is recomputed


@pytest.mark.skipif(
    "__call__" in vars(GradientCheckpointingLayer),
    reason="this transformers recomputes __call__, hooks and all, when the injector is gone; it is refused instead",
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")  # the new name is not in every 5.x
@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny_lm, kind, reentrant):
    lm, (ids, attention, mask, visual) = tiny_lm(kind).train(), batch()

    def gradients():
        slots = visual.slots.clone().requires_grad_()
        lm.zero_grad()
        lm(ids, attention, mask, VisualTokens(slots, visual.sites)).log_softmax(-1)[..., 5].sum().backward()
        return {"slots": slots.grad} | {name: p.grad for name, p in lm.named_parameters()}

    plain, calls = gradients(), []
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    watched = next(m for m in lm.layers[1].modules() if isinstance(m, torch.nn.LayerNorm) or "Norm" in type(m).__name__)
    watched.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # layer 1 did run again in the backward pass
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


# --- padding, rows, beams -------------------------------------------------------------------------------------------


def ragged():
    """Three prompts of unequal length: alone, and left-padded into one batch."""
    generator, alone = torch.Generator().manual_seed(1), []
    for length, images in ((12, [(1, 3), (6, 2)]), (5, []), (9, [(4, 5)])):
        ids = torch.randint(3, 64, (1, length), generator=generator)
        mask = torch.zeros(1, length, dtype=torch.bool)
        for start, count in images:
            mask[0, start : start + count] = True
        slots = torch.randn(4, int(mask.sum()), 32, generator=generator)
        alone.append((ids, torch.ones_like(ids), mask, VisualTokens(slots, (0, 1, 3))))

    def left(tensors):
        return torch.cat([torch.nn.functional.pad(x, (12 - x.shape[1], 0)) for x in tensors])

    ids, attention, mask = (left([row[i] for row in alone]) for i in range(3))
    slots = torch.cat([row[3].slots for row in alone], dim=1)
    return alone, (ids, attention, mask, VisualTokens(slots, (0, 1, 3)))


@pytest.mark.parametrize("kind", DECODERS)
def test_left_padded_rows_are_the_rows_alone(tiny_lm, kind):
    lm, (alone, together) = tiny_lm(kind), ragged()
    logits = lm(*together)
    answers = lm.generate(*together, max_new_tokens=5, pad_token_id=0)
    for row, inputs in enumerate(alone):
        length = inputs[0].shape[1]
        torch.testing.assert_close(logits[row, -length:], lm(*inputs)[0], atol=1e-5, rtol=0)
        assert torch.equal(answers[row], lm.generate(*inputs, max_new_tokens=5, pad_token_id=0)[0])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_beams_and_several_answers_are_those_of_the_rows_alone(tiny_lm, kind):
    lm, (alone, together) = tiny_lm(kind), ragged()
    options = {"max_new_tokens": 5, "pad_token_id": 0, "num_beams": 3, "num_return_sequences": 2}
    answers = lm.generate(*together, **options).unflatten(0, (3, 2))
    for row, inputs in enumerate(alone):
        assert torch.equal(answers[row], lm.generate(*inputs, **options))
    assert not torch.equal(answers[:, 0], lm.generate(*together, max_new_tokens=5, pad_token_id=0))  # beams do differ


@pytest.mark.parametrize(("kind", "config"), [("llama", {}), ("mamba", {"num_attention_heads": None, "state_size": 8})])
def test_two_generations_in_two_threads_do_not_mix(tiny_lm, kind, config):
    lm = tiny_lm(kind, attention=None, **config)
    inputs = [batch(seed=seed, images=images) for seed, images in ((1, ((0, 6),)), (2, ((5, 7),)))]
    expected = [lm.generate(*each, max_new_tokens=16, pad_token_id=0) for each in inputs]
    assert not torch.equal(*expected)
    barrier, answers = threading.Barrier(2), {}

    def work(index):
        torch.set_num_threads(1)
        for _ in range(3):
            barrier.wait()
            answers.setdefault(index, []).append(lm.generate(*inputs[index], max_new_tokens=16, pad_token_id=0))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, wanted in enumerate(expected):
        assert len(answers[index]) == 3
        for answer in answers[index]:
            assert torch.equal(answer, wanted)


# --- what it refuses ------------------------------------------------------------------------------------------------


def test_a_wrong_configuration_is_refused_by_its_key(tiny_lm):
    with pytest.raises(ValueError, match="pretrained: name a checkpoint, or give a `config`"):
        HFCausalLM()
    with pytest.raises(ValueError, match=r"config\.model_type: missing"):
        HFCausalLM(config={"hidden_size": 32})
    with pytest.raises(ValueError, match=r"config\.model_type: transformers has no architecture 'lama'"):
        HFCausalLM(config={"model_type": "lama"})
    with pytest.raises(ValueError, match=r"config\.hiden_size: LlamaConfig has no such field"):
        tiny_lm("llama", hiden_size=32)
    with pytest.raises(ValueError, match="dtype: 'float31' is no torch dtype"):
        HFCausalLM(config={"model_type": "llama"}, dtype="float31")
    with pytest.raises(ValueError, match="tokenizer: a model made from a `config` needs a `tokenizer`"):
        tiny_lm().load_tokenizer()


def test_a_checkpoint_is_held_to_the_configuration_beside_it(tiny_lm, tmp_path):
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    read = HFCausalLM(pretrained=str(tmp_path), config={"model_type": "llama", "hidden_size": 32}).eval()
    inputs = batch()
    torch.testing.assert_close(read(*inputs), lm(*inputs))
    with pytest.raises(ValueError, match=r"config\.hidden_size: the recipe says 48, the checkpoint .* has 32"):
        HFCausalLM(pretrained=str(tmp_path), config={"model_type": "llama", "hidden_size": 48})
    with torch.device("meta"):
        planned = HFCausalLM(pretrained=str(tmp_path))
    assert {p.device.type for p in planned.parameters()} == {"meta"}


def test_a_checkpoint_is_read_ready_to_train_and_generating_leaves_it_so(tiny_lm, tmp_path):
    """In evaluation mode there is no dropout and transformers' gradient checkpointing silently does nothing."""
    tiny_lm().model.save_pretrained(tmp_path)
    lm = HFCausalLM(pretrained=str(tmp_path))
    assert all(module.training for module in lm.modules())
    lm.generate(*batch(), max_new_tokens=2, pad_token_id=0)
    assert all(module.training for module in lm.modules())
    lm.freeze()
    lm.generate(*batch(), max_new_tokens=2, pad_token_id=0)
    assert not any(module.training for module in lm.modules())


def test_the_facts_that_other_parts_read(tiny_lm):
    lm = tiny_lm("gpt2")
    assert (lm.depth, lm.width, lm.vocabulary) == (4, 32, 64)
    assert lm.shard_units == list(lm.model.transformer.h)


def test_every_weight_stands_once_in_the_state_dict(tiny_lm):
    lm = tiny_lm("llama")
    assert sum(v.numel() for v in lm.state_dict().values()) == sum(p.numel() for p in lm.parameters())


def test_attention_is_flash_where_it_is_installed_and_sdpa_elsewhere(monkeypatch):
    from dslight.components import transformers_config

    def installed(flash, cuda):
        monkeypatch.setattr(transformers_config, "find_spec", lambda name: (name == "flash_attn" and flash) or None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        kinds = (torch.bfloat16, torch.float32)
        return [transformers_config.check_attention("auto", kind) for kind in kinds]

    assert installed(flash=True, cuda=True) == ["flash_attention_2", "sdpa"]
    assert installed(flash=False, cuda=True) == installed(flash=True, cuda=False) == ["sdpa", "sdpa"]


def test_attention_left_to_the_machine_is_sdpa_on_a_cpu(tiny_lm):
    assert tiny_lm(attention="auto").model.config._attn_implementation == "sdpa"
