"""The fast way to the pixels against Pillow's: decoded alike, and resized alike but for two levels of 255."""

import importlib.util
import io
import re
import sys
import warnings
from pathlib import Path

import jsonargparse
import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageOps

from dslight.data import sample
from dslight.data.datamodule import ShardData
from dslight.data.images import AnyResViews, AspectGridViews, GridViews, HDViews, SingleView
from dslight.data.sample import BadSample, decode_image
from dslight.data.views.pixels import TorchPicture, height_first, picture
from dslight.layout import SlotLayout

RNG = np.random.default_rng(0)
SIZES = [(480, 640), (640, 480), (337, 91), (859, 10), (15, 609), (1, 700), (700, 1), (3, 3), (1200, 1600)]


SHAPES = [(h, w, to) for h, w in SIZES for to in [(336, 336), (17, 301), (301, 17), (805, 409)]]


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def black_and_white(height: int, width: int) -> np.ndarray:
    """The hardest case: every filter with negative weights overshoots everywhere."""
    return (RNG.integers(0, 2, (height, width, 3)) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """Two photographs, 427 x 640."""
    return pytest.importorskip("sklearn.datasets").load_sample_images().images


def pillows(image: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling[resample.upper()]))


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def fast(image: np.ndarray, size: tuple[int, int], resample: str) -> np.ndarray:
    return picture(image, "fast").squash(size, resample).tensor().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("make", [noise, black_and_white])
@pytest.mark.parametrize("to", [(336, 336), (672, 672), (17, 301), (805, 409), (1, 1)])
def test_fast_resizing_is_pillows_to_two_levels_at_any_size(resample, make, to):
    for size in SIZES:
        image = make(*size)
        resized, theirs = fast(image, to, resample), pillows(image, to, resample)
        assert resized.shape == theirs.shape
        assert levels(resized, theirs) <= 2, (size, to)


def test_the_side_that_is_resized_first_is_pillows():
    """Two steps of Pillow's, which cannot be reordered, in either order: its one step equals the one that is said."""
    said = []
    for height, width, to in [(640, 480, (336, 336)), (624, 480, (336, 336)), (625, 480, (336, 336)), *SHAPES]:
        image = black_and_white(height, width)
        middle = (to[0], width) if height_first((height, width), to) else (height, to[1])
        one = pillows(image, to, "bicubic")
        assert (pillows(pillows(image, middle, "bicubic"), to, "bicubic") == one).all(), (height, width, to)
        said.append(height_first((height, width), to))
    assert not any(height_first((height, width), to, 12) for height, width, to in SHAPES)
    assert set(said) == {PIL.__version__ >= "13", False}


@pytest.mark.parametrize("side", [224, 336, 448, 672, 1344])
def test_photographs_are_pillows_to_two_levels_and_mostly_exactly(photos, side):
    for photo in photos:
        for image in (photo, photo[:, 100:400]):
            image = np.ascontiguousarray(image)
            resized = fast(image, (side, side), "bicubic")
            theirs = pillows(image, (side, side), "bicubic")
            assert levels(resized, theirs) <= 2
            assert (resized != theirs).mean() < 0.02


@pytest.mark.parametrize("resample", ["nearest", "box", "hamming", "lanczos"])
def test_filters_that_torch_lacks_are_pillows_in_either_way(resample):
    policy = GridViews(2, 2, resample=resample)
    image = noise(50, 70)
    assert (policy(image, (24, 24), "fast")[0] == policy(image, (24, 24), "pillow")[0]).all()


@pytest.mark.parametrize(
    "policy",
    [
        SingleView(),
        SingleView(fit="pad", pad_color=(122, 116, 104)),
        GridViews(2, 2),
        GridViews(2, 2, crops_from="base"),
        AnyResViews(),
        AspectGridViews(4, fit="pad"),
        HDViews(4, 2),
    ],
    ids=lambda policy: f"{type(policy).__name__}-{policy.fit}-{policy.crops_from}",
)
def test_every_policy_cuts_the_same_views_either_way(photos, policy):
    """``crops_from: base`` resizes twice, so a difference of two levels may be enlarged once."""
    for image in [np.ascontiguousarray(photos[0]), np.ascontiguousarray(photos[1][:200])]:
        (ours, grid), (theirs, same) = policy(image, (56, 56), "fast"), policy(image, (56, 56), "pillow")
        assert grid == same
        assert ours.dtype == torch.uint8
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert levels(ours.numpy(), theirs.numpy()) <= (4 if policy.crops_from == "base" else 2)


