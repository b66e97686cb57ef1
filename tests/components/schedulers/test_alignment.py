"""The contract of every scheduler: row t of each slot shows the same place of the same image as row t of slot 0.

One place of an image is painted, under an encoder without attention, and the rows that change are compared with the
rows whose tokens cover the place, found here by walking through the image. transformers says what ``unpad`` leaves out.
"""

import numpy as np
import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import unpad_image

from dslight.components import ChannelConcat, DeepStack, DeepStackHD, DeepStackL, DeepStackTaps, DeepStackV, Stack
from dslight.data.images import AspectGridViews, HDViews, ViewPolicy
from dslight.types import Views

FOUR = [0, 1, 2, 3]
MIXED = [(1, 2), (2, 2), (3, 1)]
SQUARE = [(2, 2), (2, 2)]
HD = [(1, 2), (0, 0), (2, 1)]
SIZES = [(10, 90), (30, 30), (90, 40)]

CASES = {
    "crops, 2d": (lambda: DeepStackL(sites=FOUR), MIXED),
    "crops, 2d, all at one layer": (lambda: DeepStackL(sites=[2, 2, 2, 2]), MIXED),
    "crops, patch_merge": (lambda: DeepStack([Stack([1], sampler="patch_merge")]), SQUARE),
    "crops, pool": (lambda: DeepStack([Stack([1], sampler="pool")]), MIXED),
    "crops, pool, at two layers": (lambda: DeepStack([Stack([1, 3], sampler="pool")]), MIXED),
    "crops at two taps": (lambda: DeepStack([Stack(FOUR, tap=1), Stack(FOUR, tap=-2)]), MIXED),
    "crops, several taps in the sequence": (lambda: DeepStack([Stack(FOUR)], tap=[1, 3, "final"]), MIXED),
    "crops alone": (lambda: DeepStack([Stack(FOUR)], base="zero"), MIXED),
    "base, identity": (lambda: DeepStackL(num_stacks=2, source="base"), MIXED),
    "base, taps": (lambda: DeepStackTaps([1, 2, -2]), MIXED),
    "base, taps alone": (lambda: DeepStackTaps([1, 2, -2], base="zero"), MIXED),
    "base taps and crops": (lambda: DeepStack([Stack([1], "base", "identity", 2), Stack(FOUR)]), MIXED),
    "corner": (lambda: DeepStack([Stack(FOUR, "base", "corner")], base="zero"), MIXED),
    "corner, two of four": (lambda: DeepStack([Stack([0, 1], "base", "corner")], base="zero"), MIXED),
    "fine, 2d": (lambda: DeepStack([Stack(FOUR, "fine")], sequence="tiles"), HD),
    "fine, 3 x 3": (lambda: DeepStack([Stack([1] * 9, "fine")], sequence="tiles"), HD),
    "fine, patch_merge": (lambda: DeepStack([Stack([1], "fine", "patch_merge")], sequence="tiles"), HD),
    "fine, pool": (lambda: DeepStack([Stack([1], "fine", "pool", merge=3)], sequence="tiles"), HD),
    "fine, newline": (DeepStackHD, HD),
    "fine, newline, unpad": (lambda: DeepStackHD(unpad=True), HD),
    "fine, newline in the sequence only": (
        lambda: DeepStack([Stack(FOUR, "fine")], sequence="tiles", newline=True, newline_in_stacks=False),
        HD,
    ),
    "fine, fill_to": (lambda: DeepStack([Stack(FOUR, "fine")], sequence="tiles", fill_to=3), HD),
    "taps of tiles, newline, unpad": (
        lambda: DeepStack([Stack([1, 2], "base", "identity", 1)], sequence="tiles", newline=True, unpad=True),
        HD,
    ),
    "taps of crops in the sequence": (
        lambda: DeepStack([Stack([1], "base", "identity", 1)], sequence="crops"),
        [(1, 2), (3, 1)],
    ),
    "taps of crops in the order of groups": (
        lambda: DeepStack([Stack([1], "base", "identity", 1)], sequence="tiles", order="2d"),
        HD,
    ),
    "corner of tiles, newline": (
        lambda: DeepStack([Stack(FOUR, "base", "corner")], base="zero", sequence="tiles", newline=True),
        HD,
    ),
    "into the encoder": (lambda: DeepStackV(start=0), MIXED),
    "into the encoder, pool": (lambda: DeepStack(encoder_stacks=[Stack([2], sampler="pool")]), MIXED),
    "into both": (lambda: DeepStack([Stack(FOUR)], [Stack(FOUR)]), MIXED),
    "fine into the encoder": (lambda: DeepStack((), [Stack(FOUR, "fine")], sequence="tiles"), HD),
    "fine into both, newline": (
        lambda: DeepStack([Stack(FOUR, "fine")], [Stack(FOUR, "fine", tap=0)], sequence="tiles", newline=True),
        HD,
    ),
    "channels, 2d": (ChannelConcat, MIXED),
    "channels, patch_merge": (lambda: ChannelConcat(sampler="patch_merge"), SQUARE),
    "channels, pool": (lambda: ChannelConcat(sampler="pool"), MIXED),
}


def boxes(rows, cols):
    """The places of ``rows x cols`` cells, row by row: (top, bottom, left, right) in 0..1."""
    return [(y / rows, (y + 1) / rows, x / cols, (x + 1) / cols) for y in range(rows) for x in range(cols)]


