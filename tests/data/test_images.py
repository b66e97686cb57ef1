"""Views and grids against the authors' preprocessing, and the properties that the model relies on."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from dslight.data.images import AspectGridViews, GridViews, SingleView

ROOT = Path(os.environ.get("DSLIGHT_GOLDENS", Path(__file__).parents[1] / "golden" / "deepstack_vl"))
PAGE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)


@pytest.mark.golden_model
def test_the_grid_is_the_one_that_the_authors_code_chooses():
    tables = json.loads((ROOT / "grid_selection" / "config.json").read_text())["tables"]
    assert sum(len(table["best"]) for table in tables) > 600
    for table in tables:
        policy = AspectGridViews(table["num_crops"])
        assert policy.grids() == [(grid["rows"], grid["columns"]) for grid in table["candidates"]]
        for width, height, columns, rows in table["best"]:
            assert policy.choose((height, width), (336, 336)) == (rows, columns), (width, height)


@pytest.mark.golden_model
@pytest.mark.parametrize(
    ("case", "policy"),
    [("preprocess_deepstack_c14", AspectGridViews(4)), ("preprocess_deepstack_2xsample", GridViews(2, 2))],
)
def test_views_are_the_authors_pixels(case, policy):
    config = json.loads((ROOT / case / "config.json").read_text())
    images, expected = load_file(ROOT / "images.safetensors"), load_file(ROOT / case / "outputs.safetensors")
    if int(PIL.__version__.split(".")[0]) >= 13:  # Pillow 13 resizes some shapes to other pixels
        expected |= load_file(ROOT / case / "outputs_pillow13.safetensors")
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("image_mean", "image_std"))
    assert len(config["grids"]) == 8
    for grid in config["grids"]:
        pixels, chosen = policy(images[f"image.{grid['image']}"].numpy(), (config["crop_size"],) * 2)
        assert chosen == (grid["rows"], grid["columns"])
        torch.testing.assert_close(
            (pixels / 255 - mean) / std, expected[f"pixel_values.{grid['image']}"], atol=1e-6, rtol=0
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


def test_pillow_images_and_arrays_give_the_same_views():
    policy = AspectGridViews(4)
    assert (policy(PAGE, (8, 8))[0] == policy(Image.fromarray(PAGE), (8, 8))[0]).all()


def test_policies_travel_to_workers():
    policy = pickle.loads(pickle.dumps(AspectGridViews(6, resample="box", crops_from="base")))
    assert (policy.max_crops, policy.resample, policy.crops_from) == (6, "box", "base")


@pytest.mark.parametrize("make", [lambda: GridViews(0, 2), lambda: AspectGridViews(1)])
def test_a_policy_without_crops_is_refused(make):
    with pytest.raises(ValueError, match=r"data\.views"):
        make()
