"""The view policies: what each gives, what it refuses, and the properties that the model relies on.

Their pixels against other people's code are in ``test_images_golden`` and ``test_images_llava``.
"""

import pickle

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image

from dslight.data.images import AnyResViews, AspectGridViews, GridViews, HDViews, SingleView, ViewPolicy
from dslight.data.sample import BadSample
from dslight.types import Views

PAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)
POLICIES = [
    SingleView(),
    SingleView(fit="pad"),
    GridViews(2, 2),
    GridViews(1, 3, fit="pad"),
    AspectGridViews(4),
    AnyResViews(),
    AnyResViews([(1, 1), (2, 2)], fit="squash"),
    HDViews(4, 2),
    HDViews(2, 3),
]


def mosaic(tiles: torch.Tensor, rows: int, cols: int) -> np.ndarray:
    """Tiles in rows, put together to an image again."""
    return np.concatenate(
        [np.concatenate([*tiles[row * cols :][:cols].permute(0, 2, 3, 1).numpy()], 1) for row in range(rows)]
    )


def test_crops_tile_the_large_image_row_by_row_after_the_base_view():
    pixels, grid = GridViews(2, 3)(PAGE, (16, 16))
    assert grid == (2, 3)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (7, 3, 16, 16)
    for number, crop in enumerate(pixels[1:]):
        row, col = divmod(number, 3)
        part = PAGE[row * 16 : row * 16 + 16, col * 16 : col * 16 + 16]
        assert (crop.permute(1, 2, 0).numpy() == part).all()


def test_box_at_half_size_is_the_mean_of_four_pixels():
    base, grid = SingleView(resample="box")(PAGE[:, :32], (16, 16))
    means = PAGE[:, :32].reshape(16, 2, 16, 2, 3).mean((1, 3))
    assert grid == (0, 0)
    assert np.abs(base[0].permute(1, 2, 0).numpy() - means).max() <= 1  # Pillow rounds after each direction


def test_crops_from_the_base_hold_nothing_that_the_base_does_not():
    """Two pages with equal base views have equal crops, though the pages differ."""
    other = PAGE.reshape(16, 2, 24, 2, 3)[:, ::-1].reshape(PAGE.shape)  # swap inside each 2 x 2 cell
    control = GridViews(2, 2, resample="box", crops_from="base")
    first, second = (control(page, (16, 24))[0] for page in (PAGE, other))
    assert (first == second).all()
    assert first.shape == (5, 3, 16, 24)
    assert not (GridViews(2, 2, resample="box")(other, (16, 24))[0] == first).all()


def test_fine_crops_tile_the_enlarged_base_view_and_each_enlarged_crop():
    """At sizes that need no resampling, every tile of the enlarged image can be found in the page itself."""
    views = HDViews(2, up=2, resample="nearest")
    page = PAGE[:, :16]  # 32 x 16: two crops of 16 x 16 below each other
    pixels, grid = views(page, (8, 8))
    assert grid == (2, 1)
    packed = Views(pixels, [grid], views.fine)
    of_base, of_crops = packed.pixels[packed.fine_index].split([4, 8])
    whole = np.asarray(Image.fromarray(page).resize((16, 16), Image.Resampling.NEAREST))
    assert (mosaic(of_base, 2, 2) == whole).all()
    assert (mosaic(of_crops[:4], 2, 2) == page[:16]).all()
    assert (mosaic(of_crops[4:], 2, 2) == page[16:]).all()


def test_padding_keeps_the_shape_of_the_crops_image_and_squashes_the_base_view():
    red = np.full((8, 16, 3), (255, 0, 0), np.uint8)
    pixels, _ = GridViews(2, 2, fit="pad", pad_color=(0, 0, 9))(red, (8, 8))
    base, crops = pixels[0], mosaic(pixels[1:], 2, 2)
    assert (base == torch.tensor([255, 0, 0])[:, None, None]).all()
    assert (crops[4:12] == (255, 0, 0)).all()
    assert (crops[:4] == (0, 0, 9)).all()
    assert (crops[12:] == (0, 0, 9)).all()


