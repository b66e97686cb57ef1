"""Gated cross-attention against torch's own attention in a loop over the layers written out, image by image; and inside
real decoders: caches, beams, padding, checkpointing, threads.
"""

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from dslight.nn.cross_attention import GatedCrossAttention, attend
from dslight.nn.injector import inject
from dslight.types import Memory, VisualTokens

ROWS, LENGTH, WIDTH, DEPTH = 3, 9, 8, 4
SLOTS, COUNTS = (2, 2, 1), (4, 6, 3)
BEGINS = [(0, 1), (0, 5), (2, 7)]  # (row, column) of each image; row 1 is text alone


def layers_():
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True, norm_first=True) for _ in range(DEPTH)
    )


def mask_():
    mask = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    mask[0, 1:3], mask[0, 5:7], mask[2, 7:8] = True, True, True
    return mask


def blocks_(count, width=WIDTH, heads=2, init=0.7, ffn=2):
    torch.manual_seed(1)
    blocks = [GatedCrossAttention(width, heads, width // heads, ffn, init) for _ in range(count)]
    for block in blocks:
        for parameter in block.parameters():
            if parameter.ndim >= 2:
                nn.init.normal_(parameter, std=0.5)
    return nn.ModuleList(blocks)


def memory_(sites, latest=False, tokens=None, **options):
    torch.manual_seed(2)
    tokens = torch.randn(sum(COUNTS), WIDTH) if tokens is None else tokens
    return Memory(tokens, COUNTS, SLOTS, list(blocks_(len(sites), **options)), tuple(sites), latest)


def run(layers, hidden):
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def torchs_attention(block, h, tokens):
    """``nn.MultiheadAttention`` with the same weights."""
    width = block.query.in_features
    weights = {
        "in_proj_weight": torch.cat([block.query.weight, block.key.weight, block.value.weight]),
        "out_proj.weight": block.out.weight,
    }
    attention = nn.MultiheadAttention(width, block.heads, bias=False, batch_first=True)
    return torch.func.functional_call(attention, weights, (h[None], tokens, tokens))[0][0]


def by_hand(layers, hidden, memory):
    """Before each layer, every position by itself attends to the tokens of the images that it may see."""
    images = memory.tokens.split(list(memory.counts))
    for index, layer in enumerate(layers):
        for site, block in zip(memory.sites, memory.blocks, strict=True):
            if site != index:
                continue
            changed = list(hidden.flatten(0, 1))
            for n, h in enumerate(changed):
                b, t = divmod(n, hidden.shape[1])
                seen = [i for i, (row, column) in enumerate(BEGINS) if row == b and column <= t]
                if not seen:
                    continue
                tokens = torch.cat([images[i] for i in (seen[-1:] if memory.latest else seen)])
                h = h + torch.tanh(block.gate) * torchs_attention(block, block.norm(h), tokens)
                if block.ffn is not None:
                    norm, up, gelu, down = block.ffn
                    h = h + torch.tanh(block.ffn_gate) * down(gelu(up(norm(h))))
                changed[n] = h
            hidden = torch.stack(changed).view_as(hidden)
        hidden = layer(hidden)
    return hidden


def hooks_of(*modules):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for module in modules for m in module.modules())


# --- torch's own layers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("sites", [(0,), (1, 3), (2, 2), (3, 0, 1)])
def test_every_position_reads_the_images_before_it_with_torchs_attention(sites, latest):
    layers, mask, memory, hidden = layers_(), mask_(), memory_(sites, latest), torch.randn(ROWS, LENGTH, WIDTH)
    with torch.no_grad():
        expected = by_hand(layers, hidden, memory)
    with attend(layers, mask, memory):
        torch.testing.assert_close(run(layers, hidden), expected)
    assert not torch.allclose(expected, run(layers, hidden), atol=1e-1)


def test_latest_and_all_images_differ_only_behind_the_second_image():
    layers, mask, hidden = nn.ModuleList([nn.Identity()]), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    with attend(layers, mask, memory_((0,))):
        every = run(layers, hidden)
    with attend(layers, mask, memory_((0,), latest=True)):
        latest = run(layers, hidden)
    apart = (every - latest).abs().amax(-1) > 1e-6
    assert apart.nonzero().tolist() == [[0, t] for t in range(5, LENGTH)]


def test_without_a_feed_forward_half_there_is_attention_alone():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    memory = memory_((1,), ffn=0)
    assert len(list(memory.blocks[0].parameters())) == 7
    with torch.no_grad():
        expected = by_hand(layers, hidden, memory)
    with attend(layers, mask, memory):
        torch.testing.assert_close(run(layers, hidden), expected)


def test_heads_need_not_divide_the_width():
    block = GatedCrossAttention(WIDTH, heads=3, head_dim=5)
    out, (keys, values) = block(torch.randn(2, 4, WIDTH), torch.randn(2, 6, WIDTH), torch.ones(2, 4, 6).bool())
    assert out.shape == (2, 4, WIDTH)
    assert keys.shape == values.shape == (2, 3, 6, 5)


def test_closed_gates_change_nothing_at_all():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    with attend(layers, mask, memory_((0, 1, 2, 3), init=0.0)):
        with_blocks = run(layers, hidden)
    assert torch.equal(with_blocks, run(layers, hidden))


def test_only_the_gates_learn_while_they_are_closed():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    memory = memory_((1, 2), init=0.0)
    with attend(layers, mask, memory):
        run(layers, hidden).square().sum().backward()
    for block in memory.blocks:
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == ("gate" in name), name


@pytest.mark.parametrize("latest", [False, True])
def test_positions_that_see_no_image_are_left_exactly_alone(latest):
    layers, mask, hidden = nn.ModuleList([nn.Identity()]), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    with attend(layers, mask, memory_((0,), latest)):
        out = run(layers, hidden)
    same = (out == hidden).all(-1)
    assert same.nonzero().tolist() == [[0, 0], *([1, t] for t in range(LENGTH)), *([2, t] for t in range(7))]
    assert out.isfinite().all()


def test_an_image_without_tokens_is_not_seen():
    layers, mask, hidden = nn.ModuleList([nn.Identity()]), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    memory = memory_((0,))
    memory = replace(memory, tokens=memory.tokens[4:], counts=(0, 6, 3))
    with attend(layers, mask, memory):
        out = run(layers, hidden)
    assert torch.equal(out[0, :5], hidden[0, :5])
    assert (out[0, 5:] != hidden[0, 5:]).any(-1).all()


def test_text_alone_is_unchanged_and_its_gradients_are_zero_and_not_none():
    layers, mask, hidden = layers_(), torch.zeros(ROWS, LENGTH, dtype=torch.bool), torch.randn(ROWS, LENGTH, WIDTH)
    projector = nn.Linear(4, WIDTH)
    memory = memory_((1, 2), tokens=projector(torch.randn(sum(COUNTS), 4)))
    none = VisualTokens(torch.zeros(1, 0, WIDTH), memory=memory).none().memory
    plain = run(layers, hidden)
    with attend(layers, mask, none):
        out = run(layers, hidden)
    assert torch.equal(out, plain)
    out.sum().backward()
    for parameter in [*projector.parameters(), *(p for block in memory.blocks for p in block.parameters())]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_a_softmax_over_nothing_never_happens(monkeypatch):
    """Torch's kernels do not agree on what it is; written out it is not a number, in the gradients too."""

    def written_out(query, key, value, attn_mask):
        scores = (query @ key.mT / query.shape[-1] ** 0.5).masked_fill(~attn_mask, -torch.inf)
        return scores.softmax(-1) @ value

    layers, mask = nn.ModuleList([nn.Identity(), nn.Identity()]), mask_()
    hidden, memory = torch.randn(ROWS, LENGTH, WIDTH), memory_((0, 1))
    with attend(layers, mask, memory):
        ours = run(layers, hidden)
        monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", written_out)
        theirs = run(layers, hidden)
    torch.testing.assert_close(ours, theirs)
    theirs.sum().backward()
    assert all(p.grad.isfinite().all() for block in memory.blocks for p in block.parameters())


def test_what_a_pass_without_gradients_kept_does_not_cut_the_next_ones():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    memory = memory_((1,), tokens=torch.randn(sum(COUNTS), WIDTH, requires_grad=True))
    with attend(layers, mask, memory):
        with torch.no_grad():
            run(layers, hidden)
        run(layers, hidden).sum().backward()
    assert memory.tokens.grad.any()
    assert memory.blocks[0].key.weight.grad.any()


def test_gradients_are_those_of_the_loop():
    layers, mask = layers_(), mask_()
    hidden = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    memory = memory_((1, 3), tokens=torch.randn(sum(COUNTS), WIDTH, requires_grad=True))
    wanted = [hidden, memory.tokens, *layers.parameters(), *nn.ModuleList(memory.blocks).parameters()]
    with attend(layers, mask, memory):
        ours = torch.autograd.grad(run(layers, hidden).square().sum(), wanted)
    theirs = torch.autograd.grad(by_hand(layers, hidden, memory).square().sum(), wanted)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_a_float32_block_in_a_bf16_stream_leaves_it_bf16():
    layers, mask, hidden = nn.ModuleList([nn.Identity()]), mask_(), torch.randn(ROWS, LENGTH, WIDTH).bfloat16()
    with attend(layers, mask, memory_((0,))):
        low, high = run(layers, hidden), run(layers, hidden.float())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), high, atol=0.03, rtol=0.02)
    with attend(layers, mask, memory_((0,))), torch.autocast("cpu", torch.bfloat16):
        assert run(layers, hidden).dtype == torch.bfloat16