def test_padding_is_exact_either_way():
    image = noise(9, 20)
    for policy in (SingleView(fit="pad", resample="box", pad_color=(1, 2, 3)), AnyResViews(resample="nearest")):
        assert (policy(image, (40, 40), "fast")[0] == policy(image, (40, 40), "pillow")[0]).all()


def test_arrays_that_may_not_be_written_are_taken_without_a_warning():
    image = noise(20, 20)
    image.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(picture(image, "fast"), TorchPicture)


def jpeg(image: np.ndarray | Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.mark.parametrize("quality", [10, 75, 90, 100])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}])
def test_jpeg_is_decoded_to_pillows_pixels(photos, quality, options):
    for image in (photos[0], photos[1][3:202, 7:318], noise(97, 131)):
        data = jpeg(np.ascontiguousarray(image), quality=quality, **options)
        assert (decode_image(data, pixels="fast") == np.asarray(Image.open(io.BytesIO(data)))).all()


def odd_images() -> dict[str, bytes]:
    rgb = Image.fromarray(noise(24, 40))
    png, many = io.BytesIO(), io.BytesIO()
    rgb.convert("RGBA").save(png, "PNG")
    rgb.save(many, "MPO", save_all=True, append_images=[rgb.rotate(180)])
    data = jpeg(rgb, quality=90)
    middle = len(data) // 2
    return {
        "cmyk": jpeg(rgb.convert("CMYK")),
        "grey": jpeg(rgb.convert("L")),
        "rgb inside": jpeg(rgb, keep_rgb=True),
        "restart markers": jpeg(rgb, restart_marker_blocks=1),
        "several pictures": many.getvalue(),
        "png": png.getvalue(),
        "more behind the end": data + b"rubbish" * 99,
        "zeros inside": data[:middle] + bytes(40) + data[middle + 40 :],
    }


