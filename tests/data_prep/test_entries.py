"""Files of entries: what is read, and what is refused as what it is."""

import gzip
import json
from pathlib import Path

import pytest

from data_prep.entries import read_entries


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.ndjson"])
def test_lines_are_known_by_the_ending_in_any_case(name, tmp_path):
    (tmp_path / name).write_text('{"id": 1}\n{"id": 2}\n')
    assert [entry["id"] for entry in read_entries(tmp_path / name)] == [1, 2]


@pytest.mark.parametrize("space", ["", "\n\n", " " * (3 << 20)], ids=["none", "lines", "megabytes"])
def test_what_follows_the_list_is_not_passed_over(space, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"id": 1}, {"id": 2}]) + space)
    assert [entry["id"] for entry in read_entries(path)] == [1, 2]
    path.write_text(json.dumps([{"id": 1}, {"id": 2}]) + space + json.dumps([{"id": 3}]))
    with pytest.raises(SystemExit, match=r"x\.json: the list ends after entry 1, and more follows \('\[{"):
        list(read_entries(path))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"PAR1\x15\x04PAR1", "parquet"),
        (b"ARROW1\0\0", "arrow"),
        (b"PK\3\4", "zip"),
    ],
)
def test_other_files_are_called_what_they_are(data, kind, tmp_path):
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(SystemExit, match=f"is a {kind} file"):
        list(read_entries(tmp_path / "x.json"))


def packed(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.output_stream(str(path), compression="zstd") as file:
            file.write(text.encode())
    return path


LINES = "".join(json.dumps({"id": i, "text": "ä" * 50}) + "\n" for i in range(3000))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.JSONL.gz", "x.jsonl.zst", "x.json.gz", "x.json.zst"])
def test_packed_files_are_unpacked_on_the_way(name, tmp_path):
    text = LINES if "jsonl" in name.lower() else f"[{LINES.rstrip().replace(chr(10), ',')}]"
    path = packed(tmp_path / name, text)
    assert [entry["id"] for entry in read_entries(path)] == list(range(3000))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SystemExit, match=r"(?i)x\.jsonl?\.\w+: "):
        list(read_entries(path))