def test_stacks_and_blocks_at_one_site_act_in_the_order_they_are_entered():
    layers, mask, hidden = nn.ModuleList([nn.Identity()]), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    memory, stack = memory_((0,)), torch.randn(1, int(mask.sum()), WIDTH)
    with inject(layers, mask, stack, (0,)), attend(layers, mask, memory):
        both = run(layers, hidden)
    added = hidden.clone()
    added[mask] += stack[0]
    with attend(layers, mask, memory):
        torch.testing.assert_close(both, run(layers, added))


def test_nothing_to_attend_to_is_no_hook():
    layers = layers_()
    with attend(layers, mask_(), None):
        assert hooks_of(layers) == 0


def test_no_hook_outlives_the_block_and_nothing_is_kept():
    layers, mask, memory = layers_(), mask_(), memory_((1, 1, 2))
    before = [dict(vars(block)) for block in memory.blocks]
    with attend(layers, mask, memory), torch.no_grad():
        assert hooks_of(layers) == 3
        run(layers, torch.randn(ROWS, LENGTH, WIDTH))
    with pytest.raises(RuntimeError, match="out of memory"), attend(layers, mask, memory):
        raise RuntimeError("out of memory")
    assert hooks_of(layers) == 0
    assert [dict(vars(block)) for block in memory.blocks] == before


