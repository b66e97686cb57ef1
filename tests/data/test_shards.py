"""Writing, reading and verifying shards, and what happens to them when things go wrong."""

import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from dslight.data.shards import (
    Manifest,
    ShardError,
    ShardReader,
    ShardWriter,
    image_extension,
    index_name,
    index_tars,
    name_of_record,
    tar,
    verify,
)


def keys_of(problems) -> set[str]:
    return {problem.key for problem in problems}


def folder_bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if not path.name.startswith(".")}


def test_every_record_is_read_back_by_number(tmp_path, write_shards):
    reader = ShardReader(write_shards(tmp_path, 20), check="full")
    assert len(reader) == 20
    assert len(reader.manifest.shards) == 3
    for row in (19, 0, 7, 6):
        members = reader.read(row)
        assert json.loads(members["json"])["id"] == f"a{row}"
        assert members["png"].startswith(b"\x89PNG")
        assert reader.locate(row)[1] == f"a-{row:04d}"


def test_the_webdataset_library_reads_the_same_records(tmp_path, write_shards):
    reader = ShardReader(write_shards(tmp_path, 20))
    paths = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(paths, shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == [f"a-{i:04d}" for i in range(20)]
    for row, sample in enumerate(theirs):
        assert reader.read(row) == {name: sample[name] for name in ("png", "json")}


def test_several_images_and_none_are_members_of_one_record(tmp_path, png):
    red, blue = (png(np.full((4, 4, 3), color, np.uint8)) for color in ([255, 0, 0], [0, 0, 255]))
    with ShardWriter(tmp_path) as writer:
        writer.write("two", [red, blue], {})
        writer.write("none", [], {})
    reader = ShardReader(tmp_path)
    assert reader.read(0)["0.png"] == red
    assert reader.read(0)["1.png"] == blue
    assert json.loads(reader.read(0)["json"])["images"] == ["0.png", "1.png"]
    assert set(reader.read(1)) == {"json"}


def test_the_same_records_make_the_same_bytes(tmp_path, write_shards):
    first = folder_bytes(write_shards(tmp_path / "1", 20))
    time.sleep(2.1)  # a zip stamps even seconds, a tar seconds
    assert folder_bytes(write_shards(tmp_path / "2", 20)) == first


def test_an_extension_comes_from_the_bytes(png):
    picture = np.zeros((4, 4, 3), np.uint8)
    for kind, extension in (
        ("PNG", "png"),
        ("JPEG", "jpg"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
    ):
        assert image_extension(png(picture, kind)) == extension
    with pytest.raises(ValueError, match="not a PNG"):
        image_extension(b"<html>404</html>")


def test_a_reader_pickles_to_its_folder_and_not_its_index(tmp_path, write_shards):
    reader = ShardReader(write_shards(tmp_path, 20), check="full")
    data = pickle.dumps(reader)
    assert len(data) < 500
    copy = pickle.loads(data)
    assert copy.check == "full"
    assert copy.read(11) == reader.read(11)


def test_a_record_has_its_name_where_there_is_no_reader(tmp_path, write_shards):
    reader = ShardReader(write_shards(tmp_path, 20))
    assert len(reader.manifest.shards) > 1
    for row in range(20):
        shard, key = reader.locate(row)
        assert name_of_record(tmp_path, row) == f"{tmp_path / shard.name}: {key}"
    assert name_of_record(tmp_path, 20) == f"{tmp_path}: record 20"
    (tmp_path / reader.manifest.shards[0].index_name).unlink()
    assert name_of_record(tmp_path, 0) == f"{tmp_path}: record 0"
    assert name_of_record(tmp_path / "gone", 3) == f"{tmp_path / 'gone'}: record 3"


@pytest.mark.parametrize("key", ["with.dot", "Upper", "a/b", "ü", "", "x" * 81])
def test_a_key_that_webdataset_would_misread_is_refused(key, tmp_path):
    with pytest.raises(ValueError, match="only a-z"), ShardWriter(tmp_path) as writer:
        writer.write(key, [], {})


def test_a_key_written_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'a': written twice"), ShardWriter(tmp_path) as writer:  # noqa: PT012
        writer.write("a", [], {})
        writer.write("a", [], {})


# --- the writer is interrupted
# -------------------------------------------------------------------------------------------------


def write_slowly(root: Path) -> None:
    rng = np.random.default_rng(1)
    with ShardWriter(root, shard_records=5) as writer:
        for i in range(100):
            writer.write(f"k-{i:04d}", [b"\xff\xd8\xff" + rng.bytes(3000)], {"id": i})


def test_a_killed_writer_leaves_only_whole_shards_and_a_second_run_makes_the_same_bytes(tmp_path):
    context = multiprocessing.get_context("fork")
    write_slowly(tmp_path / "whole")
    expected = folder_bytes(tmp_path / "whole")
    pauses = random.Random(0)
    unfinished = 0
    for attempt in range(8):
        root = tmp_path / f"killed{attempt}"
        process = context.Process(target=write_slowly, args=(root,))
        process.start()
        while len(list(root.glob("*.tar"))) < 2 * attempt and process.is_alive():
            pass
        time.sleep(pauses.uniform(0, 0.003))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if not (root / "manifest.json").exists():
            unfinished += 1
            for path in root.glob("*.tar"):  # what is visible is whole
                assert path.read_bytes() == expected[path.name]
            with pytest.raises(ShardError, match=r"no finished shards|there is no such folder"):
                ShardReader(root)
            write_slowly(root)
        assert folder_bytes(root) == expected
    assert unfinished >= 3


def test_a_shard_gets_its_name_only_by_renaming_the_whole_file(tmp_path, monkeypatch):
    def refuse(source, target):
        assert source.stat().st_size % 10240 == 0  # a tar with its end
        raise OSError("no rename today")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no rename today"), ShardWriter(tmp_path) as writer:
        writer.write("a", [], {})
    assert list(tmp_path.iterdir()) == []


def fill_disk(root: Path, out) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # stands in for a full disk: EFBIG for ENOSPC
    try:
        write_slowly(root)
    except OSError as error:
        out.put((str(error), sorted(path.name for path in root.iterdir())))


def test_a_full_disk_is_named_with_the_shard_and_leaves_no_part_of_it(tmp_path):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    process = context.Process(target=fill_disk, args=(tmp_path / "shards", out))
    process.start()
    message, left = out.get(timeout=240)
    process.join()
    assert "shard-000000.tar" in message
    assert "bytes; this shard is given up" in message
    assert left == []


def test_an_exception_in_the_producer_finalises_nothing(tmp_path):
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, shard_records=3) as writer:  # noqa: PT012
        for i in range(5):
            writer.write(f"k{i}", [], {})
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["shard-000000.tar"]
    assert not list(tmp_path.glob(".*.tmp"))
    with pytest.raises(ShardError, match=r"manifest\.json: missing"):
        ShardReader(tmp_path)


def test_a_second_writer_on_the_same_folder_is_refused(tmp_path):
    with ShardWriter(tmp_path), pytest.raises(ShardError, match="another writer"), ShardWriter(tmp_path):
        pass


def test_finished_shards_are_not_written_over(tmp_path, write_shards):
    write_shards(tmp_path, 3)
    with pytest.raises(ShardError, match="are finished"), ShardWriter(tmp_path):
        pass


# --- the shards are damaged
# ----------------------------------------------------------------------------------------------------


def test_intact_shards_have_no_problem(tmp_path, write_shards):
    assert list(verify(write_shards(tmp_path, 20))) == []


def test_a_shard_cut_at_any_block_is_named_by_verify_and_refused_by_the_reader(tmp_path, write_shards):
    root = write_shards(tmp_path, 20)
    path = root / "shard-000001.tar"
    whole = path.read_bytes()
    for size in range(0, len(whole), 512):
        path.write_bytes(whole[:size])
        problems = list(verify(root))
        assert {problem.shard for problem in problems} == {path.name}
        lost = {key for key in keys_of(problems) if key}
        assert lost, size
        with pytest.raises(ShardError, match=r"shard-000001\.tar: has \d+ bytes"):
            ShardReader(root)
    path.write_bytes(whole[:0])
    assert {f"a-{i:04d}" for i in range(7, 14)} <= keys_of(verify(root))


def test_a_shard_cut_after_it_was_opened_never_gives_a_partial_record(tmp_path, write_shards):
    root = write_shards(tmp_path, 7)
    reader = ShardReader(root)
    path = root / "shard-000000.tar"
    offset = int(reader.index.offsets[5])
    os.truncate(path, offset + 3)
    with pytest.raises(ShardError, match=r"a-0002\.png at byte \d+: 3 of \d+ bytes are left"):
        reader.read(2)


def test_every_flipped_bit_is_found_and_named(tmp_path, write_shards):
    root = write_shards(tmp_path, 7)
    path = root / "shard-000000.tar"
    whole = path.read_bytes()
    index = ShardReader(root).index
    rng = random.Random(0)
    for _ in range(100):
        position = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        problems = list(verify(root))
        assert problems, position
        inside = [m for m in range(14) if 0 <= position - index.offsets[m] < index.sizes[m]]
        if inside:
            row = index.row_of(inside[0])
            assert keys_of(problems) == {index.key(row)}
            with pytest.raises(ShardError, match=index.key(row)):
                ShardReader(root, check="full").read(row)


def test_a_bit_outside_the_data_is_named_by_the_record_it_belongs_to(tmp_path, write_shards):
    root = write_shards(tmp_path, 7)
    path, index = root / "shard-000000.tar", ShardReader(root).index
    whole = path.read_bytes()
    header, padding = int(index.offsets[4]) - 400, int(index.offsets[4] + index.sizes[4])
    for position, what in ((header, "tar header"), (padding, "padding after it")):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        (problem,) = verify(root)
        assert problem.key == "a-0002"
        assert what in problem.what


def test_missing_foreign_and_stale_files_are_each_named(tmp_path, write_shards):
    root = write_shards(tmp_path / "good", 20)
    first, second = root / "shard-000000.tar", root / "shard-000001.tar"
    (root / "shard-000009.tar").write_bytes(first.read_bytes())
    assert [str(problem) for problem in verify(root)] == [
        "shard-000009.tar: is not in the manifest, so no reader sees it"
    ]
    assert len(ShardReader(root)) == 20
    (root / "shard-000009.tar").unlink()

    (root / index_name(first.name)).write_bytes((root / index_name(second.name)).read_bytes())
    assert "stale or damaged" in str(next(iter(verify(root))))
    with pytest.raises(ShardError, match=r"shard-000000\.idx\.npz"):
        ShardReader(root)

    other = write_shards(tmp_path / "other", 20)
    (other / second.name).unlink()
    assert "is missing, with its 7 records" in str(next(iter(verify(other))))
    with pytest.raises(ShardError, match=r"shard-000001\.tar: missing"):
        ShardReader(other)


def test_swapped_shards_are_found(tmp_path, write_shards):
    root = write_shards(tmp_path, 14)
    first, second = root / "shard-000000.tar", root / "shard-000001.tar"
    first.rename(root / "x")
    second.rename(first)
    (root / "x").rename(second)
    assert {problem.shard for problem in verify(root)} == {first.name, second.name}


def test_an_edited_manifest_is_refused(tmp_path, write_shards):
    root = write_shards(tmp_path, 7)
    path = root / "manifest.json"
    path.write_text(path.read_text().replace('"records": 7', '"records": 6'))
    with pytest.raises(ShardError, match="edited or damaged"):
        Manifest.load(root)


# --- tars of others
# ------------------------------------------------------------------------------------------------------------


def foreign(root: Path, keys: list[str]) -> Path:
    root.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(root / "00000.tar")) as writer:
        for i, key in enumerate(keys):
            writer.write({"__key__": key, "jpg": b"\xff\xd8\xff" + bytes([i]), "txt": f"caption {i}"})
    (root / "00000_stats.json").write_text(json.dumps({"successes": len(keys)}))
    return root


