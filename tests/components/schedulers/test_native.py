"""Stackings of images that have a size each: every token is traced to the place that it shows.

The encoder of these tests gives for each patch where it is: (which of the views it was given, row, column, how many
columns the view has).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dslight.components import (
    ChannelConcat,
    CrossAttention,
    DeepStack,
    DeepStackHD,
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    IdentityProjector,
    LowResolution,
    PerceiverResamplerProjector,
    PixelShuffleMLPProjector,
    SequenceConcat,
    Stack,
    VisionEncoder,
)
from dslight.components.schedulers.deepstack import DeepStack as Engine
from dslight.data.images import SingleView
from dslight.data.native import NativeViews
from dslight.nn.sampling import mosaic, sample, sample_pieces
from dslight.types import Grid, Views

BASES: list[Grid] = [(2, 3), (1, 1), (3, 2)]
SIDE = 2


class Where(VisionEncoder):
    """Its features are places; 2 x 2 patches make a piece."""

    native = True
    width, grid, image_size, mean, std = 4, (SIDE, SIDE), (4, 4), (0.5,) * 3, (0.5,) * 3

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Identity() for _ in range(3))
        self.added: Tensor | None = None

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        raise NotImplementedError

    def read(self, pixels: Tensor, taps: Any, stacks: Any, sites: Any, pieces: Any = None) -> list[Tensor | None]:
        self.added = stacks
        found = []
        for number, (rows, cols) in enumerate(pieces):
            y, x = torch.meshgrid(torch.arange(rows * SIDE), torch.arange(cols * SIDE), indexing="ij")
            view = torch.stack([torch.full_like(y, number), y, x, torch.full_like(y, cols * SIDE)], -1).float()
            split = view.view(rows, SIDE, cols, SIDE, 4).transpose(1, 2)
            found.append(split.reshape(rows * cols, SIDE * SIDE, 4))
        return [torch.cat(found)] * len(taps)


def views(up: int = 0, bases: Sequence[Grid] = BASES) -> Views:
    count = sum(rows * cols * (1 + up * up) for rows, cols in bases)
    return Views(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), [(up, up)] * len(bases), pieces=list(bases))


def slots(stacking: Engine, seen: Views, levels: int) -> Tensor:
    """Through a projector that changes nothing, [levels, N, 4]."""
    maps = stacking(Where(), seen)
    assert len(maps) == levels
    return stacking.lay_out(IdentityProjector([4] * levels, 4)(maps), seen).slots


def rows_of(view: int, base: Grid) -> Tensor:
    """The places of a whole view, row by row."""
    rows, cols = base[0] * SIDE, base[1] * SIDE
    return torch.tensor([[view, y, x, cols] for y in range(rows) for x in range(cols)]).float()


def test_base_tokens_of_each_image_are_read_row_by_row():
    expected = torch.cat([rows_of(i, base) for i, base in enumerate(BASES)])
    assert torch.equal(slots(LowResolution(), views(), 1)[0], expected)
    assert torch.equal(slots(DeepStackTaps([0, 1]), views(), 3), expected.expand(3, -1, -1))


def test_a_stack_of_the_enlarged_view_shows_the_place_of_the_base_token():
    """2d: group (i, j) holds the places (2 y + i, 2 x + j)."""
    found = slots(DeepStackL(crops=4), views(2), 5)
    at = 0
    for number, (rows, cols) in enumerate(BASES):
        base = rows_of(number, (rows, cols))
        assert torch.equal(found[0, at : at + len(base)], base)
        for group in range(4):
            expected = base.clone()
            expected[:, 0] = len(BASES) + number
            expected[:, 1] = 2 * base[:, 1] + group // 2
            expected[:, 2] = 2 * base[:, 2] + group % 2
            expected[:, 3] = 2 * cols * SIDE
            assert torch.equal(found[1 + group, at : at + len(base)], expected)
        at += len(base)
    assert at == found.shape[1]


@pytest.mark.parametrize("sampler", ["2d", "1d", "block", "pool", "patch_merge"])
def test_samplers_of_unequal_views_are_those_of_each_view_alone(sampler):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(sum(4 * r * c for r, c in BASES), SIDE, SIDE, 5, generator=generator)
    count = 1 if sampler in ("pool", "patch_merge") else 4
    found = sample_pieces(tokens, BASES, [(2, 2)] * 3, count, sampler)
    start, at = 0, 0
    for rows, cols in BASES:
        own = tokens[start : start + 4 * rows * cols]
        groups = sample(mosaic(own, (2 * rows, 2 * cols)), (2, 2), sampler)
        mine = found[:, at : at + rows * cols]
        whole = torch.stack([mosaic(group, (rows, cols)) for group in mine])
        torch.testing.assert_close(whole, groups)
        start, at = start + 4 * rows * cols, at + rows * cols


def test_images_without_an_enlarged_view_and_stacks_without_a_group_are_zero():
    seen = Views(torch.zeros(6 + 5, 3, 4, 4, dtype=torch.uint8), [(0, 0), (2, 2)], pieces=[(2, 3), (1, 1)])
    found = slots(DeepStackL(sites=[0, 1, 2, 3, 4]), seen, 6)
    assert not found[1:, :24].any()
    assert found[1:5, 24:].any((1, 2)).all()
    assert not found[5].any()


def test_deepstack_v_adds_the_enlarged_view_at_its_place_inside_the_encoder():
    encoder = Where()
    (level,) = DeepStackV(crops=4, start=1)(encoder, views(2))
    assert encoder.added is not None
    assert encoder.added.shape == (4, sum(r * c for r, c in BASES), SIDE * SIDE, 4)
    base = level.flatten(1, 2)
    for group in range(4):
        added = encoder.added[group]
        assert torch.equal(added[..., 1], 2 * base[..., 1] + group // 2)
        assert torch.equal(added[..., 2], 2 * base[..., 2] + group % 2)


def test_corners_of_a_view_lie_two_patches_apart():
    corner = DeepStack([Stack([0, 1, 2, 3], view="base", sampler="corner")], base="zero")
    maps = corner(Where(), views())
    found = corner.lay_out(IdentityProjector([4] * 4, 4)(maps), views()).slots
    at = 0
    for number, (rows, cols) in enumerate(BASES):
        for group in range(4):
            places = [
                [number, 2 * y + group // 2, 2 * x + group % 2, cols * SIDE] for y in range(rows) for x in range(cols)
            ]
            assert found[1 + group, at : at + rows * cols].tolist() == places
        at += rows * cols
    assert not found[0].any()


def test_the_enlarged_view_in_the_sequence_is_read_row_by_row_with_newlines_at_its_ends():
    seen = views(2, [(1, 2), (2, 1)])
    plain = slots(SequenceConcat(), seen, 1)[0]
    expected = [rows_of(0, (1, 2)), rows_of(1, (2, 4)), rows_of(2, (2, 1)), rows_of(3, (4, 2))]
    assert torch.equal(plain, torch.cat(expected))
    lined = SequenceConcat(newline=True)
    lined.newline = nn.Parameter(torch.full((4,), -1.0))
    found = slots(lined, seen, 1)[0]
    for number, cols in ((1, 8), (3, 4)):
        rows = expected[number].view(-1, cols, 4)
        expected[number] = torch.cat([rows, -torch.ones(len(rows), 1, 4)], 1).flatten(0, 1)
    assert torch.equal(found, torch.cat(expected))


def test_channels_of_base_and_enlarged_view_stand_side_by_side():
    stacking = ChannelConcat(num_crops=4)
    (level,) = stacking(Where(), views(2))
    found = stacking.lay_out(level[None], views(2)).slots[0]
    separate = slots(DeepStackL(crops=4), views(2), 5)
    assert torch.equal(found, torch.cat(list(separate), -1))


@pytest.mark.parametrize("stacking", [LowResolution(), DeepStackL(crops=4), SequenceConcat(newline=True)])
def test_an_image_takes_as_many_slots_as_its_layout_says(stacking):
    projector = IdentityProjector([4], 4)
    layout = stacking.slot_layout(Where(), projector)
    seen = views(2)
    stacking.connect(4)
    found = slots(stacking, seen, len(stacking.widths(Where())))
    assert layout.native
    assert sum(layout((2, 2), None, base) for base in BASES) == found.shape[1]
    assert [layout.grid(base) for base in BASES] == [(4, 6), (2, 2), (6, 4)]


@pytest.mark.parametrize("factor", [1, 2])
def test_a_merged_piece_keeps_its_place(factor):
    """Qwen's merger: a token of the output is the mean place of its 2 x 2 patches."""
    stacking = DeepStackL(crops=4)
    projector = PixelShuffleMLPProjector([4] * 5, 4, factor=factor, layers=1)
    with torch.no_grad():
        linear = projector.net.mlp[0]
        linear.weight.copy_(torch.eye(4).repeat(1, factor**2) / factor**2)
        linear.bias.zero_()
    seen = views(2)
    found = stacking.lay_out(projector(stacking(Where(), seen)), seen).slots
    at = 0
    for rows, cols in BASES:
        shape = (rows * SIDE // factor, cols * SIDE // factor)
        own = found[:, at : at + shape[0] * shape[1]].view(5, *shape, 4)
        middle = (factor - 1) / 2
        assert torch.allclose(own[0, :, 0, 1], torch.arange(shape[0]) * factor + middle)
        assert torch.allclose(own[0, 0, :, 2], torch.arange(shape[1]) * factor + middle)
        assert torch.allclose(own[1:, ..., 1:3].mean(0), 2 * own[0, ..., 1:3] + 0.5)
        at += shape[0] * shape[1]
    assert at == found.shape[1]


@pytest.mark.parametrize(
    ("stacking", "key"),
    [
        (LowResolution(position=0.1), "position: .*; write position"),
        (SequenceConcat(newline=True, unpad=True), "unpad"),
        (SequenceConcat(fill_to=4), "fill_to"),
        (SequenceConcat(sampler="2d"), "sampler"),
        (DeepStackHD(), "up"),
        (CrossAttention(), "source"),
        (DeepStack([Stack([0], view="base", sampler="corner", merge=4)], base="zero"), r"stacks\.0\.merge"),
    ],
)
def test_what_needs_views_of_one_size_is_refused_by_name(stacking, key):
    with pytest.raises(ValueError, match=f"^{key}: "):
        stacking.check(Where(), 8)


def test_a_projector_of_whole_maps_and_views_of_the_other_kind_are_refused(tiny_lm):
    from dslight.components import TimmEncoder
    from dslight.vlm import VLM

    lm = tiny_lm()
    resampler = partial(PerceiverResamplerProjector, grid=(2, 2), heads=2)
    with pytest.raises(ValueError, match=r"^projector: PerceiverResamplerProjector looks at whole maps"):
        VLM(Where(), resampler, LowResolution(), lm)
    model = VLM(Where(), PixelShuffleMLPProjector, LowResolution(), lm)
    with pytest.raises(ValueError, match=r"data\.views: SingleView gives views of one size.*NativeViews"):
        model.check_views(SingleView())
    small = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    fixed = VLM(TimmEncoder("vit_tiny_patch16_224", model_args=small), PixelShuffleMLPProjector, LowResolution(), lm)
    with pytest.raises(ValueError, match=r"data\.views: NativeViews gives each image a size of its own"):
        fixed.check_views(NativeViews())
    with pytest.raises(ValueError, match="takes views of one size"):
        fixed.see(views())
