"""A damaged archive is named, and ends."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.images import Images
from data_prep.journal import JOURNAL, Journal
from dslight.data.sample import BadSample
from dslight.data.shards import MANIFEST, ShardError, ShardReader, ShardWriter, index_tars, verify
from dslight.errors import UserError

PROMISE = "a damaged archive is named, and its reading ends"


def tar_of(*sizes: int) -> bytes:
    """A tar of members of 100 bytes whose headers say other sizes, below zero too."""
    out = io.BytesIO()
    for number, size in enumerate(sizes):
        header = bytearray(tarfile.TarInfo(f"{number}.jpg").tobuf(tarfile.GNU_FORMAT))
        binary = (size | 1 << 95 if size > 0 else size + (1 << 96)).to_bytes(12, "big")
        header[124:136] = b"%011o\0" % size if 0 <= size < 8**11 else binary
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        out.write(bytes(header) + b"x" * 100 + bytes(412))
    return out.getvalue() + bytes(1024)


def pax_of(size: int) -> bytes:
    """A tar of which an extended header says the size."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        one = tarfile.TarInfo("a.jpg")
        one.pax_headers = {"size": str(size)}
        tar.addfile(one)
    return out.getvalue()


TARS = {
    "of -512 bytes at the end": tar_of(100, 100, -512),
    "of -512 bytes at the beginning": tar_of(-512, 100),
    "of -1024 bytes": tar_of(100, -1024, 100),
    "of -2048 bytes": tar_of(100, -2048, 100),
    "of -1 bytes": tar_of(100, -1),
    "of 2**80 bytes": tar_of(100, 1 << 80, 100),
    "of -1024 bytes in an extended header": pax_of(-1024),
    "of -100000 bytes in an extended header": pax_of(-100_000),
}


@pytest.mark.timeout(60)
@pytest.mark.promise(PROMISE, "a tar with a member")
@pytest.mark.parametrize("name", TARS)
def test_sizes_of_members_below_zero(name, tmp_path, outcome):
    (tmp_path / "a.tar").write_bytes(TARS[name])
    with pytest.raises(ShardError) as refused:
        index_tars(tmp_path)
    assert f"{tmp_path}/a.tar: " in str(refused.value)
    with pytest.raises(SystemExit, match=r"a\.tar: "):
        Images.open([str(tmp_path / "a.tar")])
    outcome(str(refused.value).removeprefix(f"{tmp_path}/"))


def zip_of(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", b"abc" * 100)
    data = bytearray(out.getvalue())
    directory, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")

    def put(place: int, content: bytes) -> bytes:
        data[place : place + len(content)] = content
        return bytes(data)

    return {
        "with a damaged directory": lambda: put(directory, b"XX"),
        "that needs version 9.9": lambda: put(directory + 6, struct.pack("<H", 99)),
        "whose member lies beyond its end": lambda: put(directory + 42, struct.pack("<I", 0xFFFFFFF0)),
        "that was cut in front": lambda: bytes(data[30:]),
        "whose directory lies elsewhere": lambda: put(end + 16, struct.pack("<I", 0xFFFFFF)),
        "whose names are no UTF-8": lambda: (
            put(directory + 8, struct.pack("<H", 0x800)) and put(directory + 46, b"\xff")
        ),
        "whose member has 4 GB": lambda: put(directory + 20, struct.pack("<I", 0xFFFFFFFE)),
        "whose member has another checksum": lambda: put(directory + 16, b"none"),
    }[name]()


ZIPS = [
    "with a damaged directory", "that needs version 9.9", "whose member lies beyond its end", "that was cut in front",
    "whose directory lies elsewhere", "whose names are no UTF-8", "whose member has 4 GB",
    "whose member has another checksum",
]  # fmt: skip


@pytest.mark.promise(PROMISE, "a zip")
@pytest.mark.parametrize("name", ZIPS)
def test_damaged_zips(name, tmp_path, outcome):
    (tmp_path / "a.zip").write_bytes(zip_of(name))
    with pytest.raises((SystemExit, BadSample)) as refused:
        Images.open([str(tmp_path / "a.zip")]).read("a.jpg")
    assert "a.zip" in str(refused.value) or "a.jpg" in str(refused.value)
    outcome(str(refused.value).replace(f"{tmp_path}/", ""))


@pytest.mark.timeout(60)
@pytest.mark.promise("nothing waits for a pipe", "shards with a pipe, or a folder, under the name of")
@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", [MANIFEST, "shard-000000.tar", "shard-000000.idx.npz"])
def test_shards_that_are_no_files(name, kind, tmp_path, outcome):
    with ShardWriter(tmp_path / "shards") as writer:
        writer.write("a", [], {"caption": "x"})
    (tmp_path / "shards" / name).unlink()
    kind(tmp_path / "shards" / name)
    with pytest.raises(ShardError) as refused:
        ShardReader(tmp_path / "shards")
    assert f"{name}: is no file" in str(refused.value)
    assert [str(problem) for problem in verify(tmp_path / "shards") if "is no file" in str(problem)]
    outcome(str(refused.value).replace(f"{tmp_path}/", ""))


@pytest.mark.timeout(60)
@pytest.mark.promise("nothing waits for a pipe", "the journal of an unfinished conversion")
def test_a_journal_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / JOURNAL)
    assert Journal(tmp_path, {"program": "test"}).lines == {}
    assert (tmp_path / JOURNAL).is_file()


@pytest.mark.promise(PROMISE, "the _stats.json beside a tar is")
@pytest.mark.parametrize("text", ["{", "[]", "7", '{"successes": []}'])
def test_statistics_of_a_tar(text, tmp_path, outcome):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    Path(tmp_path / "a_stats.json").write_text(text)
    with pytest.raises(UserError, match=r"a_stats\.json") as refused:
        index_tars(tmp_path)
    outcome(str(refused.value).replace(f"{tmp_path}/", ""))
