"""Numbers of tokens find the patches that the tokens were made of: what was painted in a corner is found there."""

from functools import partial

import pytest
import torch
from torch import nn

from dslight.components import (
    AveragePoolProjector,
    DeepStack,
    DeepStackL,
    MLPProjector,
    PerceiverResamplerProjector,
    Stack,
)
from dslight.components.projector import Projector
from dslight.components.vision_encoder import VisionEncoder
from dslight.diagnostics.places import NoPlace, panels, to_patches
from dslight.nn.intervention import intervene
from dslight.types import Views

from .conftest import SCHEDULERS

GRIDS = {"DeepStackHD": [(1, 2), (2, 2)], "SequenceConcat with newlines": [(2, 1), (2, 2)], "merged": [(2, 2)]}
GRIDS |= {"stacks alone": [(1, 2), (2, 2)], "LowResolution": [(0, 0)], "CrossAttention": [(2, 2)]}
WIDTH = 8


class Brightness(VisionEncoder):
    """Gives the brightness of each patch, at every depth."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.grid, self.image_size = WIDTH, (4, 4), (16, 16)
        self.mean, self.std = (0.0,) * 3, (1.0,) * 3
        self.steps = nn.ModuleList(nn.Identity() for _ in range(4))
        self.one = nn.Parameter(torch.ones(()))

    @property
    def layers(self):
        return self.steps

    def encode(self, pixels, depth):
        hidden = nn.functional.avg_pool2d(pixels, 4).mean(1).flatten(1)[..., None].expand(-1, -1, WIDTH)
        for layer in self.steps[:depth]:
            hidden = layer(hidden)
        return hidden


class Sum(Projector):
    """The sum over the channels."""

    def forward(self, maps):
        return torch.stack([level.sum(-1, keepdim=True).expand(*level.shape[:3], self.out_width) for level in maps])


def tokens(stacking, encoder, projector, pixels, grids, fine):
    """What stands at each token, ``[S+1, N]`` and ``[S', M * P]``."""
    inside = []

    def act(injection):
        inside.append(injection.stacks[..., 0])
        return injection

    views = Views(pixels, grids, fine, [(16, 16)] * len(grids))
    with torch.no_grad(), intervene(act):
        visual = stacking.lay_out(projector(stacking(encoder, views)), views)
    return visual.slots[..., 0], inside[0] if inside else None


@pytest.mark.parametrize("name", sorted(set(SCHEDULERS) - {"gated", "gated by the decoder", "ChannelConcat"}))
def test_tokens_that_see_a_painted_patch_are_put_back_there(name):
    stacking, encoder = SCHEDULERS[name](), Brightness()
    stacking.connect(WIDTH)
    projector = Sum(stacking.widths(encoder), WIDTH)
    grids = GRIDS.get(name, [(1, 2), (2, 2)])
    count = sum(1 + rows * cols for rows, cols in grids) * (1 + stacking.fine**2)
    blank = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    before = tokens(stacking, encoder, projector, blank, grids, stacking.fine)
    views = Views(blank, grids, stacking.fine, [(16, 16)] * len(grids))
    found_somewhere = 0
    for view in range(count):
        for y, x in [(0, 0), (0, 3), (2, 1)]:
            painted = blank.clone()
            painted[view, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = 255
            after = tokens(stacking, encoder, projector, painted, grids, stacking.fine)
            sees = [None if b is None else ((b - a).abs() > 1e-4).float() for a, b in zip(before, after, strict=True)]
            if sees[1] is not None:  # what stands in the sequence has seen the stacks of the encoder, too
                sees[0] = sees[0] * 0 if view in views.crop_index else sees[0]
            patches = to_patches(stacking, encoder, projector, views, *sees)
            total = sees[0].sum() + (0 if sees[1] is None else sees[1].sum())
            torch.testing.assert_close(patches.sum(), total)
            there = patches[:, view, y, x].sum()
            if name == "merged":  # 2 x 2 patches are one token: it is spread over them
                first = view // 5 * 5 + 1
                assert there >= total / 4 - 1e-4
                assert patches[:, first : first + 4].sum() == (total if view % 5 else 0)
            else:
                torch.testing.assert_close(there, total)
            found_somewhere += int(total > 0)
    assert found_somewhere >= 3 * len(grids)


def test_projectors_that_merge_spread_a_token_over_what_it_was_made_of():
    stacking, encoder = DeepStackL(num_stacks=4, start=0), Brightness()
    projector = AveragePoolProjector(stacking.widths(encoder), WIDTH, factor=2)
    views = Views(torch.zeros(5, 3, 16, 16, dtype=torch.uint8), [(2, 2)])
    slots = torch.zeros(5, 4)
    slots[0, 1], slots[3, 2] = 1.0, 2.0
    patches = to_patches(stacking, encoder, projector, views, slots)
    assert torch.equal(patches[0, 0, :2, 2:], torch.full((2, 2), 0.25))
    assert patches[0].sum() == 1
    # stack 3 holds the lower left of each 2 x 2; its token 2 lies in the lower left quarter, which crop 2 shows
    assert patches[3, 3, 1::2, 0::2].sum() == 2
    assert patches[3].sum() == 2


def test_tokens_of_a_resampler_show_no_place():
    stacking, encoder = DeepStackL(num_stacks=4, start=0), Brightness()
    projector = PerceiverResamplerProjector(stacking.widths(encoder), WIDTH, grid=(4, 4), heads=2)
    views = Views(torch.zeros(5, 3, 16, 16, dtype=torch.uint8), [(2, 2)])
    with pytest.raises(NoPlace, match="PerceiverResamplerProjector"):
        to_patches(stacking, encoder, projector, views, torch.ones(5, 16))


def test_panels_lay_each_stack_over_the_views_that_it_was_made_of():
    encoder = Brightness()
    stacking = DeepStackL(num_stacks=4, start=0)
    projector = MLPProjector(stacking.widths(encoder), WIDTH)
    pixels = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 16, 16)
    views = Views(pixels, [(0, 0), (2, 2)])
    slots = torch.zeros(5, 32)
    slots[0, 16 + 5] = 1.0  # the second image's base token in row 1, column 1
    slots[2, 16 + 3] = 1.0  # of stack 2, the token in row 0, column 3: the crops' mosaic there in row 0, column 7
    drawn = panels(views, to_patches(stacking, encoder, projector, views, slots), image=1)
    assert [(panel.slot, panel.kind) for panel in drawn] == [
        (0, "base"), (1, "base"), (2, "crops"), (3, "base"), (4, "base")
    ]  # fmt: skip
    assert drawn[0].heat.nonzero().tolist() == [[1, 1]]
    assert drawn[2].heat.nonzero().tolist() == [[0, 7]]
    assert drawn[2].heat.shape == (8, 8)
    assert drawn[2].picture.shape == (3, 32, 32)
    corners = drawn[2].picture[0, ::31, ::31]
    assert corners.tolist() == [[2, 3], [4, 5]]
    assert drawn[0].picture.unique().tolist() == [1]


def test_fine_crops_are_laid_out_as_they_lie_in_the_image():
    stacking = SCHEDULERS["DeepStackHD"]()
    count = 3 * (1 + stacking.fine**2)
    views = Views(torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 16, 16), [(1, 2)], 2)
    patches = torch.zeros(5, count, 4, 4)
    patches[1, 3 + 4 + 4 + 1, 0, 3] = 1.0  # of the second crop, its upper right fine crop: the top right corner of all
    patches[1, 3 + 2, 3, 0] = 1.0  # of the base view, its lower left fine crop
    base, crops = [panel for panel in panels(views, patches) if panel.slot == 1]
    assert base.heat.nonzero().tolist() == [[7, 0]]
    assert crops.heat.shape == (8, 16)
    assert crops.heat.nonzero().tolist() == [[0, 15]]
    assert crops.picture[0, 0, ::16].tolist() == [7, 8, 11, 12]