def test_beams_read_the_memory_of_the_row_that_they_repeat():
    layers, mask, memory, hidden = layers_(), mask_(), memory_((0, 2)), torch.randn(ROWS, LENGTH, WIDTH)
    with attend(layers, mask, memory):
        once, thrice = run(layers, hidden), run(layers, hidden.repeat_interleave(3, dim=0))
    torch.testing.assert_close(thrice, once.repeat_interleave(3, dim=0))


def test_another_threads_pass_is_left_alone():
    layers, mask, hidden = layers_(), mask_(), torch.randn(ROWS, LENGTH, WIDTH)
    plain, seen = run(layers, hidden), []
    with attend(layers, mask, memory_((0,))):
        other = threading.Thread(target=lambda: seen.append(run(layers, hidden)))
        other.start()
        other.join()
    assert torch.equal(seen[0], plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": (2, 2, 2)}, "6 visual slots of the memory's images, 5 in the sequence"),
        ({"counts": (4, 6, 4)}, "13 tokens of memory, counted as 14 of 3 images; 3 images take slots"),
        ({"counts": (4, 9)}, "13 tokens of memory, counted as 13 of 2 images; 3 images take slots"),
        ({"sites": (1,)}, r"2 blocks for 1 sites \(1,\)"),
        ({"sites": (1, 4)}, "no layer 4; the transformer has layers 0 to 3"),
        ({"sites": (-1, 1)}, "no layer -1; the transformer has layers 0 to 3"),
    ],
)
def test_a_memory_that_does_not_fit_is_refused(change, message):
    layers = layers_()
    with pytest.raises(ValueError, match=message), attend(layers, mask_(), replace(memory_((1, 2)), **change)):
        pass
    assert hooks_of(layers) == 0


