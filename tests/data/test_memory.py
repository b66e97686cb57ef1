"""An index is in memory once, however many processes read it and however they were started."""

import multiprocessing
import os
import pickle

import numpy as np
import pytest

from dslight.data.records import read_sample
from dslight.data.shards import ShardReader, ShardWriter
from dslight.data.shards.format import Index, Member, Record, load_index
from dslight.data.shards.memory import SharedMemory


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five shards of seven records with keys of several lengths."""
    made = tmp_path_factory.mktemp("keys")
    with ShardWriter(made, shard_records=7) as writer:
        for i in range(33):
            talk = [{"from": "human", "value": f"{i}"}, {"from": "gpt", "value": "x" * i or "-"}]
            writer.write("k" * (1 + i % 4) + f"{i}", [], {"conversations": talk})
    return made


def look(reader: ShardReader, out) -> None:
    """In a process that was started: the memory that the index lies in, what it says, and a record."""
    file = os.stat(reader._memory.file).st_ino
    out.put(
        (file, {name: getattr(reader.index, name).tolist() for name in reader.index.arrays}, read_sample(reader, 20))
    )


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_process_that_is_started_has_the_memory_of_the_one_that_starts_it(start, root):
    reader, context = ShardReader(root), multiprocessing.get_context(start)
    out = context.Queue()
    process = context.Process(target=look, args=(reader, out))
    process.start()
    file, index, sample = out.get(timeout=240)
    process.join(60)
    assert file == os.stat(reader._memory.file).st_ino
    assert index == {name: getattr(reader.index, name).tolist() for name in reader.index.arrays}
    assert sample == read_sample(reader, 20)


def test_the_joined_index_is_the_shards_one_behind_the_other(root):
    reader = ShardReader(root)
    parts = [load_index(reader.root, shard) for shard in reader.manifest.shards]
    keys = [key for part in parts for key in part.keys.tolist()]
    assert reader.index.keys.tolist() == keys
    assert len({len(key) for key in keys}) > 3
    assert [reader.index.extension(m) for m in range(33)] == ["json"] * 33
    for name in ("offsets", "sizes", "hashes", "questions"):
        assert np.array_equal(getattr(reader.index, name), np.concatenate([getattr(part, name) for part in parts]))
    for shard, part in enumerate(parts):
        for row in range(len(part)):
            at = reader.index.members(reader.row(shard, row))
            assert len(at) == len(part.members(row))
            assert reader.index.hashes[at.start].tobytes() == part.hashes[part.members(row).start].tobytes()


def test_without_such_memory_the_index_is_read_again(root, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    reader = ShardReader(root)
    assert reader._memory is None
    again = pickle.loads(pickle.dumps(reader))
    assert again.index.keys.tolist() == reader.index.keys.tolist()
    assert read_sample(again, 3) == read_sample(reader, 3)


def test_a_copy_that_goes_to_no_new_process_reads_the_index_again(root):
    reader = ShardReader(root)
    assert len(pickle.dumps(reader)) < 1000
    assert read_sample(pickle.loads(pickle.dumps(reader)), 5) == read_sample(reader, 5)


def test_arrays_that_are_asked_for_in_the_same_order_are_the_same():
    shapes = [((3,), np.dtype("S5")), ((2, 16), np.dtype(np.uint8)), ((4,), np.dtype(np.int64))]
    memory = SharedMemory(sum(SharedMemory.room(*shape) for shape in shapes))
    ours = [memory.array(*shape) for shape in shapes]
    ours[0][:], ours[1][:], ours[2][:] = b"abcde", 7, np.arange(4)
    theirs = SharedMemory(memory.size, os.dup(memory.file))
    for array, shape in zip(ours, shapes, strict=True):
        assert np.array_equal(theirs.array(*shape), array)


def test_the_joined_index_of_a_single_shard_is_that_shards(root):
    reader = ShardReader(root)
    part = load_index(reader.root, reader.manifest.shards[0])
    alone, _ = Index.concatenate([part])
    for name in set(alone.arrays) - {"extensions"}:
        assert getattr(alone, name).tolist() == getattr(part, name).tolist()
    assert [alone.extension(m) for m in range(len(part.sizes))] == [one.decode() for one in part.extensions.tolist()]


@pytest.mark.parametrize("count", [256, 257])
def test_extensions_of_any_number_and_length_are_kept(count):
    """In a byte each, as long as they have numbers that fit."""
    given = [f"{i:x}.png".encode() for i in range(count)] + [b"1.jpg", b"a.depth.map.png"] * (count == 257)
    member = [Member(one.decode(), 512, 1, b"0" * 16) for one in given]
    parts = [Index.build([Record("a", tuple(member[:2]), 0)]), Index.build([Record("b", tuple(member[2:]), 0)])]
    joined, _ = Index.concatenate(parts)
    assert (joined.extensions.dtype == np.uint8) == (count == 256)
    assert [joined.extension(m) for m in range(len(given))] == [one.decode() for one in given]


def large(shard: int, records: int, apart: int) -> Index:
    """The index of a shard of many records, three members each, ``apart`` bytes from one to the next."""
    members = 3 * records
    return Index(
        keys=np.array([f"llava-{shard * records + k:09d}".encode() for k in range(records)]),
        first=np.arange(0, members + 1, 3),
        extensions=np.array([b"jpg", b"json", b"txt"] * records),
        offsets=np.arange(members, dtype=np.int64) * apart + 512,
        sizes=np.full(members, apart - 512),
        hashes=np.full((members, 16), shard, np.uint8),
        questions=np.zeros(records, np.int32),
    )


def test_what_is_asked_for_at_each_record_is_at_most_forty_bytes_of_it():
    joined, memory = Index.concatenate([large(i, 500, 100_000) for i in range(3)])
    assert memory is not None
    assert memory.size / len(joined) < 33
    assert memory.cold / len(joined) > 40  # hashes and keys, on disk
    assert joined.key(1499) == "llava-000001499"
    assert joined.hashes[4499].tobytes() == bytes([2]) * 16
    assert int(joined.offsets[4499]) == 1499 * 100_000 + 512


def test_numbers_of_large_shards_are_not_cut():
    joined, _ = Index.concatenate([large(0, 10, 1 << 28), large(1, 10, 1000)])
    assert int(joined.offsets[29]) == 29 * (1 << 28) + 512
    many = large(0, 10, 1000)
    many.questions[3] = 300
    assert Index.concatenate([many])[0].questions.tolist() == [0, 0, 0, 300, *[0] * 6]


def test_where_the_disk_has_no_room_all_of_it_is_in_memory(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    joined, _ = Index.concatenate([large(i, 20, 1000) for i in range(3)])
    assert joined.key(59) == "llava-000000059"
    assert joined.hashes[179].tobytes() == bytes([2]) * 16