def test_stacks_of_the_encoder_are_found_before_those_of_the_language_model(make_vlm, ask):
    vlm = make_vlm(DeepStack([Stack([2], "base", "identity")], [Stack([1, 2, 3, 3])]), partial(MLPProjector))
    views = ask(vlm, [[(2, 2)]]).views
    slots, inside = torch.zeros(2, 16), torch.zeros(4, 16)
    slots[1, 4], inside[0, 0] = 3.0, 5.0
    patches = to_patches(vlm.stacking, vlm.vision_encoder, vlm.projector, views, slots, inside)
    assert patches.shape == (6, 5, 4, 4)
    assert patches[5, 0, 1, 0] == 3  # the last: slot 0, the encoder's four, the language model's one
    assert patches[1, 1, 0, 0] == 5  # the first crop's first patch
    assert patches.sum() == 8


class OfAnySize(VisionEncoder):
    """Gives the brightness of each patch of pieces of 2 x 2 patches."""

    native = True
    width, grid, image_size, mean, std = 4, (2, 2), (8, 8), (0.0,) * 3, (1.0,) * 3
    layers = ()

    def encode(self, pixels, depth):
        raise NotImplementedError

    def read(self, pixels, taps, stacks, sites, pieces=None):
        bright = nn.functional.avg_pool2d(pixels.float(), 4).mean(1).flatten(1)[..., None].expand(-1, -1, 4)
        return [bright] * len(taps)


