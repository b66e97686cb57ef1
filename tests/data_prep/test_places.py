"""Pictures stay in the tables that the `datasets` library has written; training reads what the shards would hold."""

import json
import os
from itertools import pairwise
from pathlib import Path

import fsspec
import numpy as np
import pytest
from sources import PHOTO, chat, encode

from data_prep.digits import write_tokenizer
from data_prep.entries import SourceError
from data_prep.pages import snappy_blocks
from data_prep.rows import arrow
from data_prep.tables import main as tables
from dslight.cli import main
from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.sample import parse_sample
from dslight.data.shards import Manifest, ShardError, ShardReader, verify
from dslight.data.shards.elsewhere import CODECS, Elsewhere, Place, unpack
from dslight.data.shards.memory import SharedMemory
from dslight.layout import SlotLayout

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def photo(side: int, seed: int, kind: str = "JPEG") -> bytes:
    return encode(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8), kind)


PICTURES = [photo(4 + 31 * (i % 12), i, ("JPEG", "PNG")[i % 2]) for i in range(30)]
"""From 0.1 to 360 kB: within a block of snappy, and over several."""
ROWS = [
    {
        "images": [{"bytes": PICTURES[j % 30], "path": f"{j}.png"} for j in range(i, i + i % 3)],
        "conversations": chat("<image>\n" * (i % 3) + f"A{i % 10}", str(i % 10)),
    }
    for i in range(30)
]
FEATURES = datasets.Features(
    {
        "images": datasets.List(datasets.Image()),
        "conversations": datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
    }
)


def made(rows=ROWS, features=FEATURES):
    return datasets.Dataset.from_list(rows, features=features)


def by_pyarrow(path: Path, table=None, **options: object) -> None:
    arrow().parquet.write_table(table or made().data.table.combine_chunks(), path, **options)


def as_file(path: Path, **options: object) -> None:
    table = made().data.table
    with arrow().ipc.new_file(path, table.schema, **options) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS = {
    "parquet": lambda root: made().to_parquet(str(root / "x.parquet")),
    "small row groups": lambda root: made().to_parquet(str(root / "x.parquet"), batch_size=4),
    "several files": lambda root: [
        made(ROWS[i : i + 10]).to_parquet(str(root / f"{i}.parquet")) for i in range(0, 30, 10)
    ],
    "snappy": lambda root: by_pyarrow(root / "x.parquet", use_dictionary=False),
    "dictionary": lambda root: by_pyarrow(root / "x.parquet"),
    "second pages": lambda root: by_pyarrow(root / "x.parquet", use_dictionary=False, data_page_version="2.0"),
    "zstd": lambda root: by_pyarrow(root / "x.parquet", compression="zstd", write_batch_size=1, data_page_size=1),
    "gzip": lambda root: by_pyarrow(root / "x.parquet", compression="gzip", write_batch_size=1, data_page_size=1),
    "stream": lambda root: made().save_to_disk(str(root)),
    "arrow": lambda root: as_file(root / "x.arrow"),
}


def convert(source: Path, out: Path, *options: str) -> Path:
    call = ["data", "convert", str(source), "--out", str(out), "--name", "n", "--shard-entries", "7", "--workers", "1"]
    assert main([*call, *options]) == 0
    return out


@pytest.mark.parametrize("name", WRITERS)
def test_every_record_is_that_of_the_shards(name, tmp_path):
    (tmp_path / "source").mkdir()
    WRITERS[name](tmp_path / "source")
    copied = ShardReader(convert(tmp_path / "source", tmp_path / "shards"), check="full")
    placed = ShardReader(convert(tmp_path / "source", tmp_path / "placed", "--in-place"), check="full")
    assert len(copied) == len(placed) == 30
    for row in range(30):
        assert placed.index.key(row) == copied.index.key(row)
        assert placed.read(row) == copied.read(row)
        assert {k: v[:9] for k, v in copied.read(row).items() if k != "json"} == {
            k: v for k, v in placed.read(row, head=9).items() if k != "json"
        }
    assert list(verify(tmp_path / "placed")) == []
    assert sum(path.stat().st_size for path in (tmp_path / "placed").glob("*.tar")) < 100_000
    assert json.loads((tmp_path / "placed" / "report.json").read_text())["changed"] == {}


def batches(root: Path, tokens: Path, skip: int = 0) -> list:
    """Two epochs of batches; with ``skip``, those behind a checkpoint after so many."""
    from transformers import AutoTokenizer

    def loader():
        module = ShardData([str(root)], SingleView(), 4, template="bare", max_length=60)
        module.connect(AutoTokenizer.from_pretrained(tokens), (8, 8), SlotLayout((2, 2)))
        module.setup("fit")
        return module.train_dataloader()

    first = loader()
    if skip:
        stream = iter(first)
        for _ in range(skip):
            next(stream)
        state = first.state_dict()
        first = loader()
        first.load_state_dict(state)
    return [batch for _ in range(2) for batch in first]