@pytest.mark.parametrize("name", odd_images())
def test_whatever_pillow_can_decode_has_the_same_pixels(name):
    data = odd_images()[name]
    assert (decode_image(data, pixels="fast") == decode_image(data)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(noise(24, 40), exif=exif, subsampling=0)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert (decode_image(data, pixels="fast") == upright).all()
    assert decode_image(data, pixels="fast", exif="ignore").shape == (24, 40, 3)


@pytest.mark.parametrize("left", [0, 5, 100, -3, -2])
def test_a_cut_jpeg_is_refused_in_the_same_words(left):
    data = jpeg(noise(24, 40))[:left]
    messages = []
    for pixels in ("fast", "pillow"):
        with pytest.raises(BadSample, match="does not decode") as error:
            decode_image(data, pixels=pixels)
        messages.append(re.sub("0x[0-9a-f]+", "", str(error.value)))
    assert messages[0] == messages[1]


def test_large_jpegs_are_refused_before_they_are_decoded():
    with pytest.raises(BadSample, match="40x24 pixels is above the cap of 900"):
        decode_image(jpeg(noise(24, 40)), max_pixels=900, pixels="fast")


def test_simplejpeg_decodes_plain_jpegs(monkeypatch):
    """The fast way is taken: with the slow one broken, a plain JPEG still decodes and an odd one does not."""
    data, grey = jpeg(noise(24, 40)), odd_images()["grey"]

    def broken(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr("dslight.data.sample._to_rgb", broken)
    assert decode_image(data, pixels="fast").shape == (24, 40, 3)
    with pytest.raises(BadSample):
        decode_image(grey, pixels="fast")


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    data = jpeg(noise(24, 40))
    expected = decode_image(data)
    monkeypatch.setattr("dslight.data.sample.simplejpeg", None)  # as where it cannot be imported
    assert (decode_image(data, pixels="fast") == expected).all()


def test_the_package_imports_without_simplejpeg(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # as where it is not installed
    package = Path(sample.__file__).parents[1]
    named = [path for path in package.rglob("*.py") if "import simplejpeg" in path.read_text()]
    assert named == [Path(sample.__file__)]
    spec = importlib.util.spec_from_file_location("dslight.data.sample_again", sample.__file__)
    assert spec is not None
    assert spec.loader is not None
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)  # where its dataclasses look
    spec.loader.exec_module(again)
    assert again.simplejpeg is None


@pytest.mark.parametrize("workers", [0, 2])
def test_the_recipe_chooses_the_way(workers, tmp_path, write_photo_shards, tokenizer, photos):
    """``data.pixels``: bit for bit Pillow's where it says so, and by default what torch makes of the same image."""
    root = write_photo_shards(tmp_path, photos[:1])
    want = {pixels: SingleView()(photos[0], (24, 24), pixels)[0] for pixels in ("fast", "pillow")}
    assert (want["fast"] != want["pillow"]).any()
    for chosen, expected in (({"pixels": "pillow"}, "pillow"), ({"pixels": "fast"}, "fast"), ({}, "fast")):
        module = ShardData([str(root)], SingleView(), 1, template="bare", num_workers=workers, **chosen)
        module.connect(tokenizer, (24, 24), SlotLayout((2, 2)))
        module.setup("fit")
        (batch,) = module.train_dataloader()
        assert (batch.views.pixels == want[expected]).all()


def test_a_misspelt_way_is_refused_with_its_key():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardData, "data")
    views = {"class_path": "dslight.data.images.SingleView"}
    with pytest.raises(jsonargparse.ArgumentError, match=r"data\.pixels"):
        parser.parse_object({"data": {"train": ["a"], "views": views, "global_batch_size": 1, "pixels": "pilow"}})


@pytest.fixture
def write_photo_shards(png):
    """``write_photo_shards(root, images)``: one training record for each, stored without loss."""
    from dslight.data.shards import ShardWriter

    def write(root, images):
        turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "7"}]
        with ShardWriter(root) as writer:
            for i, image in enumerate(images):
                writer.write(f"p{i}", [png(np.ascontiguousarray(image))], {"id": f"p{i}", "conversations": turns})
        return root

    return write


@pytest.mark.parametrize("pixels", ["fast", "pillow"])
@pytest.mark.parametrize("resample", ["bicubic", "bilinear", "lanczos", "box"])
@pytest.mark.parametrize("size", [(5, 7), (33, 12), (64, 64)])  # both orders of the sides, smaller and larger
def test_a_view_written_where_it_stays_is_the_same_and_nothing_beside_it_changes(pixels, resample, size):
    whole = picture(noise(40, 24), pixels)
    rows = torch.full((3, *size, 3), 99, dtype=torch.uint8)
    whole.squash(size, resample, rows.permute(0, 3, 1, 2)[1:2])
    assert torch.equal(rows[1].permute(2, 0, 1), whole.squash(size, resample).tensor())
    assert (rows[[0, 2]] == 99).all()


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"\xff\xff",  # a marker may be filled up
        segment(0xFE, b"a comment with \xff\xda and \xff\xd9 in it"),
        segment(0xE2, bytes(60_000)) + segment(0xFE, b""),
    ],
    ids=["first", "filled", "behind a comment", "behind a profile"],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_orientation_is_found_wherever_it_stands(before, orientation):
    exif, plain, turned = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(8, 16))
    image.save(plain, "JPEG")
    image.save(turned, "JPEG", exif=exif)
    head = turned.getvalue().index(b"\xff\xe1")
    end = head + 2 + int.from_bytes(turned.getvalue()[head + 2 : head + 4], "big")
    data = plain.getvalue()[:2] + before + turned.getvalue()[head:end] + plain.getvalue()[2:]
    with Image.open(io.BytesIO(data)) as opened:
        theirs = np.asarray(ImageOps.exif_transpose(opened))
    assert theirs.shape == ((8, 16, 3) if orientation == 1 else (16, 8, 3))
    assert (decode_image(data, pixels="fast") == theirs).all()
