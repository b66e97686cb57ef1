"""Views of native resolution against transformers' image processors: their grids, their pixels, their limits."""

from typing import Any

import numpy as np
import pytest
import torch

from dslight.data.native import AnySizeViews, NaFlexViews, NativeViews, PixtralViews
from dslight.data.sample import BadSample
from dslight.types import Grid, Views

SHAPES = [(20, 30), (37, 91), (100, 100), (7, 64), (130, 33), (61, 200), (5, 9)]
PICTURES = [np.random.default_rng(i).integers(0, 256, (*shape, 3), dtype=np.uint8) for i, shape in enumerate(SHAPES)]


def whole(pixels: torch.Tensor, pieces: Grid) -> torch.Tensor:
    """Pieces put together, uint8 [3, H, W]."""
    rows = pixels.unflatten(0, pieces).permute(2, 0, 3, 1, 4)
    return rows.flatten(3, 4).flatten(1, 2)


def their_pictures(found: Any, grids: list[Grid], patch: int, merge: int) -> list[torch.Tensor]:
    """What Qwen's processor makes of pictures that it only rescales, as uint8 [3, H, W]."""
    patches = (torch.as_tensor(found) * 255).round().to(torch.uint8).view(-1, 3, 2, patch, patch)[:, :, 0]
    made = []
    for (rows, cols), own in zip(grids, patches.split([rows * cols for rows, cols in grids]), strict=True):
        blocks = own.view(rows // merge, cols // merge, merge, merge, 3, patch, patch).permute(4, 0, 2, 5, 1, 3, 6)
        made.append(blocks.reshape(3, rows * patch, cols * patch))
    return made


@pytest.mark.parametrize(
    ("patch", "merge", "least", "most"), [(8, 2, 256, 4096), (14, 2, 3136, 10000), (4, 1, 16, 900)]
)
def test_grids_and_pixels_are_those_of_qwens_processor(patch, merge, least, most):
    """Also the images that it enlarges and those that it shrinks."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil(
        size={"shortest_edge": least, "longest_edge": most}, patch_size=patch, merge_size=merge, do_normalize=False
    )
    ours, side = NativeViews(least, most), (patch * merge, patch * merge)
    made = theirs(PICTURES)
    grids = [(int(rows), int(cols)) for _, rows, cols in made["image_grid_thw"]]
    expected = their_pictures(made["pixel_values"], grids, patch, merge)
    for image, grid, pixels in zip(PICTURES, grids, expected, strict=True):
        pieces = ours.pieces(image.shape[:2], side)
        assert (pieces[0] * merge, pieces[1] * merge) == grid
        views, crops = ours(image, side)
        assert crops == (0, 0)
        torch.testing.assert_close(whole(views, pieces), pixels, rtol=0, atol=0)
    assert len(set(grids)) > 3


@pytest.mark.parametrize("shape", [(80, 112), (112, 80), (48, 208), (79, 113), (81, 111)])
def test_a_side_half_way_between_two_numbers_of_pieces_takes_the_even_one_as_qwens_does(shape):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(*shape, factor=32, min_pixels=32 * 32, max_pixels=1024 * 1024)
    assert NativeViews(32 * 32, 1024 * 1024).pieces(shape, (32, 32)) == (height // 32, width // 32)


@pytest.mark.parametrize("most", [16, 60, 256])
def test_grids_and_pixels_are_those_of_siglip_2s_processor(most):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    theirs = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=most, do_normalize=False)
    ours = NaFlexViews(max_pieces=most)
    made = theirs(PICTURES, return_tensors="np")
    for i, image in enumerate(PICTURES):
        pieces = ours.pieces(image.shape[:2], (4, 4))
        assert pieces == tuple(made["spatial_shapes"][i])
        views, _ = ours(image, (4, 4))
        patches = np.round(made["pixel_values"][i][: len(views)] * 255).astype(np.uint8).reshape(-1, 4, 4, 3)
        assert (views.permute(0, 2, 3, 1).numpy() == patches).all()


@pytest.mark.parametrize("edge", [48, 1024])
def test_grids_and_pixels_are_those_of_pixtrals_processor(edge):
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    theirs = PixtralImageProcessorPil(size={"longest_edge": edge}, patch_size=8, do_normalize=False)
    ours = PixtralViews(longest_edge=edge)
    for image in PICTURES:
        made = theirs([image], return_tensors="np")
        height, width = made["image_sizes"][0]
        pieces = ours.pieces(image.shape[:2], (8, 8))
        assert (pieces[0] * 8, pieces[1] * 8) == (height, width)
        pixels = np.round(made["pixel_values"][0] * 255).astype(np.uint8)
        assert (whole(ours(image, (8, 8))[0], pieces).numpy() == pixels).all()


def test_pixels_of_the_fast_way_are_those_of_pillow_but_for_2_levels():
    for image in PICTURES:
        slow, fast = (NativeViews(256, 4096, up=2)(image, (16, 16), way)[0].int() for way in ("pillow", "fast"))
        assert (slow - fast).abs().max() <= 2


def test_the_enlarged_view_has_up_times_as_many_pieces_each_way_and_shows_the_same_area():
    policy = NativeViews(256, 4096, up=2)
    assert policy.grids() == [(2, 2)]
    for image in PICTURES:
        size = image.shape[:2]
        pixels, grid = policy(image, (16, 16), "pillow")
        pieces = policy.pieces(size, (16, 16))
        views = Views(pixels, [grid], sizes=[size], pieces=[pieces])
        enlarged = whole(views.crops(), views.crop_pieces[0]).float()
        assert enlarged.shape[1:] == (pieces[0] * 32, pieces[1] * 32)
        coarse = torch.nn.functional.avg_pool2d(enlarged, 2)
        other = whole(views.base(), pieces).float()
        assert torch.corrcoef(torch.stack([coarse.flatten(), other.flatten()]))[0, 1] > 0.8


def test_a_view_from_the_base_holds_nothing_that_the_base_does_not():
    policy = NativeViews(256, 1024, up=2, crops_from="base")
    image = PICTURES[2]
    base = whole(NativeViews(256, 1024)(image, (16, 16))[0], policy.pieces((100, 100), (16, 16)))
    control = policy(base.permute(1, 2, 0).numpy(), (16, 16))[0]
    torch.testing.assert_close(policy(image, (16, 16))[0], control)


@pytest.mark.parametrize("policy", [NativeViews(), NaFlexViews(), PixtralViews()])
def test_an_image_that_is_all_length_is_refused(policy: AnySizeViews):
    with pytest.raises(BadSample, match=r"image of 3x700 pixels.*200 times"):
        policy.pieces((700, 3), (16, 16))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: NativeViews(min_pixels=0), "min_pixels: 0"),
        (lambda: NativeViews(min_pixels=5, max_pixels=4), "min_pixels: 5"),
        (lambda: NativeViews(up=-1), "up: -1"),
        (lambda: NaFlexViews(max_pieces=0), "max_pieces: 0"),
        (lambda: PixtralViews(longest_edge=0), "longest_edge: 0"),
    ],
)
def test_budgets_that_hold_no_image_are_refused(make, key):
    with pytest.raises(ValueError, match=rf"data\.views\.{key}"):
        make()
