"""The norms are those of transformers' own hidden states, with and without the addition."""

from dataclasses import astuple
from functools import partial

import pytest
import torch

from dslight.components import ConditionedGate, DeepStack, DeepStackL, GatedAdd, Stack
from dslight.diagnostics.groups import Groups
from dslight.diagnostics.norms import Norms
from dslight.nn.injector import record
from dslight.nn.intervention import intervene


def measure(vlm, *batches):
    norms = Norms(Groups(vlm))
    layout, patches = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector), 16
    for batch in batches:
        with intervene(norms.watch(batch, layout, patches)), torch.no_grad():
            vlm(batch)
    return norms.compute()


def hidden_states(vlm, batch, act):
    """Of transformers, the inputs of all layers at the visual positions."""
    with intervene(act), torch.no_grad():
        visual = vlm.see(batch.views)
        lm = vlm.language_model
        with lm._injecting(batch.visual_mask, visual):
            positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
            seen = lm.model(batch.input_ids, batch.attention_mask, positions, output_hidden_states=True).hidden_states
    return [each[batch.visual_mask] for each in seen]


@pytest.mark.parametrize("name", ["DeepStackL", "gated", "gated by the decoder", "DeepStackHD"])
def test_norms_are_the_difference_of_the_hidden_states_with_and_without_the_stack(make_vlm, ask, name):
    """A stack changes nothing in front of its site: there the hidden states with it and without it differ by what it
    adds. The input of layer ``site`` is recorded by transformers before a hook of the layer changes it, so what was
    added shows behind an identity: a layer without attention and MLP.
    """
    vlm = make_vlm(name)
    batch = ask(vlm, [[(2, 2)], [(2, 2)]])
    groups = Groups(vlm)
    for layer in vlm.language_model.layers:  # each layer gives its input on, unchanged: output = input + 0 + 0
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    found = measure(vlm, batch)
    for norm in found:
        later = {group.number for group in groups if group.number >= norm.group.number}
        if norm.group.layer + 1 == vlm.language_model.depth:  # transformers gives these behind the last norm
            continue
        before = hidden_states(vlm, batch, groups.without(later))[norm.group.layer + 1]
        behind = hidden_states(vlm, batch, groups.without(later - {norm.group.number}))[norm.group.layer + 1]
        added = behind - before
        filled = added.abs().amax(-1) > 1e-5  # a newline token that is still zero is no stack
        assert norm.filled == filled.double().mean()
        added, before = added[filled], before[filled]
        torch.testing.assert_close(norm.added, float(added.norm(dim=-1).mean()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.stream, float(before.norm(dim=-1).mean()), rtol=1e-4, atol=1e-5)
        relative = float((added.norm(dim=-1) / before.norm(dim=-1)).mean())
        torch.testing.assert_close(norm.relative, relative, rtol=1e-4, atol=1e-5)
        cosine = float(torch.cosine_similarity(added, before, dim=-1).mean())
        torch.testing.assert_close(norm.cosine, cosine, rtol=1e-3, atol=1e-4)


def test_norms_inside_the_encoder_are_those_of_its_residual_stream(make_vlm, ask):
    vlm = make_vlm("DeepStackV")
    batch = ask(vlm, [[(1, 2)]])
    groups, found = Groups(vlm), measure(vlm, batch)
    assert [(g.part, g.layer) for g in groups] == [("vision_encoder", 1), ("vision_encoder", 2)]
    for norm in found:
        seen = {}
        for left_out in [{1, 2}, {2}, set()]:
            original = vlm.vision_encoder.encode

            def encode(
                pixels, depth, original=original, left_out=frozenset(left_out), layer=norm.group.layer, seen=seen
            ):
                # these hooks fire behind those of the injection: the input of a layer is seen with its stack
                with record(vlm.vision_encoder.layers, [layer]) as states:
                    out = original(pixels, depth)
                seen[left_out] = states.get(layer)  # the views of the sequence pass last
                return out

            vlm.vision_encoder.encode = encode
            with intervene(groups.without(left_out)), torch.no_grad():
                vlm.see(batch.views)
            del vlm.vision_encoder.encode
        number = norm.group.number
        skip = vlm.vision_encoder.prefix_tokens
        before = seen[frozenset({1, 2} if number == 1 else {2})][:, skip:]
        behind = seen[frozenset({2} if number == 1 else set())][:, skip:]
        added = (behind - before).flatten(0, 1)
        torch.testing.assert_close(norm.added, float(added.norm(dim=-1).mean()), rtol=1e-4, atol=1e-5)
        relative = float((added.norm(dim=-1) / before.flatten(0, 1).norm(dim=-1)).mean())
        torch.testing.assert_close(norm.relative, relative, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operation", [partial(GatedAdd, init=0.0), partial(ConditionedGate, init=0.0)])
def test_closed_gates_add_nothing(make_vlm, ask, operation):
    vlm = make_vlm(DeepStackL(num_stacks=4, start=0, operation=operation))
    found = measure(vlm, ask(vlm, [[(2, 2)]]))
    assert [(norm.relative, norm.added, norm.cosine, norm.filled) for norm in found] == [(0, 0, 0, 1)] * 4
    assert all(norm.stream > 0 for norm in found)


def test_positions_that_no_crop_fills_are_not_in_the_mean(make_vlm, ask):
    vlm = make_vlm("DeepStackL")
    alone, both = measure(vlm, ask(vlm, [[(1, 2)]])), measure(vlm, ask(vlm, [[(1, 2), (0, 0)]]))
    assert [norm.filled for norm in alone] == [1, 1, 0, 0]
    assert [norm.filled for norm in both] == [0.5, 0.5, 0, 0]
    assert [norm.relative for norm in alone[2:]] == [0, 0]
    torch.testing.assert_close(alone[0].added, both[0].added)


@pytest.mark.parametrize("name", ["DeepStackL", "both sides"])
def test_questions_that_only_pad_a_batch_do_not_count(make_vlm, ask, name):
    vlm = make_vlm(name)
    batch = ask(vlm, [[(2, 2)], [(1, 2), (2, 2)], [(2, 1)]])
    padded = ask(vlm, [[(2, 2)], [(1, 2), (2, 2)], [(2, 1)]], valid=[True, True, False])
    without = ask(vlm, [[(2, 2)], [(1, 2), (2, 2)]])  # the same pictures: their seed is the same
    everything, found, expected = measure(vlm, batch), measure(vlm, padded), measure(vlm, without)
    inside = [norm for norm in found if norm.group.part == "vision_encoder"]
    for ours, theirs in zip(inside or found, expected, strict=False):
        torch.testing.assert_close(ours.filled, theirs.filled)
        if inside:  # in the language model the rows' texts differ
            torch.testing.assert_close(ours.added, theirs.added)
            torch.testing.assert_close(ours.stream, theirs.stream, rtol=1e-4, atol=1e-5)
    assert [norm.filled for norm in everything] != [norm.filled for norm in found]


def test_every_view_in_the_sequence_counts_for_its_own_question(make_vlm, ask):
    """Three views of the first image, five of the second, which only pads."""
    vlm = make_vlm(DeepStack(encoder_stacks=[Stack([1, 2, 3, 3], "fine")], sequence="tiles"))
    padded = measure(vlm, ask(vlm, [[(1, 2)], [(2, 2)]], valid=[True, False]))
    alone = measure(vlm, ask(vlm, [[(1, 2)]]))
    for ours, theirs in zip(padded, alone, strict=True):
        torch.testing.assert_close(ours.added, theirs.added)
        torch.testing.assert_close(ours.relative, theirs.relative)


def test_stacks_of_both_sides_are_measured_each_in_its_own_stream(make_vlm, ask):
    vlm = make_vlm(DeepStack([Stack([0, 1, 2, 3])], [Stack([1, 2, 3, 3])]))
    batch = ask(vlm, [[(2, 2)]])
    found = measure(vlm, batch)
    assert [norm.filled for norm in found] == [1] * 8
    with torch.no_grad():
        visual = vlm.see(batch.views)  # in front of layer 0 the stream is the base tokens, and what is added stack 5
    torch.testing.assert_close(found[4].stream, float(visual.base.norm(dim=-1).mean()))
    torch.testing.assert_close(found[4].added, float(visual.stacks[0].norm(dim=-1).mean()))


def test_two_stacks_at_one_site_are_told_apart(make_vlm, ask):
    twice = DeepStack([Stack([1], "base", "identity"), Stack([1], "crops", "pool")])
    vlm = make_vlm(twice)
    first, second = measure(vlm, ask(vlm, [[(2, 2)]]))
    assert (first.group.layer, second.group.layer) == (1, 1)
    assert first.added != second.added
    assert first.stream != second.stream


@pytest.mark.parametrize("name", ["LowResolution", "CrossAttention", "SequenceConcat with newlines"])
def test_a_model_without_stacks_has_no_norms(make_vlm, ask, name):
    vlm = make_vlm(name)
    assert measure(vlm, ask(vlm, [[(2, 2)]])) == []


@pytest.mark.parametrize("name", ["gated by the decoder", "DeepStackV", "both sides"])
def test_a_batch_of_text_counts_nothing(make_vlm, ask, name):
    """Nor does the blank view that stands for its images."""
    vlm = make_vlm(name)
    text, picture = ask(vlm, [[], []]), ask(vlm, [[(2, 2)]])
    assert {(norm.relative, norm.filled) for norm in measure(vlm, text)} == {(0, 0)}
    assert measure(vlm, text, picture) == measure(vlm, picture)


@pytest.mark.parametrize("options", [{"prefill_chunk_size": 3}, {"num_beams": 2}, {"use_cache": False}])
def test_norms_of_a_generation_are_those_of_its_prompt_however_it_is_computed(make_vlm, ask, options):
    """In chunks each slot is added once; beams, and passes that recompute the prompt, add the same ones again."""
    vlm = make_vlm("gated by the decoder")
    batch = ask(vlm, [[(2, 2)], [(2, 2)]])
    norms = Norms(Groups(vlm))
    layout = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)
    with intervene(norms.watch(batch, layout, 16)), torch.no_grad():
        vlm.generate(batch, max_new_tokens=2, pad_token_id=0, **options)
    for got, expected in zip(norms.compute(), measure(vlm, batch), strict=True):
        assert got.group == expected.group
        assert astuple(got)[1:] == pytest.approx(astuple(expected)[1:], rel=1e-4, abs=1e-5)
