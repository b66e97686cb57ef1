"""A picture of which all features are kept is not decoded; one that is not becomes the same views as ever."""

from typing import Any

import numpy as np
import pytest
import torch

from data_prep.digits import png
from dslight.data.caches.features import FeatureReader, KeepFeatures, settings_of
from dslight.data.images import AnyResViews, AspectGridViews, SingleView, ViewPolicy
from dslight.data.rows import RowMaker
from dslight.features.store import FeatureStore
from dslight.features.views import view_key

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
POLICY = AspectGridViews(max_crops=2)


def reader(folder, policy=POLICY, taps=("final",)) -> FeatureReader:
    store = FeatureStore(folder, 10**9)
    asked = {(1, 2): [(view, tap) for view in range(3) for tap in taps], (0, 0): [(0, "final")]}
    sets = {tap: f"e-{tap}" for tap in taps}
    return FeatureReader(store, "e", sets, asked, settings_of(policy, "fast"))


def cutter(policy=POLICY):
    calls = []

    def cut():
        calls.append(1)
        return *policy(PICTURE, (16, 16)), PICTURE.shape[:2]

    return cut, calls


def keep_all(known: FeatureReader, image) -> None:
    for row, view in zip(image.rows, image.pixels, strict=True):
        known.store.keep_feature("e-final", image.keys[row], view.float().flatten(1).T[:, :2].contiguous())


def test_the_first_time_a_picture_is_decoded_and_the_second_time_it_is_not(tmp_path):
    cut, calls = cutter()
    image, grid, size = reader(tmp_path).image(b"picture", cut)
    assert (grid, size, image.rows, len(calls)) == ((1, 2), (20, 40), [0, 1, 2], 2)  # once more: are they the same?
    assert torch.equal(image.pixels, cut()[0])
    keep_all(reader(tmp_path), image)
    calls.clear()
    again, *what = reader(tmp_path).image(b"picture", cut)
    assert what == [(1, 2), (20, 40)]
    assert not calls
    assert again.pixels is None
    assert again.rows == []
    assert len(again) == 3
    assert sorted(again.features) == [(0, "final"), (1, "final"), (2, "final")]


def test_other_settings_share_the_views_that_are_the_same(tmp_path):
    """The base view is the same where nothing else is looked at."""
    cut, _ = cutter()
    image, *_ = reader(tmp_path).image(b"picture", cut)
    keep_all(reader(tmp_path), image)
    alone, calls = cutter(SingleView())
    seen, grid, _ = reader(tmp_path, SingleView()).image(b"picture", alone)
    assert grid == (0, 0)
    assert seen.rows == []
    assert len(calls) == 2
    assert seen.keys == image.keys[:1]


def test_a_tap_that_is_not_there_brings_the_pixels(tmp_path):
    cut, _ = cutter()
    image, *_ = reader(tmp_path).image(b"picture", cut)
    keep_all(reader(tmp_path), image)
    both, *_ = reader(tmp_path, taps=("final", 2)).image(b"picture", cut)
    assert both.rows == [0, 1, 2]
    assert sorted(both.features) == [(0, "final"), (1, "final"), (2, "final")]
    assert torch.equal(both.pixels, cut()[0])


def test_views_that_are_not_the_same_each_time_are_refused(tmp_path):
    rng = np.random.default_rng(0)

    class Jitter(ViewPolicy):
        def grids(self):
            return [(0, 0)]

        def choose(self, image_size, size):
            return (0, 0)

        def __call__(self, image, size, pixels="pillow"):
            return torch.from_numpy(rng.integers(0, 255, (1, 3, *size), dtype=np.uint8)), (0, 0)

    cut, _ = cutter(Jitter())
    with pytest.raises(ValueError, match=r"data\.keep_features: the views .* are not the same each time"):
        reader(tmp_path, SingleView()).image(b"picture", cut)


def test_all_that_decides_the_views_is_in_the_key():
    assert settings_of(POLICY, "fast") == settings_of(AspectGridViews(max_crops=2), "fast")
    others = {settings_of(*what) for what in ((AspectGridViews(), "fast"), (POLICY, "pillow"), (SingleView(), "fast"))}
    assert len(others | {settings_of(POLICY, "fast")}) == 4


def test_a_view_is_known_by_its_pixels_wherever_they_lie_in_memory():
    pixels = torch.randint(0, 255, (2, 3, 4, 6), dtype=torch.uint8)
    other = pixels.contiguous(memory_format=torch.channels_last)
    assert [view_key(view) for view in pixels] == [view_key(view) for view in other]
    assert view_key(pixels[0]) != view_key(pixels[1])
    assert view_key(pixels[0]) != view_key(pixels[0].reshape(3, 6, 4))


def test_no_bytes_are_no_limit():
    with pytest.raises(ValueError, match=r"data\.keep_features\.bytes: 0; 1 or more"):
        KeepFeatures("features", 0)


def test_a_picture_that_is_cut_otherwise_beside_others_is_kept_apart(tmp_path):
    policy = AnyResViews([(1, 2)], several_color=(1, 2, 3))
    tokens: Any = None
    data = png(PICTURE)
    for _ in range(2):  # the second time, what is kept is read
        rows = RowMaker(tokens, tokens, policy, (16, 16), known=reader(tmp_path, policy))
        for images, grids in (([data], [(1, 2)]), ([data, data], [(0, 0)] * 2)):
            seen = rows.seen(images)
            assert seen["grids"] == grids
            assert [len(image) for image in seen["pixels"]] == [1 + rows * columns for rows, columns in grids]
            for image in seen["pixels"]:
                if image.pixels is not None:
                    keep_all(reader(tmp_path, policy), image)
    assert all(image.pixels is None for image in seen["pixels"])
