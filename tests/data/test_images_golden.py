"""Views against the pixels of the authors' code: every case of preprocessing or grid choice in the goldens' folder."""

import json
import math
import os
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from safetensors.torch import load_file

from dslight.data.images import AspectGridViews, GridViews, HDViews, ViewPolicy

ROOT = Path(os.environ.get("DSLIGHT_GOLDENS", Path(__file__).parents[1] / "golden" / "deepstack_vl"))
CONFIGS = {path.parent.name: json.loads(path.read_text()) for path in sorted(ROOT.glob("*/config.json"))}


def of_kind(kind: str) -> list[str]:
    return [case for case, config in CONFIGS.items() if config.get("kind") == kind]


def test_the_folder_holds_cases_of_preprocessing():
    assert of_kind("preprocessing")


def policy_of(config: dict[str, Any]) -> ViewPolicy:
    """The policy with a case's hyper-parameters."""
    crops, flags = config["num_crops"], set(config["ablation_flags"])
    assert config["image_aspect_ratio"] == "deepstack"
    assert flags <= {"2xsample", "inconsistent", "anyres_unpad"}
    fit = "pad" if flags & {"inconsistent", "anyres_unpad"} else "squash"
    if config["hd"]:
        assert not flags
        return HDViews(crops, up=math.isqrt(crops))
    if "2xsample" in flags:
        return GridViews(math.isqrt(crops), math.isqrt(crops), fit=fit)
    return AspectGridViews(crops, fit=fit)


@pytest.mark.golden_model
@pytest.mark.parametrize("case", of_kind("table"))
def test_the_grid_is_the_one_that_the_authors_code_chooses(case):
    config = CONFIGS[case]
    for table in config["tables"]:
        policy = AspectGridViews(table["num_crops"])
        assert policy.grids() == [(grid["rows"], grid["columns"]) for grid in table["candidates"]]
        assert table["best"]
        for width, height, columns, rows in table["best"]:
            chosen = policy.choose((height, width), (config["crop_size"],) * 2)
            assert chosen == (rows, columns), (width, height)


@pytest.mark.golden_model
@pytest.mark.parametrize("case", of_kind("preprocessing"))
def test_views_are_the_authors_pixels(case):
    config = CONFIGS[case]
    images, expected = load_file(ROOT / config["images_file"]), load_file(ROOT / case / "outputs.safetensors")
    changed = ROOT / case / "outputs_pillow13.safetensors"  # Pillow 13 resizes some shapes to other pixels
    if int(PIL.__version__.split(".")[0]) >= 13 and changed.exists():
        expected |= load_file(changed)
    policy = policy_of(config)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("image_mean", "image_std"))
    assert config["grids"]
    for grid in config["grids"]:
        pixels, chosen = policy(images[f"image.{grid['image']}"].numpy(), (config["crop_size"],) * 2)
        assert chosen == (grid["rows"], grid["columns"])
        assert len(pixels) == grid["crops"]
        torch.testing.assert_close(
            (pixels * config["rescale"] - mean) / std, expected[f"pixel_values.{grid['image']}"], atol=1e-5, rtol=0
        )
