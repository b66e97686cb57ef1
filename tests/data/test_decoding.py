"""How a recipe says that pictures are decoded: as a viewer shows them, or as LLaVA's code reads them."""

import io

import jsonargparse
import numpy as np
import pytest
import torch
from PIL import Image

from dslight.data.datamodule import ShardData
from dslight.data.shards import ShardWriter
from dslight.layout import SlotLayout

HEIGHT, WIDTH = 6, 10


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, kind, exif=exif)
    return out.getvalue()


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    rgba = Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 4), dtype=np.uint8), "RGBA")
    return [*(encoded(rgb, kind, 6) for kind in ("JPEG", "PNG", "WEBP")), encoded(rgba, "PNG"), encoded(rgb, "JPEG")]


@pytest.fixture
def shards(tmp_path):
    asked = {"question_id": 0, "question": "A1", "answers": ["B2"]}
    turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "1"}]
    for name, record in (("train", {"conversations": turns}), ("val", {"questions": [asked]})):
        with ShardWriter(tmp_path / name) as writer:
            for i, image in enumerate(pictures()):
                writer.write(f"r{i}", [image], record)
    return tmp_path


def views_of(shards, tokenizer, **decoding) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """The views and the sizes of all training records, in their order, after a recipe's ``data:`` node was read; those
    of the questions are the same."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardData, "data")
    recipe = {
        "train": [str(shards / "train")],
        "val": {"it": {"root": str(shards / "val")}},
        "views": {"class_path": "dslight.data.images.SingleView"},
        "global_batch_size": 1,
        "template": "bare",
    } | decoding
    data = parser.instantiate_classes(parser.parse_object({"data": recipe})).data
    data.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    items = [dataset[i] for i in range(len(dataset))]
    (questions,) = data.val_dataloader()[0]
    views = [item.pixels[0] for item in items]
    assert (questions.views.pixels == torch.cat(views)).all()
    return views, [item.sizes[0] for item in items]


@pytest.mark.parametrize("pixels", ["pillow", "fast"])
def test_a_recipe_reads_pictures_as_llavas_code_does(shards, tokenizer, pixels):
    """Which is ``Image.open(...).convert("RGB")``."""
    views, sizes = views_of(shards, tokenizer, pixels=pixels, exif="ignore", alpha="drop")
    theirs = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures()]
    assert sizes == [(HEIGHT, WIDTH)] * len(theirs)
    for (view,), image in zip(views, theirs, strict=True):
        expected = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(view.permute(1, 2, 0).numpy() - expected).max() <= (0 if pixels == "pillow" else 2)


def test_unless_it_says_so_pictures_are_as_a_viewer_shows_them(shards, tokenizer):
    views, sizes = views_of(shards, tokenizer)
    assert sizes == [(WIDTH, HEIGHT)] * 3 + [(HEIGHT, WIDTH)] * 2
    turned, _ = views_of(shards, tokenizer, alpha="drop")
    assert [bool((a == b).all()) for a, b in zip(views, turned, strict=True)] == [True, True, True, False, True]


@pytest.mark.parametrize("wrong", [{"exif": "turn"}, {"alpha": "black"}])
def test_a_policy_that_there_is_not_is_refused_by_its_key(shards, tokenizer, wrong):
    with pytest.raises(jsonargparse.ArgumentError, match=f"data.{next(iter(wrong))}"):
        views_of(shards, tokenizer, **wrong)