def test_a_padded_single_view_has_the_proportions_of_the_encoder():
    """Padding left and right alone, for an encoder of 8 x 32 pixels."""
    red = np.full((8, 16, 3), (255, 0, 0), np.uint8)
    (view,), _ = SingleView(fit="pad", resample="nearest")(red, (8, 32))
    assert (view[0] == torch.tensor([0] * 8 + [255] * 16 + [0] * 8)).all()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{type(policy).__name__}-{policy.fit}")
@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (7, 5), (40, 90)])
def test_images_of_any_shape_give_the_views_that_a_batch_expects(policy, size):
    image = np.full((*size, 3), 200, np.uint8)
    pixels, grid = policy(image, (8, 12))
    assert grid in policy.grids()
    assert Views(pixels, [grid], policy.fine, [size]).pixels.shape[1:] == (3, 8, 12)
    assert pixels.dtype == torch.uint8
    assert (pixels[0] > 0).any()


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{type(policy).__name__}-{policy.fit}")
def test_pillow_images_and_arrays_give_the_same_views(policy):
    there, grid = policy(Image.fromarray(PAGE), (8, 8))
    here, same_grid = policy(PAGE, (8, 8))
    assert grid == same_grid
    assert (here == there).all()


def test_the_default_is_the_authors_number_of_views():
    assert len(AspectGridViews().grids()) == 7
    assert HDViews()(PAGE, (8, 8))[0].shape[0] == 25


def test_policies_travel_to_workers():
    for policy in [AspectGridViews(6, resample="box", crops_from="base"), HDViews(4, 3), AnyResViews([(1, 2)])]:
        other = pickle.loads(pickle.dumps(policy))
        assert vars(other) == vars(policy)
        assert other.fine == policy.fine


def test_a_thin_strip_that_padding_would_blow_up_is_a_bad_sample():
    strip = np.zeros((1, 20_000, 3), np.uint8)
    with pytest.raises(BadSample, match="20000x1 pixels is above the cap of 64000000 when padded"):
        SingleView(fit="pad")(strip, (8, 8))
    assert AnyResViews()(strip, (8, 8))[0].shape == (3, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridViews(0, 2), r"data\.views\.rows: 0; 1 or more"),
        (lambda: GridViews(2, -1), r"data\.views\.cols: -1; 1 or more"),
        (lambda: AspectGridViews(1), r"data\.views\.max_crops: 1; 2 or more"),
        (lambda: AnyResViews([]), r"data\.views\.grids: \[\]; one grid or more"),
        (lambda: AnyResViews([(2, 2), (0, 1)]), r"data\.views\.grids: \[\(2, 2\), \(0, 1\)\]; one grid or more"),
        (lambda: HDViews(4, 1), r"data\.views\.up: 1; 2 or more"),
        (lambda: SingleView(fit="pad", pad_color=(1, 2, 256)), r"data\.views\.pad_color: \[1, 2, 256\]; three numbers"),
        (lambda: GridViews(crops_from="base", fit="pad"), r"data\.views\.fit: pad with crops_from base"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_recipe_names_grids_and_colours_as_lists():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ViewPolicy, "views")

    def build(name: str, **arguments: object) -> ViewPolicy:
        views = {"class_path": f"dslight.data.images.{name}", "init_args": arguments}
        return parser.instantiate_classes(parser.parse_object({"views": views}))["views"]

    assert build("AnyResViews", grids=[[1, 2], [3, 1]]).grids() == [(1, 2), (3, 1)]
    assert build("AnyResViews").grids() == AnyResViews().grids()
    assert build("SingleView", fit="pad", pad_color=[122, 116, 104]).pad_color == (122, 116, 104)
    with pytest.raises(jsonargparse.ArgumentError, match="fit"):
        build("SingleView", fit="crop")
