"""Dense labels: every patch gets the class that lies under it."""

import numpy as np
import pytest

from data_prep.digits import records
from data_prep.drawn import write_drawn
from dslight.data.datamodule import ValSource
from dslight.data.dense import DenseLabelData, patch_labels
from dslight.data.images import AnyResViews, GridViews, HDViews, SingleView
from dslight.data.sample import BadSample

LABELS = np.arange(16).reshape(4, 4)


def test_a_patch_of_the_base_view_or_of_a_crop_gets_the_class_under_it():
    base, *crops = patch_labels(LABELS, (4, 4), (2, 2))
    assert base.tolist() == list(range(16))
    assert crops[0].reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[4, 4, 5, 5]] * 2
    assert crops[1].reshape(4, 4).tolist() == [[2, 2, 3, 3]] * 2 + [[6, 6, 7, 7]] * 2
    assert crops[2].reshape(4, 4)[0].tolist() == [8, 8, 9, 9]


def test_fewer_patches_than_labels_take_the_class_under_their_centre():
    assert patch_labels(LABELS, (2, 2), (0, 0)).tolist() == [[5, 7, 13, 15]]
    assert patch_labels(LABELS, (1, 1), (1, 2)).tolist() == [[10], [9], [11]]


def test_labels_lie_where_the_pixels_lie():
    """Painting the labels as an image, cutting it into views and reading them back gives the targets."""
    picture = np.repeat(np.kron(LABELS * 10, np.ones((8, 8)))[:, :, None], 3, 2).astype(np.uint8)
    pixels, grid = GridViews(2, 2, resample="nearest")(picture, (16, 16))
    read = pixels[:, 0, 2::4, 2::4].reshape(5, 16) // 10
    assert read.tolist() == patch_labels(LABELS, (4, 4), grid).tolist()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    for split, count in (("train", 40), ("val", 6)):
        write_drawn(root / split, records(split, count, 0), count, {})
    return root


def connected(pages, **settings) -> DenseLabelData:
    val = {"digits": ValSource(str(pages / "val"))}
    data = DenseLabelData([str(pages / "train")], GridViews(2, 2, "box"), 8, val, **settings)
    data.connect((16, 16), (4, 4))
    data.setup("fit")
    return data


def test_batches_give_every_view_its_patches(pages):
    loader = connected(pages).train_dataloader()
    assert len(loader) == 5
    batch = next(iter(loader))
    assert batch.views.pixels.shape == (8 * 5, 3, 16, 16)
    assert batch.targets.shape == (8 * 5, 16)
    base = batch.targets.reshape(8, 5, 16)[:, 0].reshape(8, 4, 4)
    first_crop = batch.targets.reshape(8, 5, 16)[:, 1].reshape(8, 4, 4)
    assert (first_crop[:, ::2, ::2] == base[:, :2, :2]).all()
    assert len(batch.to("cpu")) == 8


def test_validation_goes_through_every_image_once(pages):
    (loader,) = connected(pages, val_batch_size=4).val_dataloader()
    batches = list(loader)
    assert [len(batch) for batch in batches] == [4, 2]
    assert [key for batch in batches for key in batch.keys] == [f"val-{i:06d}" for i in range(6)]
    assert all(batch.valid.all() for batch in batches)


def test_a_record_without_labels_is_named(tmp_path, write_shards):
    data = DenseLabelData([str(write_shards(tmp_path, 4))], SingleView(), 2)
    data.connect((8, 8), (4, 4))
    data.setup("fit")
    with pytest.raises(BadSample, match=r"a-000\d: 1 images and labels_grid None"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (HDViews(), r"data\.views: HDViews makes fine crops, which have no labels"),
        (AnyResViews(), r"data\.views\.fit: pad; labels lie over the whole view"),
    ],
)
def test_views_that_labels_do_not_lie_over_are_refused(views, message):
    with pytest.raises(ValueError, match=message):
        DenseLabelData(["train"], views, 8)
