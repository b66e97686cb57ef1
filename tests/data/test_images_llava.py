"""Views against transformers' image processors of LLaVA-1.5 and LLaVA-NeXT: equal before they are normalised."""

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from dslight.data.images import AnyResViews, AspectGridViews, SingleView, ViewPolicy

CLIP_MEAN = (122, 116, 104)
SIZES = [(40, 90), (90, 40), (64, 64), (5, 7), (13, 13), (37, 41), (10, 300), (299, 17), (1, 500), (500, 1), (28, 56)]
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, (*size, 3), dtype=np.uint8) for size in SIZES]
UNCHANGED: dict[str, Any] = {"do_rescale": False, "do_normalize": False}


def tiles(image: np.ndarray, policy: ViewPolicy, crop: int, **options: Any) -> np.ndarray:
    """LLaVA-NeXT's views of an image for the grids of ``policy``."""
    pinpoints = [[rows * crop, cols * crop] for rows, cols in policy.grids()]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": crop},
        crop_size={"height": crop, "width": crop},
        image_grid_pinpoints=pinpoints,
        **UNCHANGED,
        **options,
    )
    return processor(Image.fromarray(image), return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("crop", [8, 14, 21])
def test_any_resolution_tiles_are_those_of_llava_next(crop):
    policy = AnyResViews()
    chosen = set()
    for image in IMAGES:
        pixels, grid = policy(image, (crop, crop))
        np.testing.assert_array_equal(pixels.numpy(), tiles(image, policy, crop), err_msg=str(image.shape))
        chosen.add(grid)
    assert len(chosen) >= 4


def test_the_default_grids_are_llava_nexts():
    pinpoints = LlavaNextImageProcessorPil.image_grid_pinpoints
    assert AnyResViews().grids() == [(height // 336, width // 336) for height, width in pinpoints]


def test_other_grids_and_filters_are_those_of_llava_next():
    policy = AnyResViews([(4, 4), (1, 1), (2, 3)], resample="lanczos")
    for image in IMAGES:
        expected = tiles(image, policy, 14, resample=Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(policy(image, (14, 14))[0].numpy(), expected)


def test_deepstacks_grids_with_padding_are_tiled_as_in_llava_next():
    policy = AspectGridViews(6, fit="pad")
    for image in IMAGES:
        np.testing.assert_array_equal(policy(image, (14, 14))[0].numpy(), tiles(image, policy, 14))


@pytest.mark.parametrize("size", [14, 33])
def test_a_padded_single_view_is_that_of_llava(size):
    square = {"height": size, "width": size}
    llava = LlavaImageProcessorPil(size=square, crop_size=square, do_pad=True, **UNCHANGED)
    policy = SingleView(fit="pad", pad_color=CLIP_MEAN)
    for image in IMAGES:
        expected = llava(Image.fromarray(image), return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(policy(image, (size, size))[0].numpy(), expected, err_msg=str(image.shape))