def same(a, b) -> bool:
    return (
        a.keys == b.keys
        and a.input_ids.equal(b.input_ids)
        and a.labels.equal(b.labels)
        and a.views.pixels.equal(b.views.pixels)
    )


def test_batches_and_resume_are_those_of_the_shards(tmp_path):
    made().to_parquet(str(tmp_path / "x.parquet"))
    write_tokenizer(tmp_path / "tokens")
    shards = batches(convert(tmp_path / "x.parquet", tmp_path / "shards"), tmp_path / "tokens")
    placed = convert(tmp_path / "x.parquet", tmp_path / "placed", "--in-place")
    found = batches(placed, tmp_path / "tokens")
    assert len(found) == len(shards) == 14
    assert all(map(same, found, shards))
    resumed = batches(placed, tmp_path / "tokens", skip=3)
    assert all(map(same, resumed[:4], shards[3:7]))


def read_all(reader):
    return [reader.read(row) for row in range(len(reader))]


def test_a_process_that_is_started_reads_there_without_looking_at_the_tables_again(tmp_path, monkeypatch):
    made().to_parquet(str(tmp_path / "x.parquet"))
    reader = ShardReader(convert(tmp_path / "x.parquet", tmp_path / "out", "--in-place"))
    monkeypatch.setattr("dslight.data.shards.reader.is_starting", lambda: True)
    remake, given = reader.__reduce__()
    monkeypatch.setattr("dslight.data.shards.elsewhere.end_sha256", None)
    *others, memory, arrays, names = given
    received = SharedMemory(memory.size, os.dup(memory.file), memory.cold, os.dup(memory.cold_file))
    assert read_all(remake(*others, received, arrays, names)) == read_all(reader)


def test_tables_below_the_folder_may_be_moved_with_it(tmp_path):
    (tmp_path / "a" / "tables").mkdir(parents=True)
    made().to_parquet(str(tmp_path / "a" / "tables" / "x.parquet"))
    convert(tmp_path / "a" / "tables", tmp_path / "a", "--in-place")
    (tmp_path / "a").rename(tmp_path / "b")
    reader = ShardReader(tmp_path / "b", check="full")
    assert parse_sample("k", reader.read(1)).images == (PICTURES[1],)


def test_a_table_that_is_missing_or_another_is_named_before_the_first_step(tmp_path):
    path = tmp_path / "x.parquet"
    made().to_parquet(str(path))
    out = convert(path, tmp_path / "out", "--in-place")
    whole = path.read_bytes()
    made(ROWS[:20]).to_parquet(str(path))
    with pytest.raises(ShardError, match=r"x\.parquet: is not the file that .*out was made of"):
        ShardReader(out)
    assert ["is not the file" in str(problem) for problem in verify(out)] == [True]
    path.unlink()
    with pytest.raises(ShardError, match=r"x\.parquet: missing; the pictures of .*out lie in it"):
        ShardReader(out)
    os.mkfifo(path)  # which would be waited for
    with pytest.raises(ShardError, match="missing"):
        ShardReader(out)
    path.unlink()
    path.write_bytes(whole)
    at = whole.index(PICTURES[4])
    path.write_bytes(whole[:at] + bytes(50) + whole[at + 50 :])
    with pytest.raises(ShardError, match=r"n-000000004\.jpg: .*x\.parquet: its bytes at \d+ were changed"):
        read_all(ShardReader(out, check="full"))
    assert [problem.key for problem in verify(out)] == ["n-000000004"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (b"short", "a place has 64 bytes, this one 5"),
        (Place(1, 0, 0, 9, 9, 0, 9, b""), r"is no place in 1 files: Place\(file=1, codec=0"),
        (Place(0, 9, 0, 9, 9, 0, 9, b""), "is no place in 1 files"),
        (Place(0, 0, 0, 9, 99, 5, 9, b""), "is no place in 1 files"),
        (Place(0, 1, 0, 9, 1 << 40, 5, 9, b""), "1,099,511,627,776 bytes unpacked; at most"),
        (Place(0, 0, 1 << 40, 9, 9, 0, 9, b""), "0 of 9 bytes are left"),
        (Place(0, 1, 0, 9, 100, 0, 9, b""), "does not unpack"),
    ],
)
def test_a_place_that_is_none_is_a_sentence(place, message, tmp_path):
    (tmp_path / "x").write_bytes(bytes(range(100)))
    out = Elsewhere(tmp_path, Manifest((), {"in_place": [{"file": "x", "bytes": 1, "end_sha256": ""}]}), check=False)
    with pytest.raises(ValueError, match=message):
        out.fill({"jpg.at": place if isinstance(place, bytes) else place.to_bytes()}, None, False)


