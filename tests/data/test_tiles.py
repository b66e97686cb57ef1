"""Grids of tiles, for many shapes of images, against the processors of the models that cut so."""

from __future__ import annotations

import random

import numpy as np
import pytest
from transformers import GotOcr2ImageProcessor, Idefics3ImageProcessor

import dslight

SIZES = [(random.Random(i).randint(1, 900), random.Random(-i).randint(1, 900)) for i in range(300)]


def test_dynamic_tiles_are_those_of_internvl_s_processor():
    theirs = GotOcr2ImageProcessor(size={"height": 64, "width": 96}, crop_to_patches=True)
    for least, most in ((1, 12), (2, 7), (1, 1)):
        ours = dslight.DynamicTileViews(most, least)
        for height, width in SIZES:
            given = {"min_patches": least, "max_patches": most}
            rows, cols = ours.choose((height, width), (64, 96))
            assert (rows, cols) in ours.grids()
            assert 1 + rows * cols == theirs.get_number_of_image_patches(height, width, given)


def test_split_images_are_those_of_idefics_3_s_processor():
    theirs = Idefics3ImageProcessor(size={"longest_edge": 256}, max_image_size={"longest_edge": 64})
    ours = dslight.SplitViews(side=4)
    for height, width in SIZES:
        _, rows, cols = theirs.get_number_of_image_patches(height, width)
        assert ours.choose((height, width), (64, 64)) == (rows, cols)
        assert (rows, cols) in ours.grids()
    views, grid = ours(np.zeros((30, 70, 3), dtype=np.uint8), (16, 16))
    assert (len(views), grid) == (9, (2, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dslight.DynamicTileViews(3, 4), r"data.views.most: 3 tiles, at least 4"),
        (lambda: dslight.SplitViews(0), r"data.views.side: 0"),
    ],
)
def test_numbers_that_cut_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
