"""What public data sets do to a program that makes shards of them, and what it costs in memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dslight.data.sample import BadSample, parse_sample
from dslight.data.shards import ShardError, ShardReader, index_tars, verify

RUN_AND_MEASURE = """
import resource, runpy, sys
sys.argv = ["llava", *sys.argv[1:]]
try:
    runpy.run_module("data_prep.llava", run_name="__main__", alter_sys=True)
finally:
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print("PEAK", peak // 1024)
"""


def llava(folder: Path, entries: list[dict[str, Any]], *options: str) -> subprocess.CompletedProcess[str]:
    """``python -m data_prep.llava`` over ``folder/images``; its last line is the largest memory of a process, in MB."""
    (folder / "data.json").write_text(json.dumps(entries))
    call = ["--json", str(folder / "data.json"), "--images", str(folder / "images"), "--out", str(folder / "out")]
    return subprocess.run(
        [sys.executable, "-c", RUN_AND_MEASURE, *call, "--workers", "1", *options],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "image": name, "conversations": chat("<image>\nWhat?", "That."), **more}


def encoded(kind: str = "JPEG", size: int = 9, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)).save(
        out, kind, **options
    )
    return out.getvalue()


def put(folder: Path, name: str, data: bytes) -> str:
    path = folder / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return name


LONG = "/".join(["deep" * 12] * 6) + ".jpg"
NAMES = ["a.v1.jpg", "a.v2.jpg", "a.jpg", "A.jpg", "ü n ï.jpg", "日本.jpg", "b/a.jpg", LONG]


@pytest.mark.fault(8)
def test_names_that_would_merge_or_break_records_become_keys_that_do_not(tmp_path):
    assert len(LONG) > 290
    jpeg, gif = encoded(), encoded("GIF")
    entries = [entry(put(tmp_path, name, jpeg + bytes([i]))) for i, name in enumerate(NAMES)]
    entries += [entry(put(tmp_path, "gif.jpg", gif)), entry("a.jpg"), entry("a.jpg", id="a.jpg")]
    done = llava(tmp_path, entries)
    assert done.returncode == 0, done.stderr
    reader = ShardReader(tmp_path / "out", check="full")
    assert [reader.index.key(row) for row in range(len(reader))] == [f"out-{i:09d}" for i in range(11)]
    for row in range(8):
        assert reader.read(row)["jpg"] == jpeg + bytes([row])
    assert set(reader.read(8)) == {"gif", "json"}
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert len({name.partition(".")[0] for name in tar.getnames()}) == 11


def foreign(root: Path, *names: str) -> Path:
    root.mkdir()
    with tarfile.open(root / "00000.tar", "w") as tar:
        for i, name in enumerate(names):
            data = encoded(size=4 + i) if name.endswith("jpg") else f"text {i}".encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return root


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "names",
    [("a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt"), ("a.jpg", "a.txt", "a.jpg", "a.txt"), ("a.jpg", "a.JPG")],
    ids=["apart", "neighbours", "case"],
)
def test_two_records_of_one_key_in_tars_of_others_are_refused(names, tmp_path):
    with pytest.raises(ShardError, match=r"00000\.tar: a: .* twice"):
        index_tars(foreign(tmp_path / "tars", *names))


@pytest.mark.fault(8)
def test_dotted_keys_in_tars_of_others_do_not_train_as_one_merged_record(tmp_path):
    index_tars(root := foreign(tmp_path / "tars", "img.v1.jpg", "img.v1.txt", "img.v2.jpg", "img.v2.txt"))
    reader = ShardReader(root)
    assert len(reader) == 1
    with pytest.raises(BadSample, match="img: "):
        parse_sample("img", reader.read(0))


@pytest.mark.fault(8)
def test_long_and_unicode_names_in_tars_of_others_are_read_as_they_are(tmp_path):
    root = foreign(tmp_path / "tars", LONG, LONG.replace("jpg", "txt"), "日本/ü.jpg", "日本/ü.txt")
    index_tars(root)
    reader = ShardReader(root, check="full")
    assert [reader.index.key(row) for row in range(2)] == [LONG.removesuffix(".jpg"), "日本/ü"]
    assert reader.read(1)["txt"] == b"text 3"
    assert list(verify(root)) == []


# --- images
# ----------------------------------------------------------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it is ``side`` x ``side`` pixels; those that are there are zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    "side", [40_000, pytest.param(10_000, marks=pytest.mark.slow), pytest.param(2_000_000, marks=pytest.mark.slow)]
)
def test_a_picture_that_claims_gigabytes_is_named_and_costs_no_memory(side, tries, tmp_path):
    """Pixel for pixel, and every other kind of image, is in ``tests/data_prep/test_zoo.py``."""
    small = [entry(put(tmp_path, f"{i}.jpg", encoded())) for i in range(3)]
    assert len(bomb(side)) < 200
    done = llava(tmp_path, [*small, entry(put(tmp_path, "bomb.png", bomb(side)))], "--max-bad", "0.3")
    assert done.returncode == 0, done.stderr
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert line["reason"] == "image-too-large"
    peak = int(done.stdout.split()[-1])
    (tmp_path / "out").rename(tmp_path / "with")
    done = llava(tmp_path, small)
    assert peak < int(done.stdout.split()[-1]) + 60


# --- entries
# ---------------------------------------------------------------------------------------------------------------

DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "no such image": (entry("gone.jpg"), "image-missing"),
    "an empty image": (entry("empty.jpg"), "image-empty"),
    "a web page": (entry("page.jpg"), "image-format"),
    "a cut image": (entry("cut.jpg"), "image-damaged"),
    "a name that leads out": (entry("../data.json"), "image-name"),
    "too many marks": (entry("good.jpg", conversations=chat("<image><image>", "A")), "marks"),
    "no mark": (entry("good.jpg", conversations=chat("Q", "A")), "marks"),
    "no conversation": (entry("good.jpg", conversations=[]), "no-answer"),
    "no answer": (entry("good.jpg", conversations=chat("<image>")), "no-answer"),
    "two in a row": (entry("good.jpg", conversations=[*chat("<image>"), *chat("Q", "A")]), "roles"),
    "an unknown role": (entry("good.jpg", conversations=[{"from": "bot", "value": "x"}]), "roles"),
    "no text at all": ({"id": "x"}, "no-text"),
}


@pytest.mark.fault(10)
def test_defects_in_a_llava_json_are_counted_by_their_class_and_stop_it_above_the_limit(tries, tmp_path):
    good = put(tmp_path, "good.jpg", encoded(size=40))
    put(tmp_path, "empty.jpg", b"")
    put(tmp_path, "page.jpg", b"<html>404</html>")
    put(tmp_path, "cut.jpg", encoded(size=40)[:500])
    text_only = {"id": "t", "conversations": chat("Q", "A")}
    entries = [entry(good), text_only, *(bad for bad, _ in DEFECTS.values())] * 3
    with tries.one():
        done = llava(tmp_path, entries, "--max-bad", "0.85")
        assert done.returncode != 0
        assert "--max-bad 0.85 allows 35 of 42" in done.stderr
        assert not (tmp_path / "out" / "manifest.json").exists()
    with tries.one():
        done = llava(tmp_path, entries, "--max-bad", "0.86")
        assert done.returncode == 0, done.stderr
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert (report["records"], report["text_only"], report["images"]) == (6, 3, 3)
        lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
        reasons = {name: reason for name, (_, reason) in DEFECTS.items()}
        assert dict(zip(DEFECTS, (line["reason"] for line in lines), strict=False)) == reasons
        assert len(lines) == sum(report["bad"].values()) == 36