def rows_of(scheduler, side, grid, size):
    """The place of every row of an image, ``None`` where it shows none."""
    places = [] if scheduler.sequence == "crops" else boxes(side, side)
    if scheduler.sequence == "base":
        return places
    mosaic = boxes(grid[0] * side, grid[1] * side)
    if scheduler.has_newline:
        if grid == (0, 0):
            return [*places, None]
        index = torch.arange(len(mosaic)).view(1, grid[0] * side, -1)
        index = unpad_image(index, size) if scheduler.unpad else index
        return places + [mosaic[i] if i >= 0 else None for row in index[0].tolist() for i in [*row, -1]]
    rows, cols = grid
    inside = [
        (y * rows + r, x * cols + c) if scheduler.order == "2d" else (r * side + y, c * side + x)
        for r in range(rows)
        for c in range(cols)
        for y in range(side)
        for x in range(side)
    ]
    crops = [mosaic[y * cols * side + x] for y, x in inside]
    lacking = max(scheduler.fill_to - grid[0] * grid[1], 0) * side * side
    return places + crops + [None] * lacking


def covers(box, place):
    return (
        box is not None
        and min(box[1], place[1]) - max(box[0], place[0]) > 1e-6
        and min(box[3], place[3]) - max(box[2], place[2]) > 1e-6
    )


@pytest.mark.parametrize("name", CASES)
def test_every_slot_of_a_row_shows_one_place(patch_encoder, painted, lay_out, name):
    make, grids = CASES[name]
    scheduler = make()
    side = 2 if "corner" in name else 4
    groups = sum(len(stack.sites) for stack in scheduler.stacks)
    finest = max(scheduler.fine, 1)
    before = lay_out(scheduler, patch_encoder, painted(grids, fine=scheduler.fine, sizes=SIZES)).slots
    layout = [rows_of(scheduler, side, grid, size) for grid, size in zip(grids, SIZES, strict=False)]
    starts = [sum(map(len, layout[:i])) for i in range(len(layout))]
    assert before.shape[1] == sum(map(len, layout))
    for image, (rows, cols) in enumerate(grids):
        places = boxes(4 * max(rows, 1) * finest, 4 * max(cols, 1) * finest)
        for place in places[:: 1 if len(places) < 40 else 7]:  # 7 divides no side, so every column has its turn
            views = painted(grids, image, place, scheduler.fine, SIZES)
            changed = (lay_out(scheduler, patch_encoder, views).slots - before).abs().amax(-1) > 1e-5
            expected = torch.zeros_like(changed[0])
            for row, box in enumerate(layout[image]):
                expected[starts[image] + row] = covers(box, place)
            if scheduler.base == "fill":
                assert torch.equal(changed[0], expected)
            if groups and len(changed) > 1:
                assert not (changed[1:] & ~expected).any()
                seen = torch.equal(changed[1:].any(0), expected)
                assert seen or name == "corner, two of four"


@pytest.mark.parametrize(
    ("policy", "scheduler"),
    [
        (AspectGridViews(resample="box"), DeepStackL()),
        (AspectGridViews(resample="box"), DeepStackL(sampler="pool")),
        (HDViews(resample="box"), DeepStackHD()),
        (HDViews(resample="box"), DeepStack([Stack([1], "fine", "patch_merge")], sequence="tiles")),
    ],
)
@pytest.mark.parametrize(("size", "grid"), [((192, 192), (2, 2)), ((96, 192), (1, 2)), ((384, 96), (4, 1))])
def test_the_views_that_the_data_makes_are_aligned(patch_encoder, lay_out, policy: ViewPolicy, scheduler, size, grid):
    """Pictures of which every view is an exact part, or an exact mean: there a place has sharp edges in all of them."""
    picture = np.full((*size, 3), 90, dtype=np.uint8)

    def slots():
        pixels, found = policy(picture, (48, 48))
        assert found == grid
        return lay_out(scheduler, patch_encoder, Views(pixels, [found], policy.fine, [size])).slots

    before, rows = slots(), rows_of(scheduler, 4, grid, size)
    places = boxes(8 * grid[0], 8 * grid[1])
    for top, bottom, left, right in places[::13]:
        at = slice(round(top * size[0]), round(bottom * size[0])), slice(round(left * size[1]), round(right * size[1]))
        picture[at] = 250
        changed = (slots() - before).abs().amax(-1) > 1e-5
        picture[at] = 90
        expected = torch.tensor([covers(box, (top, bottom, left, right)) for box in rows])
        assert torch.equal(changed[0], expected)
        assert torch.equal(changed[1:].any(0), expected)


@pytest.mark.parametrize("sampler", ["1d", "block"])
def test_the_two_other_samplers_keep_the_image_but_not_the_place(patch_encoder, painted, lay_out, sampler):
    scheduler = DeepStackL(sampler=sampler)
    before = lay_out(scheduler, patch_encoder, painted(MIXED)).slots
    place = boxes(4, 4)[1]
    changed = (lay_out(scheduler, patch_encoder, painted(MIXED, 1, place)).slots - before).abs().amax(-1) > 1e-5
    assert changed[0].nonzero().flatten().tolist() == [16 + 1]
    assert not changed[:, :16].any()
    assert not changed[:, 32:].any()
    assert changed[1:].any()
    assert changed[1:].any(0).nonzero().flatten().tolist() != [17]


def test_dilated_sampling_gives_each_cell_of_a_place_to_a_stack_of_its_own(patch_encoder, painted, lay_out):
    """Stack i * columns + j takes row i and column j of every cell."""
    scheduler, grid = DeepStackL(num_stacks=6), (2, 3)
    before = lay_out(scheduler, patch_encoder, painted([grid])).slots
    for cell, place in enumerate(boxes(8, 12)):
        y, x = divmod(cell, 12)
        changed = (lay_out(scheduler, patch_encoder, painted([grid], 0, place)).slots - before).abs().amax(-1) > 1e-5
        row = (y // 2) * 4 + x // 3
        assert changed.nonzero().tolist() == [[0, row], [1 + (y % 2) * 3 + x % 3, row]]