def test_a_residual_stream_of_other_rows_is_refused():
    layers = layers_()
    with (
        attend(layers, mask_(), memory_((0,))),
        pytest.raises(ValueError, match=r"4 rows .* the visual mask has 3"),
    ):
        run(layers, torch.zeros(4, LENGTH, WIDTH))


# --- real decoders --------------------------------------------------------------------------------------------------

DECODERS = ["llama", "gemma3_text", "gpt2"]
T = 12


def batch(rows=3, seed=0, latest=False):
    """Row 0 has two images, row 1 is text only, row 2 one image; all rows are of one length."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (rows, T), generator=generator)
    mask = torch.zeros(rows, T, dtype=torch.bool)
    mask[0, 2:5], mask[0, 7:8], mask[2, 4:6] = True, True, True
    slots = torch.randn(2, 6, 32, generator=generator)
    tokens = torch.randn(14, 32, generator=generator)
    memory = Memory(tokens, (5, 2, 7), (3, 1, 2), list(blocks_(2, 32, 4)), (1, 3), latest)
    return ids, torch.ones_like(ids), mask, VisualTokens(slots, (2,), memory=memory)


@pytest.mark.parametrize("latest", [False, True])
@pytest.mark.parametrize("kind", DECODERS)
def test_generation_with_a_cache_is_the_full_recompute(tiny_lm, kind, latest):
    lm, (ids, attention, mask, visual) = tiny_lm(kind), batch(latest=latest)
    options = {"max_new_tokens": 6, "pad_token_id": 0}
    cached = lm.generate(ids, attention, mask, visual, **options)
    grown, seen, slots = ids, attention, mask
    for _ in range(6):
        new = lm(grown, seen, slots, visual)[:, -1].argmax(-1, keepdim=True)
        grown = torch.cat([grown, new], dim=1)
        seen = torch.cat([seen, torch.ones_like(new)], dim=1)
        slots = torch.cat([slots, torch.zeros_like(new, dtype=torch.bool)], dim=1)
    assert torch.equal(cached, grown[:, T:])
    assert torch.equal(lm.generate(ids, attention, mask, visual, use_cache=False, **options), cached)
    assert not torch.equal(cached, lm.generate(ids, attention, mask, replace(visual, memory=None), **options))


def test_a_decode_step_reads_the_memory_too(tiny_lm):
    """What a stack does not do: the last token of a prompt, fed alone behind a cache, is changed by the memory."""
    lm, (ids, attention, mask, visual) = tiny_lm(), batch()
    other = replace(visual, memory=replace(visual.memory, tokens=visual.memory.tokens.flip(0) * 2))
    outs = []
    for each in (visual, other):
        cache = DynamicCache(config=lm.model.config)
        with torch.no_grad(), lm._injecting(mask, visual):
            lm.model(input_ids=ids[:, :-1], attention_mask=attention[:, :-1], past_key_values=cache)
        with torch.no_grad(), lm._injecting(mask, each):
            outs.append(lm.model(input_ids=ids[:, -1:], attention_mask=attention, past_key_values=cache).logits)
    apart = (outs[0] - outs[1]).abs().amax((1, 2))
    assert (apart > 1e-2).tolist() == [True, False, True]


def test_keys_and_values_are_computed_once_per_generation(tiny_lm):
    lm, (ids, attention, mask, visual) = tiny_lm(), batch()
    calls = []
    for block in visual.memory.blocks:
        block.key.register_forward_hook(lambda *_: calls.append("key"))
        block.query.register_forward_hook(lambda *_: calls.append("query"))
    lm.generate(ids, attention, mask, visual, max_new_tokens=6, pad_token_id=0)
    assert (calls.count("key"), calls.count("query")) == (2, 12)
    calls.clear()
    lm(ids, attention, mask, visual)
    lm(ids, attention, mask, visual)
    assert (calls.count("key"), calls.count("query")) == (4, 4)  # with gradients, every pass has its own


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("cuts", [(5,), (3, 4, 8, 11)])
def test_a_prompt_in_chunks_is_the_prompt_in_one_pass(tiny_lm, kind, cuts):
    lm, (ids, attention, mask, visual) = tiny_lm(kind), batch()
    whole, cache, parts = lm(ids, attention, mask, visual), DynamicCache(config=lm.model.config), []
    with lm._injecting(mask, visual):
        for start, end in zip((0, *cuts), (*cuts, T), strict=True):
            out = lm.model(input_ids=ids[:, start:end], attention_mask=attention[:, :end], past_key_values=cache)
            parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=0)


def ragged():
    """Three prompts of unequal length: alone, and left-padded into one batch."""
    generator, alone, blocks = torch.Generator().manual_seed(1), [], list(blocks_(2, 32, 4))
    for length, images in ((12, [(1, 3, 5), (6, 2, 2)]), (5, []), (9, [(4, 5, 7)])):
        ids = torch.randint(3, 64, (1, length), generator=generator)
        mask = torch.zeros(1, length, dtype=torch.bool)
        for start, count, _ in images:
            mask[0, start : start + count] = True
        counts, slots = tuple(c for *_, c in images), tuple(n for _, n, _ in images)
        tokens = torch.randn(sum(counts), 32, generator=generator)
        memory = Memory(tokens, counts, slots, blocks, (0, 2))
        base = torch.randn(1, sum(slots), 32, generator=generator)
        alone.append((ids, torch.ones_like(ids), mask, VisualTokens(base, memory=memory)))

    def left(tensors):
        return torch.cat([nn.functional.pad(x, (12 - x.shape[1], 0)) for x in tensors])

    ids, attention, mask = (left([row[i] for row in alone]) for i in range(3))
    memories = [row[3].memory for row in alone]
    memory = Memory(
        torch.cat([m.tokens for m in memories]),
        sum((m.counts for m in memories), ()),
        sum((m.slots for m in memories), ()),
        blocks,
        (0, 2),
    )
    visual = VisualTokens(torch.cat([row[3].slots for row in alone], dim=1), memory=memory)
    return alone, (ids, attention, mask, visual)


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
    assert torch.equal(answers.flatten(0, 1), lm.generate(*together, **options, use_cache=False))
    assert not torch.equal(answers[:, 0], lm.generate(*together, max_new_tokens=5, pad_token_id=0))  # beams do differ


@pytest.mark.skipif(
    "__call__" in vars(GradientCheckpointingLayer),
    reason="this transformers recomputes __call__, hooks and all, when the blocks are gone; it is refused instead",
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")  # the new name is not in every 5.x
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(tiny_lm, reentrant):
    lm, (ids, attention, mask, visual) = tiny_lm().train(), batch()
    blocks = nn.ModuleList(visual.memory.blocks)

    def gradients():
        tokens = visual.memory.tokens.clone().requires_grad_()
        lm.zero_grad()
        blocks.zero_grad()
        memory = replace(visual.memory, tokens=tokens)
        out = lm(ids, attention, mask, replace(visual, memory=memory))
        out.log_softmax(-1)[..., 5].sum().backward()
        named = {name: p.grad for name, p in [*lm.named_parameters(), *blocks.named_parameters()]}
        return {"tokens": tokens.grad, **named}

    plain, calls = gradients(), []
    assert plain["tokens"].any()
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    lm.layers[1].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # layer 1 did run again in the backward pass
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")


def test_checkpointing_that_would_forget_the_memory_is_refused(tiny_lm):
    lm, (ids, attention, mask, visual) = tiny_lm().train(), batch()
    layer = type(lm.layers[0])
    older = type("Older", (layer,), {"__call__": lambda self, *args, **kwargs: layer.__call__(self, *args, **kwargs)})
    for each in lm.layers:
        each.__class__ = older
        each.gradient_checkpointing = True
    with pytest.raises(RuntimeError, match="recomputes a layer together with its hooks"):
        lm(ids, attention, mask, VisualTokens(visual.base[None], memory=visual.memory))