def test_tars_of_other_tools_are_indexed_in_place_and_read(tmp_path):
    root = foreign(tmp_path / "laion", ["000000000", "000000001", "Ünïcode key"])
    index_tars(root)
    reader = ShardReader(root, check="full")
    assert reader.read(1)["txt"] == b"caption 1"
    assert reader.locate(2)[1] == "Ünïcode key"
    assert list(verify(root)) == []


def test_a_foreign_tar_cut_between_samples_is_refused_not_shortened(tmp_path):
    """The streaming reader of the webdataset library gives the shorter shard without a word."""
    root = foreign(tmp_path / "laion", ["a", "b", "c"])
    path = root / "00000.tar"
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[4].offset
    os.truncate(path, cut)
    assert len(list(webdataset.WebDataset(str(path), shardshuffle=False))) == 2
    with pytest.raises(ShardError, match=r"00000\.tar: does not end as a tar after b"):
        index_tars(root)
    with path.open("ab") as file:
        file.write(bytes(1024))  # even with a proper end, the tool's own count tells
    with pytest.raises(ShardError, match=r"has 2 records, 00000_stats\.json says another"):
        index_tars(root)


def test_two_members_that_their_bytes_call_alike_are_refused(tmp_path):
    picture = b"\x89PNG\r\n\x1a\n" + bytes(504)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in ("a", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture))
    with pytest.raises(ShardError, match=r"0\.tar: a: two of its members would be called \.png"):
        index_tars(tmp_path)


