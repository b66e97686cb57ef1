"""Records are checked, and images decoded as a viewer shows them."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from dslight.data.sample import BadSample, Turn, decode_image, parse_sample

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 255, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def members(images=(), **record) -> dict[str, bytes]:
    names = [f"{i}.png" for i in range(len(images))]
    return {**dict(zip(names, images, strict=True)), "json": json.dumps({"images": names, **record}).encode()}


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def test_a_conversation_is_parsed():
    sample = parse_sample("k", members([b"x"], id=7, conversations=chat("<image>\nQ", "A")))
    assert (sample.key, sample.id, sample.images) == ("k", "7", (b"x",))
    assert sample.turns == (Turn("human", "<image>\nQ"), Turn("gpt", "A"))


def test_questions_are_parsed_with_their_references():
    asked = [{"question_id": 3, "question": "Q", "answers": ["A", "B"], "type": "other"}]
    question = parse_sample("k", members([b"x"], questions=asked)).questions[0]
    assert (question.question_id, question.references, question.type, question.key) == ("3", ("A", "B"), "other", "k")
    assert (question.suffix, question.extra, question.official_id) == (None, {}, "3")


def test_a_question_may_have_its_own_suffix_and_all_that_its_authors_say():
    said = {"suffix": "", "official_id": 3, "options": ["x", "y"]}
    asked = {"question_id": "human-3", "question": "Q", "answers": ["A"], **said}
    question = parse_sample("k", members([b"x"], questions=[asked])).questions[0]
    assert (question.suffix, question.official_id, question.extra["options"]) == ("", 3, ["x", "y"])
    assert isinstance(hash(question), int)


def test_only_an_answer_that_is_said_to_be_hidden_may_be_missing():
    asked = {"question_id": 1, "question": "Q", "answers": [], "hidden": True}
    assert parse_sample("k", members(questions=[asked])).questions[0].references == ()


def test_a_caption_of_img2dataset_is_a_conversation():
    sample = parse_sample("k", {"jpg": b"x", "txt": b"a cat", "json": b'{"width": 3}'})
    assert sample.turns == (Turn("human", "<image>"), Turn("gpt", "a cat"))
    assert parse_sample("k", {"jpg": b"x", "txt": b"a cat"}).turns == sample.turns


def test_a_leading_answer_is_dropped_as_llava_does():
    turns = [{"from": "gpt", "value": "hello"}, *chat("Q", "A")]
    assert parse_sample("k", members(conversations=turns)).turns[0] == Turn("human", "Q")


def test_the_word_image_is_text_in_a_record_without_images():
    assert parse_sample("k", members(conversations=chat("what is an <image> tag?", "A"))).images == ()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (members([b"x"], conversations=chat("no mark", "A")), "0 <image> marks in the human turns for 1 images"),
        (members([b"x"], conversations=chat("<image> <image>", "A")), "2 <image> marks"),
        (members(conversations=chat("Q", "A", "Q")[1:] + chat("Q")), "two human turns"),
        (members(conversations=[]), "no answer"),
        (members(conversations=chat("Q", "")), "no answer"),
        (members(conversations=[*chat("Q"), {"from": "gpt", "value": "A", "loss": False}]), "no answer"),
        (
            members(conversations=[*chat("Q"), {"from": "gpt", "value": "A", "weight": -0.5}]),
            "weight of a message: -0.5",
        ),
        (members(conversations=[{"from": "system", "value": ""}]), "role 'system'"),
        (members(conversations=[{"value": ""}]), "KeyError"),
        (members(conversations=[{"from": "human", "value": 3}]), "no text but 3"),
        (members(images=(), conversations=chat("Q", "A")) | {"json": b"{"}, "does not parse"),
        (
            {"json": json.dumps({"images": ["png"], "conversations": chat("<image>", "A")}).encode()},
            "names the image 'png'",
        ),
        (members(questions=[{"question_id": 1, "question": "Q", "answers": "A"}]), "must be a list"),
        (members(questions=[{"question_id": 1, "question": "Q", "answers": []}]), "must be a list"),
        (
            members(questions=[{"question_id": 1, "question": "Q", "answers": ["A"], "hidden": True}]),
            "must be none, as they are hidden",
        ),
        (members(), "neither conversations"),
    ],
)
def test_what_is_wrong_with_a_record_is_said_with_its_key(record, reason):
    with pytest.raises(BadSample, match=r"^the-key: ") as error:
        parse_sample("the-key", record)
    assert reason in str(error.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(saved(Image.fromarray(PHOTO), exif=exif))
    turned = {
        1: PHOTO, 2: PHOTO[:, ::-1], 3: PHOTO[::-1, ::-1], 4: PHOTO[::-1],
        5: PHOTO.swapaxes(0, 1), 6: np.rot90(PHOTO, -1), 7: PHOTO[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(PHOTO),
    }  # fmt: skip
    assert (decoded == turned[orientation]).all()


def test_transparency_is_laid_over_white():
    alpha = np.array([[0, 128, 255]], np.uint8)
    rgba = np.dstack([np.zeros((1, 3, 3), np.uint8), alpha])
    assert decode_image(saved(Image.fromarray(rgba)))[0, :, 0].tolist() == [255, 127, 0]
    grey = np.dstack([np.zeros((1, 3), np.uint8), alpha])
    assert decode_image(saved(Image.fromarray(grey, "LA")))[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert decode_image(saved(palette, transparency=0)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bit_grey_is_scaled_and_not_clipped():
    deep = np.array([[0, 256, 32768, 65535]], np.uint16)
    assert decode_image(saved(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(mode):
    image = Image.fromarray(PHOTO).convert(mode)
    decoded = decode_image(
        saved(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 100} if mode == "CMYK" else {}))
    )
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - expected).max() <= (90 if mode == "CMYK" else 0)  # JPEG of noise is far from exact
    assert np.abs(decoded - expected).mean() < 20


def test_an_animation_is_its_first_frame_and_webp_decodes():
    frames = [Image.new("RGB", (3, 3), color) for color in ("red", "blue")]
    assert decode_image(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))[0, 0].tolist() == [255, 0, 0]
    assert (decode_image(saved(Image.fromarray(PHOTO), "WEBP", lossless=True)) == PHOTO).all()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_a_bomb_is_refused_by_its_pixel_count_before_it_is_decoded(side):
    with pytest.raises(BadSample, match=r"above the cap of 64000000|decompression bomb"):
        decode_image(bomb(side))


@pytest.mark.parametrize(
    "data", [b"", b"<html>404</html>", saved(Image.fromarray(PHOTO))[:60], saved(Image.fromarray(PHOTO), "JPEG")[:200]]
)
def test_what_is_no_whole_image_is_refused(data):
    with pytest.raises(BadSample, match=f"image of {len(data)} bytes does not decode"):
        decode_image(data)


def test_the_oracle_for_orientation_is_pillows_own():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(Image.fromarray(PHOTO), exif=exif)
    assert (decode_image(data) == np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))).all()