def test_a_manifest_with_no_list_of_files_is_refused(tmp_path):
    made().to_parquet(str(tmp_path / "x.parquet"))
    out = convert(tmp_path / "x.parquet", tmp_path / "out", "--in-place")
    manifest = Manifest.load(out)
    for odd in (None, [{"file": 3}], [{"file": "x", "bytes": True, "end_sha256": ""}]):
        Manifest(manifest.shards, {**manifest.meta, "in_place": odd}).save(out)
        with pytest.raises(ShardError, match="in_place is no list of files"):
            ShardReader(out)


def test_what_cannot_be_read_alone_is_refused_with_what_to_do(tmp_path):
    pa = arrow()
    picture = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    noise = np.random.default_rng(0)
    big = [{"bytes": photo(4, i) + noise.bytes(90_000), "path": None} for i in range(60)]
    table = pa.table({"image": pa.array(big, picture), "caption": [f"c{i}" for i in range(60)]})
    for name, options, message in (
        (
            "delta",
            {"column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"}},
            "written as DELTA_LENGTH_BYTE_ARRAY",
        ),
        ("zstd", {"compression": "zstd"}, "bytes that are packed by zstd as one"),
    ):
        path = tmp_path / f"{name}.parquet"
        by_pyarrow(path, table, use_dictionary=False, **options)
        with pytest.raises((SourceError, SystemExit), match=rf"{name}\.parquet: .*{message}.*leave out --in-place"):
            tables([str(path), "--out", str(tmp_path / name), "--in-place", "--workers", "1"])
    as_file(tmp_path / "x.arrow", options=pa.ipc.IpcWriteOptions(compression="lz4"))
    with pytest.raises((SourceError, SystemExit), match=r"x\.arrow: .*is packed"):
        tables([str(tmp_path / "x.arrow"), "--out", str(tmp_path / "out"), "--in-place", "--workers", "1"])
    fsspec.filesystem("memory").pipe("/x.parquet", (tmp_path / "zstd.parquet").read_bytes())
    with pytest.raises(SourceError, match=r"--in-place: memory:///x\.parquet is no local file"):
        tables(["memory:///x.parquet", "--out", str(tmp_path / "out"), "--in-place"])


def test_pictures_that_no_column_holds_are_copied_and_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(PHOTO))
    rows = {"image": ["a.png"], "question": ["Q"], "answer": ["A"]}
    arrow().parquet.write_table(arrow().table(rows), tmp_path / "x.parquet")
    out = convert(tmp_path / "x.parquet", tmp_path / "out", "--in-place", "--images", str(tmp_path))
    assert parse_sample("k", ShardReader(out).read(0)).images == (encode(PHOTO),)
    report = json.loads((out / "report.json").read_text())
    assert report["changed"]["picture copied, as no column holds its bytes"] == 1


def test_blocks_of_snappy_unpack_one_by_one(tmp_path):
    pa = arrow()
    noise = np.random.default_rng(0)
    for data in (
        noise.bytes(200_000),
        b"ab" * 100_000,
        noise.bytes(65_536),
        b"x",
        bytes(65_537),
        noise.bytes(300) * 900,
    ):
        packed = memoryview(pa.compress(data, codec="snappy", asbytes=True))
        starts = [*snappy_blocks(packed), len(packed)]
        assert len(starts) - 1 == -(-len(data) // 65_536)
        pieces = [
            unpack(bytes(packed[a:b]), "snappy", min(65_536, len(data) - 65_536 * i))
            for i, (a, b) in enumerate(pairwise(starts))
        ]
        assert b"".join(pieces) == data
    # a copy of 4 bytes, from 4 bytes before it, which lie in the block before
    needs_the_first = b"\x84\x80\x04" + bytes((61 << 2, 0xFF, 0xFF)) + bytes(65_536) + bytes((3 << 2 | 2, 4, 0))
    assert pa.decompress(needs_the_first, 65_540, codec="snappy", asbytes=True) == bytes(65_540)
    assert snappy_blocks(memoryview(needs_the_first)) == [3]
    with pytest.raises(SourceError, match=r"is damaged|is cut"):
        snappy_blocks(memoryview(pa.compress(noise.bytes(999), codec="snappy", asbytes=True))[:-1])


def test_all_ways_of_packing_are_known_to_pyarrow():
    for codec in CODECS[1:]:
        packed = arrow().compress(b"abc" * 999, codec=codec, asbytes=True)
        assert unpack(packed[2:] if codec == "snappy" else packed, codec, 2997) == b"abc" * 999