@pytest.mark.parametrize("projector", ["patches", "merged"])
def test_images_of_a_size_each_have_a_map_each_over_their_own_picture(projector):
    """A bright patch of the second image is where its tokens are bright: in the base view, and enlarged."""
    bases = [(1, 2), (3, 2)]
    pictures = [torch.zeros(3, rows * 8 * up, cols * 8 * up) for rows, cols in bases for up in (1, 2)]
    pictures[2][:, 16:20, 4:8] = 160  # the patch at row 4, column 1
    pictures[3][:, 32:36, 12:16] = 160  # of the four in its place, the upper right one
    pixels = torch.cat(
        [each.unflatten(2, (-1, 8)).unflatten(1, (-1, 8)).permute(1, 3, 0, 2, 4).flatten(0, 1) for each in pictures]
    ).to(torch.uint8)
    views = Views(pixels, [(2, 2), (2, 2)], sizes=[(8, 16), (24, 16)], pieces=bases)
    encoder, stacking = OfAnySize(), DeepStackL(crops=4)
    net = Sum([4] * 5, 4) if projector == "patches" else AveragePoolProjector([4] * 5, 4, layers=1)
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    found = stacking.lay_out(net(stacking(encoder, views)), views).slots.detach()
    heat = to_patches(stacking, encoder, net, views, (found - found.amin((1, 2), True)).abs().sum(-1))
    first, second = panels(views, heat, 0), panels(views, heat, 1)
    assert [panel.picture.shape[1:] for panel in (*first[:1], *second[:1])] == [(8, 16), (24, 16)]
    assert torch.equal(second[0].picture, pictures[2].to(torch.uint8))
    brightest = {(panel.slot, panel.kind): divmod(int(panel.heat.argmax()), panel.heat.shape[1]) for panel in second}
    side = 2 if projector == "merged" else 1
    row, column = brightest[0, "base"]
    assert (row // side, column // side) == (4 // side, 1 // side)
    if projector == "patches":
        assert brightest[2, "crops"] == (8, 3)
        crops = next(panel for panel in second if (panel.slot, panel.kind) == (2, "crops"))
        assert torch.equal(crops.picture, pictures[3].to(torch.uint8))
        assert crops.heat.shape == (12, 8)
