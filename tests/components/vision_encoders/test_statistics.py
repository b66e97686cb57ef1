"""How pixels are normalised, against transformers' own image processors."""

import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor

from dslight.components.vision_encoders.statistics import statistics

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SETTINGS = {
    "as usual": {"image_mean": MEAN, "image_std": STD},
    "no normalisation": {"do_normalize": False, "image_mean": MEAN, "image_std": STD},
    "of bytes": {"do_rescale": False, "image_mean": [123.0, 116.0, 103.0], "image_std": [58.0, 57.0, 57.5]},
    "another scale": {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    "neither": {"do_rescale": False, "do_normalize": False},
}


def write(folder, settings):
    folder.joinpath("preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "CLIPImageProcessor", **settings})
    )
    return str(folder)


@pytest.mark.parametrize("name", SETTINGS)
def test_pixels_are_what_the_image_processor_makes_of_them(name, tmp_path):
    path = write(tmp_path, SETTINGS[name])
    processor = CLIPImageProcessor.from_pretrained(path)
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = processor(images=image, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics(path, "clip", None, None, inside=False))
    ours = (torch.from_numpy(image).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(ours, expected.float(), atol=1e-4, rtol=1e-5)


def test_one_number_is_that_of_all_colours(tmp_path):
    path = write(tmp_path, {"image_mean": 0.5, "image_std": 0.25})
    assert statistics(path, "clip", None, None, inside=False) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_four_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"preprocessor_config.json: image_mean: \[0, 0, 0, 0\]"):
        statistics(write(tmp_path, {"image_mean": [0, 0, 0, 0]}), "clip", None, None, inside=False)


def test_given_numbers_win_then_the_kinds_own_and_a_model_that_normalises_is_given_plain_pixels():
    assert statistics(None, "clip", (0.1, 0.2, 0.3), None, inside=False)[0] == (0.1, 0.2, 0.3)
    mean, _ = statistics(None, "clip_vision_model", None, None, inside=False)
    assert mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert statistics(None, "no_such_kind", None, None, inside=False) == ((0.5,) * 3, (0.5,) * 3)
    assert statistics(None, "radio", None, None, inside=True) == ((0.0,) * 3, (1.0,) * 3)
