"""A stack left out is a model without it; exchanged stacks are those of a batch whose groups are exchanged."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from dslight.components import ConditionedGate, DeepStack, DeepStackL, GatedAdd, MLPProjector, Stack
from dslight.diagnostics.groups import Groups, derangement
from dslight.nn.intervention import intervene
from dslight.types import VisualTokens

SOURCES = [Stack([1], "base", "identity"), Stack([2], "crops", "pool"), Stack([2], "base", "identity")]


def logits(vlm, batch, act=None):
    with torch.no_grad():
        if act is None:
            return vlm(batch)
        with intervene(act):
            return vlm(batch)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_stack_left_out_is_a_scheduler_that_lacks_it(make_vlm, ask, number):
    vlm = make_vlm(DeepStack(SOURCES), MLPProjector)  # one projector for all levels, so a level may go
    without = make_vlm(DeepStack([stack for i, stack in enumerate(SOURCES, 1) if i != number]), MLPProjector)
    without.load_state_dict(vlm.state_dict())
    batch = ask(vlm, [[(2, 2)], [(1, 2)]])
    ours = logits(vlm, batch, Groups(vlm).without({number}))
    torch.testing.assert_close(ours, logits(without, batch))
    assert (ours - logits(vlm, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("operation", [partial(GatedAdd, init=0.5), partial(ConditionedGate, init=0.5)])
def test_gates_stay_with_the_stacks_that_are_left(make_vlm, ask, operation):
    vlm = make_vlm(DeepStack(SOURCES, operation=operation), MLPProjector)
    with torch.no_grad():
        for parameter in vlm.stacking.operation.parameters():
            parameter.normal_()
    without = make_vlm(DeepStack(SOURCES[1:], operation=operation), MLPProjector)
    state = vlm.state_dict()
    without.load_state_dict({k: v[1:] if "operation" in k else v for k, v in state.items()})
    batch = ask(vlm, [[(2, 2)]])
    torch.testing.assert_close(logits(vlm, batch, Groups(vlm).without({1})), logits(without, batch))


@pytest.mark.parametrize("name", ["DeepStackL", "DeepStackV", "both sides", "gated by the decoder"])
def test_with_no_stack_a_model_is_the_low_resolution_one(make_vlm, ask, name):
    vlm = make_vlm(name, MLPProjector)
    low = make_vlm("LowResolution", MLPProjector)
    low.load_state_dict({k: v for k, v in vlm.state_dict().items() if "operation" not in k})
    batch = ask(vlm, [[(2, 2)], [(2, 2)]])
    groups = Groups(vlm)
    ours = logits(vlm, batch, groups.without({group.number for group in groups}))
    torch.testing.assert_close(ours, logits(low, batch), rtol=1e-4, atol=1e-5)


def test_a_stack_left_out_of_the_encoder_is_an_encoder_without_it(make_vlm, ask):
    vlm = make_vlm(DeepStack(encoder_stacks=[Stack([1], "crops", "pool"), Stack([2], "crops", "pool", tap=1)]))
    without = make_vlm(DeepStack(encoder_stacks=[Stack([2], "crops", "pool", tap=1)]))
    without.load_state_dict(vlm.state_dict())
    batch = ask(vlm, [[(2, 2)]])
    ours = logits(vlm, batch, Groups(vlm).without({1}))
    torch.testing.assert_close(ours, logits(without, batch))
    assert (ours - logits(vlm, batch)).abs().max() > 1e-3


def test_stacks_of_both_sides_are_told_apart(make_vlm, ask):
    """Number 1 goes into the encoder, number 2 into the language model."""
    into_lm, inside = Stack([2], "base", "identity"), Stack([1], "crops", "pool")
    vlm = make_vlm(DeepStack([into_lm], [inside]), MLPProjector)
    batch, groups = ask(vlm, [[(2, 2)]]), Groups(vlm)
    for number, scheduler in [(1, DeepStack([into_lm])), (2, DeepStack(encoder_stacks=[inside]))]:
        without = make_vlm(scheduler, MLPProjector)
        without.load_state_dict(vlm.state_dict())
        torch.testing.assert_close(logits(vlm, batch, groups.without({number})), logits(without, batch))


def test_numbers_are_those_of_the_plan(make_vlm):
    vlm = make_vlm("both sides")
    planned = [(part, layer, text) for part, layer, text in vlm.stacking.placements if text.startswith("+ stack")]
    ours = [(group.part, group.layer, f"+ stack {group.number} ({group.what})") for group in Groups(vlm)]
    assert sorted(ours) == sorted(planned)


def test_permuted_stacks_are_added_at_each_others_sites(make_vlm, ask):
    vlm = make_vlm("DeepStackL")
    batch = ask(vlm, [[(2, 2)], [(2, 2)]])
    order = derangement(4, seed=3)
    with torch.no_grad():
        visual = vlm.see(batch.views)
        slots = torch.stack([visual.base, *(visual.stacks[i] for i in order)])
        by_hand = vlm.language_model(
            batch.input_ids, batch.attention_mask, batch.visual_mask, VisualTokens(slots, visual.sites)
        )
    torch.testing.assert_close(logits(vlm, batch, Groups(vlm).permuted(3)), by_hand)
    assert (by_hand - logits(vlm, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("count", range(6))
def test_a_derangement_leaves_nothing_in_its_place(count):
    orders = {tuple(derangement(count, seed)) for seed in range(40)}
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert count < 2 or all(i != to for order in orders for i, to in enumerate(order))
    assert len(orders) == {0: 1, 1: 1, 2: 1, 3: 2}.get(count, len(orders))
    assert derangement(count, 7) == derangement(count, 7)


@pytest.mark.parametrize("name", ["DeepStackL", "DeepStackV", "both sides", "DeepStackTaps", "DeepStackHD"])
def test_the_stacks_of_another_image_are_those_of_its_own_pass(make_vlm, ask, name):
    """With its own base view and the crops of the other, where stacks are made of crops alone."""
    vlm = make_vlm(name)
    batch, other = ask(vlm, [[(2, 2)], [(2, 2)]]), ask(vlm, [[(2, 2)], [(2, 2)]], seed=1)
    groups = Groups(vlm)
    with groups.recorded() as theirs:
        logits_of_other = vlm(other)
    ours = logits(vlm, batch, groups.replaced(theirs))
    if name in ("DeepStackL", "DeepStackV"):
        mixed = replace(batch.views, pixels=batch.views.pixels.clone())
        mixed.pixels[mixed.crop_index] = other.views.pixels[mixed.crop_index]
        torch.testing.assert_close(ours, logits(vlm, replace(batch, views=mixed)), rtol=1e-4, atol=1e-5)
    assert (ours - logits(vlm, batch)).abs().max() > 1e-3
    itself = replace(other, views=batch.views)
    with groups.recorded() as own, torch.no_grad():
        vlm(itself)
    torch.testing.assert_close(logits(vlm, batch, groups.replaced(own)), logits(vlm, batch))
    assert logits_of_other.requires_grad


def test_stacks_of_another_shape_are_refused(make_vlm, ask):
    vlm = make_vlm("DeepStackL")
    groups = Groups(vlm)
    with groups.recorded() as theirs, torch.no_grad():
        vlm(ask(vlm, [[(2, 2)]]))
    with pytest.raises(ValueError, match="cannot stand for"):
        logits(vlm, ask(vlm, [[(2, 2)], [(2, 2)]]), groups.replaced(theirs))


def test_stacks_that_are_zero_make_no_difference(make_vlm, ask):
    vlm = make_vlm(DeepStackL(num_stacks=4, start=0, operation=partial(GatedAdd, init=0.0)))
    batch, groups = ask(vlm, [[(2, 2)]]), Groups(vlm)
    whole = logits(vlm, batch)
    for act in (*(groups.without({n}) for n in range(1, 5)), groups.without({1, 2, 3, 4}), groups.permuted(0)):
        assert torch.equal(logits(vlm, batch, act), whole)


def test_outside_of_the_block_and_in_other_threads_nothing_is_changed(make_vlm, ask):
    from threading import Thread

    vlm = make_vlm("DeepStackL")
    batch, groups = ask(vlm, [[(2, 2)]]), Groups(vlm)
    whole, seen = logits(vlm, batch), []
    thread = Thread(target=lambda: seen.append(logits(vlm, batch)))

    def broken():
        with intervene(groups.without({1})):
            thread.start()
            thread.join()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert torch.equal(seen[0], whole)
    assert torch.equal(logits(vlm, batch), whole)
