"""One image of every kind that public data sets hold goes in, and comes out as said: its pixels, or a named reason."""

import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sources import PHOTO, bomb, chat, encode, rgb_hash

from data_prep.llava import main
from dslight.data.sample import decode_image, parse_sample
from dslight.data.shards import ShardReader, image_extension

ALPHA = np.linspace(0, 255, 99).round().astype(np.uint8).reshape(9, 11)
GREY = PHOTO[..., 0]
DEEP = (GREY.astype(np.uint16) << 8) + 77
TURNED = {
    1: PHOTO, 2: PHOTO[:, ::-1], 3: PHOTO[::-1, ::-1], 4: PHOTO[::-1],
    5: PHOTO.swapaxes(0, 1), 6: np.rot90(PHOTO, -1), 7: PHOTO[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(PHOTO),
}  # fmt: skip


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


def over_white(color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The definition; Pillow rounds its own way, so compared within one level."""
    share = alpha[..., None] / 255
    return np.round(color * share + 255 * (1 - share)).astype(np.uint8)


def palette(**options: Any) -> bytes:
    image = Image.fromarray((GREY % 4).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    return encode(image, **options)


def with_exif(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(PHOTO, kind, exif=exif)


COLORS = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90], [100, 110, 120]], np.uint8)[GREY % 4]
EXACT = {
    "rgb.png": (encode(PHOTO), PHOTO),
    "grey.png": (encode(GREY), rgb(GREY)),
    "one_bit.png": (encode(Image.fromarray(GREY > 127)), rgb(np.where(GREY > 127, 255, 0))),
    "sixteen_bit.png": (encode(DEEP), rgb(GREY)),
    "palette.png": (palette(), COLORS),
    "palette_transparent.png": (palette(transparency=0), np.where((GREY % 4 == 0)[..., None], 255, COLORS)),
    "rgba_opaque.png": (encode(np.dstack([PHOTO, np.full_like(GREY, 255)])), PHOTO),
    "rgba_clear.png": (encode(np.dstack([PHOTO, np.zeros_like(GREY)])), np.full_like(PHOTO, 255)),
    "lossless.webp": (encode(PHOTO, "WEBP", lossless=True), PHOTO),
    "windows.bmp": (encode(PHOTO, "BMP"), PHOTO),
    "scan.tif": (encode(PHOTO, "TIFF"), PHOTO),
    "packed.tiff": (encode(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO),
    "pages.tif": (
        encode(Image.fromarray(PHOTO), "TIFF", save_all=True, append_images=[Image.new("RGB", (4, 3))]),
        PHOTO,
    ),
    "animated.gif": (
        encode(Image.new("RGB", (4, 3), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (4, 3), "blue")]),
        np.full((3, 4, 3), (255, 0, 0)),
    ),
    **{f"exif{n}.png": (with_exif(n), TURNED[n]) for n in range(1, 9)},
    "misnamed.jpg": (encode(PHOTO), PHOTO),
}
Image.init()
EVEN = np.full((16, 16, 3), (200, 100, 50), np.uint8)
CLOSE = {  # lossy, or rounded: within this many levels
    "cmyk.jpg": (encode(Image.new("CMYK", (16, 16), (0, 128, 255, 0)), "JPEG"), np.full((16, 16, 3), (255, 127, 0)), 4),
    "rgba.png": (encode(np.dstack([PHOTO, ALPHA])), over_white(PHOTO, ALPHA), 1),
    "la.png": (encode(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), over_white(rgb(GREY), ALPHA), 1),
    "grey.jpg": (encode(np.full((16, 16), 90, np.uint8), "JPEG"), np.full((16, 16, 3), 90), 2),
    **({"even.avif": (encode(EVEN, "AVIF", quality=100), EVEN, 4)} if "AVIF" in Image.SAVE else {}),
}
REFUSED = {
    "empty.jpg": (b"", "image-empty"),
    "page.jpg": (b"<!doctype html><html>404</html>", "image-format"),
    "text.png": (b"GIF87", "image-damaged"),
    "cut.tif": (encode(PHOTO, "TIFF")[:300], "image-damaged"),
    "cut.jpg": (encode(np.tile(PHOTO, (9, 9, 1)), "JPEG")[:900], "image-damaged"),
    "cut.png": (encode(PHOTO)[:-40], "image-damaged"),
    "flipped.png": (encode(PHOTO)[:60] + b"\0" + encode(PHOTO)[61:], "image-damaged"),
    "bomb.png": (bomb(10_000), "image-too-large"),
    "giant_bomb.png": (bomb(40_000), "image-too-large"),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The shards of the zoo by (file name, its record's members), and the quarantine by file name."""
    root = tmp_path_factory.mktemp("zoo")
    (root / "images").mkdir()
    contents = {name: value[0] for name, value in (EXACT | CLOSE | REFUSED).items()}
    for name, data in contents.items():
        (root / "images" / name).write_bytes(data)
    entries = [
        {"id": name, "image": name, "conversations": chat("<image>\nQ", "A")} for name in (*contents, "gone.jpg")
    ]
    (root / "zoo.json").write_text(json.dumps(entries))
    options = ["--max-bad", "0.5", "--shard-entries", "7", "--workers", "2"]
    main(["--json", str(root / "zoo.json"), "--images", str(root / "images"), "--out", str(root / "out"), *options])
    reader = ShardReader(root / "out", check="full")
    records = [(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]
    found = {parse_sample(key, members).id: (key, members) for key, members in records}
    lines = [json.loads(line) for line in (root / "out" / "quarantine.jsonl").read_text().splitlines()]
    return found, {line["image"]: line for line in lines}


@pytest.mark.parametrize("name", EXACT)
def test_its_pixels_have_the_hash_of_what_was_drawn(zoo, name):
    data, pixels = EXACT[name]
    key, members = zoo[0][name]
    (image,) = parse_sample(key, members).images
    assert image == data  # the original bytes
    assert f"{image_extension(data)}" in members
    assert rgb_hash(decode_image(image)) == rgb_hash(pixels)


@pytest.mark.parametrize("name", CLOSE)
def test_its_pixels_are_what_was_drawn_as_far_as_rounding_allows(zoo, name):
    data, pixels, levels = CLOSE[name]
    (image,) = parse_sample(*zoo[0][name]).images
    assert image == data
    decoded = decode_image(image).astype(int)
    assert decoded.shape == pixels.shape
    assert np.abs(decoded - pixels).max() <= levels


@pytest.mark.parametrize("name", [*REFUSED, "gone.jpg"])
def test_it_is_in_the_quarantine_with_its_reason(zoo, name):
    line = zoo[1][name]
    assert name not in zoo[0]
    assert line["reason"] == ("image-missing" if name == "gone.jpg" else REFUSED[name][1])
    assert line["id"] == name
    assert line["message"]


def test_the_record_says_what_the_image_is(zoo):
    def info(name):
        return json.loads(zoo[0][name][1]["json"])["image_info"]

    assert info("rgb.png") == [{"name": "rgb.png", "width": 11, "height": 9, "mode": "RGB"}]
    assert info("exif6.png") == [{"name": "exif6.png", "width": 11, "height": 9, "mode": "RGB", "orientation": 6}]
    assert info("animated.gif")[0]["animated"] is True
    assert info("cmyk.jpg")[0]["mode"] == "CMYK"


def test_llavas_own_decoding_can_be_had():
    """LLaVA's code is ``Image.open(...).convert("RGB")``: no orientation, and transparency shows what is below it."""
    for data in (with_exif(6), CLOSE["rgba.png"][0], CLOSE["la.png"][0], palette(transparency=0)):
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert (decode_image(data, exif="ignore", alpha="drop") == theirs).all()
        assert decode_image(data).shape != theirs.shape or (decode_image(data) != theirs).any()
