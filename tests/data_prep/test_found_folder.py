"""A folder in LLaVA's format as one finds them, with every defect that public data sets have, goes in; what comes out
can be trained on, and everything else is named with its reason."""

import json
import re
from typing import Any, NamedTuple

import numpy as np
import pytest
import webdataset
from PIL import Image
from sources import PHOTO, bomb, chat, encode
from transformers import AutoTokenizer

from data_prep.digits import write_tokenizer
from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.sample import decode_image, parse_sample
from dslight.data.shards import ShardReader, verify
from dslight.layout import SlotLayout

GREY = PHOTO[..., 0]
ALPHA = np.where(np.arange(11) < 5, 0, 255).astype(np.uint8)[None].repeat(9, 0)
CMYK = Image.new("CMYK", (16, 16), (0, 128, 255, 0))
RED, BLUE = (Image.new("RGB", (4, 3), color) for color in ("red", "blue"))


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(PHOTO, exif=exif)


class Kept(NamedTuple):
    """An image that is right, or is set right when it is decoded: file, bytes, what is seen, ending in the shard."""

    name: str
    data: bytes
    pixels: np.ndarray
    ending: str = "png"
    levels: int = 0


KEPT = [
    Kept("plain.png", encode(PHOTO), PHOTO),
    Kept("coco/a.b.v1.png", encode(PHOTO[:5]), PHOTO[:5]),  # WebDataset would merge the two
    Kept("coco/a.b.v2.png", encode(PHOTO[5:]), PHOTO[5:]),
    Kept("Ünï cöde #1?.PNG", encode(PHOTO[1:]), PHOTO[1:]),
    Kept("really_a.jpg", encode(PHOTO), PHOTO),
    Kept("gif_named.jpg", encode(RED, "GIF"), np.asarray(RED), "gif"),
    Kept("without_ending", encode(np.full((8, 8, 3), 90, np.uint8), "JPEG"), np.full((8, 8, 3), 90), "jpg", 2),
    Kept("turned.png", turned(), np.rot90(PHOTO, -1)),
    Kept("clear.png", encode(np.dstack([PHOTO, ALPHA])), np.where(ALPHA[..., None], PHOTO, 255)),
    Kept("cmyk.jpg", encode(CMYK, "JPEG"), np.full((16, 16, 3), (255, 127, 0)), "jpg", 4),
    Kept("deep.png", encode((GREY.astype(np.uint16) << 8) + 77), np.repeat(GREY[..., None], 3, 2)),
    Kept(
        "moving.webp",
        encode(RED, "WEBP", save_all=True, append_images=[BLUE], lossless=True),
        np.asarray(RED),
        "webp",
    ),
]
QUESTION = chat("<image>\nA1", "B2")
BAD: dict[str, tuple[bytes | None, Any, str]] = {  # the file, the conversations, the reason
    "missing.jpg": (None, QUESTION, "image-missing"),
    "zero_bytes.jpg": (b"", QUESTION, "image-empty"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", QUESTION, "image-format"),
    "cut.jpg": (encode(np.tile(PHOTO, (9, 9, 1)), "JPEG")[:900], QUESTION, "image-damaged"),
    "bomb.png": (bomb(10_000), QUESTION, "image-too-large"),
    "two_marks.png": (encode(PHOTO), chat("<image>\n<image>\nA1", "B2"), "marks"),
    "no_mark.png": (encode(PHOTO), chat("A1", "B2"), "marks"),
    "two_questions.png": (encode(PHOTO), [*chat("<image>\nA1"), *chat("A2")], "roles"),
    "no_answer.png": (encode(PHOTO), chat("<image>\nA1", ""), "no-answer"),
    "nothing.png": (encode(PHOTO), [], "no-answer"),
    "a_text.png": (encode(PHOTO), "A1", "record"),
    "../outside.png": (None, QUESTION, "image-name"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """``data.json`` and ``images/``, good and bad entries by turns, text-only ones and one of two images among them."""
    root = tmp_path_factory.mktemp("found")
    files = {kept.name: kept.data for kept in KEPT} | {
        name: data for name, (data, *_) in BAD.items() if data is not None
    }
    for name, data in files.items():
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    entries = [{"id": kept.name, "image": kept.name, "conversations": QUESTION} for kept in KEPT]
    bad = [{"id": name, "image": name, "conversations": said} for name, (_, said, _) in BAD.items()]
    entries = [entry for pair in zip(entries, bad, strict=True) for entry in pair]
    entries.insert(5, {"id": "text", "conversations": chat("A1", "B2")})
    entries.append({"id": "text", "conversations": chat("what is an <image> tag?", "B2")})  # its id repeats
    two = {"id": "two", "image": ["plain.png", "gif_named.jpg"], "conversations": chat("<image> <image>\nA1", "B2")}
    (root / "data.json").write_text(json.dumps([*entries, two]))
    return root


def program_arguments(source, out) -> list[object]:
    return ["--json", source / "data.json", "--images", source / "images", "--out", out, "--workers", 2]


@pytest.fixture(scope="module")
def shards(source):
    from data_prep.llava import main

    more = ["--max-bad", "0.5", "--shard-entries", "4", "--name", "found"]
    main([str(argument) for argument in program_arguments(source, source / "out") + more])
    return source / "out"


@pytest.fixture(scope="module")
def records(shards) -> dict[str, tuple[str, dict[str, bytes]]]:
    """Key and members by the id of the source."""
    reader = ShardReader(shards, check="full")
    read = [(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]
    return {json.loads(members["json"])["id"]: (key, members) for key, members in read}


def test_so_many_bad_entries_stop_it_unless_they_are_allowed(source, program, tmp_path):
    done = program("llava", *program_arguments(source, tmp_path / "out"))
    assert done.returncode == 1
    assert re.search(r"bad entries and counting \(.*\); --max-bad 0\.001 allows 0 of 27", done.stderr)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_every_bad_entry_is_named_with_its_reason_and_no_other(shards, records):
    lines = [json.loads(line) for line in (shards / "quarantine.jsonl").read_text().splitlines()]
    reasons = {name: reason for name, (*_, reason) in BAD.items()} | {"text": "marks"}  # a mark, and no picture
    assert {line["id"]: line["reason"] for line in lines} == reasons
    assert set(records) == {kept.name for kept in KEPT} | {"text", "two"}
    report = json.loads((shards / "report.json").read_text())
    counted = {reason: [reason_ for *_, reason_ in BAD.values()].count(reason) for *_, reason in BAD.values()}
    assert report["bad"] == counted | {"marks": counted.get("marks", 0) + 1}
    assert (report["entries"], report["records"], report["text_only"], report["images"]) == (27, 14, 1, 14)
    assert report["changed"] == {"first frame of an animation": 1, "turned by EXIF": 1}


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_what_is_kept_has_its_own_bytes_an_honest_ending_and_the_pixels_that_a_viewer_shows(kept, records):
    key, members = records[kept.name]
    assert set(members) == {kept.ending, "json"}
    assert members[kept.ending] == kept.data
    assert re.fullmatch(r"found-\d{9}", key)
    sample = parse_sample(key, members)
    assert [turn.text for turn in sample.turns] == [turn["value"] for turn in QUESTION]
    pixels = decode_image(sample.images[0]).astype(int)
    assert pixels.shape == kept.pixels.shape
    assert np.abs(pixels - kept.pixels).max() <= kept.levels
    assert json.loads(members["json"])["image_info"][0]["name"] == kept.name


def test_other_tools_read_the_same_records(shards):
    theirs = list(webdataset.WebDataset([str(path) for path in sorted(shards.glob("*.tar"))], shardshuffle=False))
    reader = ShardReader(shards)
    assert [item["__key__"] for item in theirs] == [reader.locate(row)[1] for row in range(len(reader))]
    for row, item in enumerate(theirs):
        members = {name: data for name, data in item.items() if not name.startswith("__")}
        assert members == reader.read(row)
    assert list(verify(shards)) == []


def test_all_of_it_can_be_trained_on(shards, tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    data = ShardData([str(shards)], SingleView(), 1, template="bare", check="full")
    data.connect(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"), (8, 8), SlotLayout((2, 2)))
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == 14
    assert sorted(len(batch.views or ()) for batch in batches) == [0, *[1] * 12, 2]
    assert all((batch.labels != -100).any() for batch in batches)