def test_a_key_that_occurs_twice_in_foreign_tars_is_refused(tmp_path):
    root = foreign(tmp_path / "laion", ["a", "b", "a"])
    with pytest.raises(ShardError, match="a: the key occurs twice"):
        index_tars(root)


# --- the bytes of a tar
# --------------------------------------------------------------------------------------------------------


def test_a_tar_is_the_one_that_webdatasets_writer_makes(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [0, 1, 511, 512, 513, 10_240, *rng.integers(0, 3000, 60).tolist()]
    records = [(f"key-{i}" + "x" * int(rng.integers(0, 70)), rng.bytes(size)) for i, size in enumerate(sizes)]
    with webdataset.TarWriter(str(tmp_path / "theirs.tar"), encoder=False, mtime=0) as writer:
        for key, data in records:
            writer.write({"__key__": key, "png": data, "json": b"{}"})
    members = [(f"{key}.{name}", data) for key, png in records for name, data in (("json", b"{}"), ("png", png))]
    ours = b"".join(tar.member(*member) for member in members)
    assert ours + tar.ending(len(ours)) == (tmp_path / "theirs.tar").read_bytes()


def test_a_tar_member_that_needs_more_than_one_header_is_refused():
    with pytest.raises(ValueError, match="more than one tar header"):
        tar.member("x" * 101, b"")


def test_data_are_converted_without_torch():
    program = (
        "import sys, data_prep.llava, data_prep.messages, dslight.data.shards.writer; print('torch' in sys.modules)"
    )
    call = [sys.executable, "-c", program]
    assert subprocess.run(call, capture_output=True, text=True, check=True).stdout == "False\n"
