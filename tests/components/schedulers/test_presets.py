"""The paper's names are points on the axes: the same levels and slots, and the few facts that are their own."""

import pytest
import torch

from dslight.components import (
    ChannelConcat,
    DeepStack,
    DeepStackHD,
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    GatedAdd,
    LowResolution,
    SequenceConcat,
    Stack,
)
from dslight.types import Views

FOUR = [1, 2, 3, 4]
GRIDS = [(2, 2), (1, 2), (0, 0), (3, 1)]
POINTS = {
    "LowResolution": (LowResolution(), DeepStack()),
    "LowResolution of taps": (LowResolution([1, -2], position=0.5), DeepStack(tap=[1, -2], position=0.5)),
    "DeepStackL": (DeepStackL(), DeepStack([Stack(FOUR)])),
    "DeepStackL arranged": (
        DeepStackL(5, 2, 3, "1d", tap=-2, position=0.5),
        DeepStack([Stack([2, 5, 8, 11, 14], sampler="1d")], tap=-2, position=0.5),
    ),
    "DeepStackL at sites": (DeepStackL(sites=[3, 0, 0, 2]), DeepStack([Stack([3, 0, 0, 2])])),
    "DeepStackL of the base": (DeepStackL(source="base"), DeepStack([Stack(FOUR, "base", "identity")])),
    "DeepStackV": (DeepStackV(start=0, tap=-2), DeepStack(encoder_stacks=[Stack([0, 1, 2, 3])], tap=-2)),
    "DeepStackHD": (DeepStackHD(), DeepStack([Stack(FOUR, "fine")], sequence="tiles", newline=True)),
    "DeepStackHD of nine": (
        DeepStackHD(3, 0, newline=False),
        DeepStack([Stack(list(range(9)), "fine")], sequence="tiles"),
    ),
    "DeepStackHD pooled": (
        DeepStackHD(3, sampler="pool"),
        DeepStack([Stack(list(range(1, 10)), "fine", "pool", merge=3)], sequence="tiles", newline=True),
    ),
    "DeepStackTaps": (
        DeepStackTaps([1, 3], tap=-2),
        DeepStack([Stack([1], "base", "identity", 1), Stack([2], "base", "identity", 3)], tap=-2),
    ),
    "DeepStackTaps alone": (
        DeepStackTaps([3, 1], sites=[4, 0], base="zero"),
        DeepStack([Stack([4], "base", "identity", 3), Stack([0], "base", "identity", 1)], base="zero"),
    ),
    "SequenceConcat": (SequenceConcat(), DeepStack(sequence="tiles")),
    "SequenceConcat, 2d": (
        SequenceConcat("2d", position=0.5, fill_to=4),
        DeepStack(sequence="tiles", order="2d", position=0.5, fill_to=4),
    ),
    "SequenceConcat without the base": (SequenceConcat(base=False), DeepStack(sequence="crops")),
    "SequenceConcat, LLaVA-NeXT": (
        SequenceConcat(tap=-2, newline=True, unpad=True),
        DeepStack(sequence="tiles", tap=-2, newline=True, unpad=True),
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_named_scheduler_is_a_point_on_the_axes(tiny_encoder, lay_out, name):
    ours, point = POINTS[name]
    encoder, tiles = tiny_encoder(), sum(1 + rows * cols for rows, cols in GRIDS)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (tiles * (1 + point.fine**2), 3, 16, 16), dtype=torch.uint8, generator=generator)
    views = Views(pixels, GRIDS, point.fine, [(20, 30)] * len(GRIDS))
    facts = ("sites", "encoder_sites", "num_stacks", "placements", "fine", "smallest_grid", "uses_crops")
    for fact in facts:
        assert getattr(ours, fact) == getattr(point, fact), fact
    assert ours.taps() == point.taps()
    assert ours.layout((4, 4)) == point.layout((4, 4))
    assert ours.passes((2, 2)) == point.passes((2, 2))
    expected = lay_out(point, encoder, views)
    visual = lay_out(ours, encoder, views)
    assert visual.sites == expected.sites
    assert torch.equal(visual.slots, expected.slots)
    assert visual.slots.abs().max() > 0.1


def test_operations_are_passed_on():
    for scheduler in (DeepStackL(operation=GatedAdd), DeepStackTaps([1, 2, 3], operation=GatedAdd)):
        scheduler.connect(8)
        assert isinstance(scheduler.operation, GatedAdd)
        assert scheduler.operation.stacks == len(scheduler.sites)


def test_the_dummy_control_repeats_the_base_tokens_and_looks_at_no_crop(tiny_encoder, make_views):
    encoder, views, ran = tiny_encoder(), make_views(GRIDS), []
    encoder.layers[0].register_forward_hook(lambda m, args, out: ran.append(len(out)))
    base, *stacks = DeepStackL(num_stacks=3, source="base")(encoder, views)
    assert ran == [len(GRIDS)]
    assert len(stacks) == 3
    assert all(torch.equal(stack, base) for stack in stacks)


@pytest.mark.parametrize(
    "scheduler", [DeepStackL(5), DeepStackV(start=0), SequenceConcat(), DeepStackL(2, sampler="pool")]
)
def test_a_batch_without_any_crop_is_the_baseline(tiny_encoder, make_views, lay_out, scheduler):
    encoder, views = tiny_encoder(), make_views([(0, 0), (0, 0)])
    slots = lay_out(scheduler, encoder, views).slots
    torch.testing.assert_close(scheduler(encoder, views)[0], LowResolution()(encoder, views)[0])
    assert not slots[1:].any()


# --- the rival of one wide token ------------------------------------------------------------------------------------


def test_channel_concat_lays_base_and_groups_side_by_side(tiny_encoder, make_views, lay_out):
    """Equation 7: one projector over the concatenation; a missing crop is zero there."""
    encoder, views = tiny_encoder(), make_views([(2, 2), (1, 2), (0, 0)])
    scheduler = ChannelConcat()
    (wide,) = scheduler(encoder, views)
    levels = DeepStack([Stack([0] * 4)])(encoder, views)
    torch.testing.assert_close(wide, torch.cat(levels, dim=-1))
    assert not wide[1, ..., 48:].any()
    assert not wide[2, ..., 16:].any()
    visual = lay_out(scheduler, encoder, views)
    assert (visual.slots.shape, visual.sites, scheduler.sites) == ((1, 48, 16), (), ())
    assert scheduler.widths(encoder) == [80]
    assert scheduler.placements == [("language_model", 0, "base and crop tokens side by side, in the sequence")]


@pytest.mark.parametrize(("sampler", "width"), [("2d", 5), ("1d", 5), ("block", 5), ("pool", 2), ("patch_merge", 5)])
def test_channel_concat_is_as_wide_as_its_groups(tiny_encoder, make_views, sampler, width):
    scheduler = ChannelConcat(sampler=sampler)
    (wide,) = scheduler(tiny_encoder(), make_views([(2, 2)]))
    assert scheduler.widths(tiny_encoder()) == [wide.shape[-1]] == [16 * width]


def test_channel_concat_of_another_tap_and_position(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(2, 2)])
    (wide,) = ChannelConcat(tap=2, position=0.5)(encoder, views)
    levels = DeepStack([Stack([0] * 4)], tap=2, position=0.5)(encoder, views)
    torch.testing.assert_close(wide, torch.cat(levels, dim=-1))
