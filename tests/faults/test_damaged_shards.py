"""Finished shards are cut, flipped, moved or mixed up: nothing is read from them, and nobody trains on them."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path

import pytest
from processes import a_minute

from data_prep.verify import main as verify_main
from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.shards import ShardError, ShardReader, ShardWriter, index_name, verify
from dslight.layout import SlotLayout

SHARD = "shard-000001.tar"


@pytest.mark.fault(5)
def test_a_shard_cut_at_any_block_under_an_open_reader_gives_whole_records_or_an_error(write_shards, tries, tmp_path):
    root = write_shards(tmp_path, 14)
    whole, reader = (root / SHARD).read_bytes(), ShardReader(root)
    records = [reader.read(row) for row in range(14)]
    for size in range(len(whole), -1, -512):
        os.truncate(root / SHARD, size)  # the same file, that the reader has open
        with tries.one():
            refused = 0
            for row in range(7, 14):
                message = ""
                try:
                    assert reader.read(row) == records[row]
                except ShardError as error:
                    message, refused = str(error), refused + 1
                assert not message or f"{SHARD}: {reader.index.key(row)}." in message
            end = int((reader.index.offsets + reader.index.sizes)[-1])
            assert (refused > 0) == (size < end)


@pytest.mark.fault(5)
def test_the_program_that_verifies_names_shard_and_key_of_a_cut_shard(write_shards, capsys, tmp_path):
    root = write_shards(tmp_path, 14)
    whole = (root / SHARD).read_bytes()
    (root / SHARD).write_bytes(whole[: len(whole) // 1024 * 512])
    with pytest.raises(SystemExit) as left:
        verify_main([str(root)])
    assert left.value.code == 1
    assert f"{SHARD}: a-0013: " in capsys.readouterr().out


@pytest.mark.fault(6)
def test_each_of_200_flipped_bits_is_found_by_verify_and_inside_a_record_also_by_reading(write_shards, tries, tmp_path):
    root = write_shards(tmp_path, 14)
    whole, index = (root / SHARD).read_bytes(), ShardReader(root).index
    rng = random.Random(0)
    for _ in range(200):
        position = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        (root / SHARD).write_bytes(damaged)
        with tries.one():
            problems = list(verify(root))
            assert SHARD in {problem.shard for problem in problems}
            m = next((m for m in range(14, 28) if 0 <= position - index.offsets[m] < index.sizes[m]), None)
            if m is not None:
                key = index.key(index.row_of(m))
                assert key in {problem.key for problem in problems}
                with pytest.raises(ShardError, match=f"{SHARD}: {key}"):
                    ShardReader(root, check="full").read(index.row_of(m))


@pytest.mark.fault(6)
@pytest.mark.parametrize("workers", [0, 1])
def test_training_with_full_checks_stops_at_a_flipped_bit(workers, write_shards, tokenizer, tmp_path):
    root = write_shards(tmp_path, 14)
    index = ShardReader(root).index
    damaged = bytearray((root / SHARD).read_bytes())
    damaged[int(index.offsets[14]) + 9] ^= 1  # the json of a-0007, or its picture
    (root / SHARD).write_bytes(damaged)
    module = ShardData([str(root)], SingleView(), 2, template="bare", check="full", max_length=40, num_workers=workers)
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    module.setup("fit")
    with pytest.raises(ShardError, match=f"{SHARD}: a-0007"):
        list(module.train_dataloader())


# --- whole files that are not what they were
# ---------------------------------------------------------------------------


def delete(root: Path) -> str:
    (root / SHARD).unlink()
    return rf"{SHARD}: missing, with its 20 records"


def rename(root: Path) -> str:
    (root / SHARD).rename(root / "shard-000007.tar")
    return rf"{SHARD}: missing"


def swap(root: Path) -> str:
    first = root / "shard-000000.tar"
    first.rename(root / "x")
    (root / SHARD).rename(first)
    (root / "x").rename(root / SHARD)
    return r"shard-000000\.tar: begins with [\w-]+\.\w+, its index with [\w-]+\.\w+; shards were"


def swap_with_indexes(root: Path) -> str:
    swap(root)
    first, second = (root / index_name(name) for name in ("shard-000000.tar", SHARD))
    first.rename(root / "x")
    second.rename(first)
    (root / "x").rename(second)
    return r"shard-000000\.idx\.npz: is not the index that the manifest names"


def stale_index(root: Path) -> str:
    other = root.parent / "earlier"
    with ShardWriter(other, shard_records=20) as writer:
        for i in range(40):
            writer.write(f"old-{i}", [], {"conversations": []})
    shutil.copy(other / index_name(SHARD), root / index_name(SHARD))
    return r"shard-000001\.idx\.npz: is not the index that the manifest names"


def edit_manifest(root: Path) -> str:
    path = root / "manifest.json"
    body = json.loads(path.read_text())
    body["shards"] = body["shards"][::-1]
    path.write_text(json.dumps(body))
    return r"manifest\.json: its checksum does not fit"


def delete_manifest(root: Path) -> str:
    (root / "manifest.json").unlink()
    return r"manifest\.json: missing\. The folder holds no finished shards"


DAMAGES = [delete, rename, swap, swap_with_indexes, stale_index, edit_manifest, delete_manifest]


@pytest.mark.fault(7)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_the_reader_refuses_to_open_them(damage, write_shards, tmp_path):
    root = write_shards(tmp_path / "shards", 60, shard_records=20)
    named = damage(root)
    with pytest.raises(ShardError, match=named):
        ShardReader(root)


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    "damage",
    [swap, *(pytest.param(each, marks=pytest.mark.slow) for each in DAMAGES if each is not swap)],
    ids=lambda damage: damage.__name__,
)
def test_both_ranks_of_a_run_end_before_the_first_step(damage, pages, recipe, dslight, tmp_path):
    root = tmp_path / "train"
    shutil.copytree(pages / "train", root)
    split(root)
    named = damage(root)
    call = ["fit", str(recipe), f"run_dir={tmp_path / 'run'}", f"data.train=[{root}]"]
    ended = dslight(*call, ranks=2, WITNESS=str(tmp_path))
    assert ended.seconds < a_minute()
    for code, output in zip(ended.codes, ended.outputs, strict=True):
        assert code == 1
        last = output.strip().splitlines()[-1]
        assert last.startswith("dslight: data.train[0].root: ")
        assert re.search(named, last)
    assert not list(tmp_path.glob("rank*.jsonl"))


def split(root: Path) -> None:
    """The same records in shards of 20."""
    reader = ShardReader(root)
    records = [(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]
    shutil.rmtree(root)
    with ShardWriter(root, shard_records=20) as writer:
        for key, members in records:
            writer.write(key, [members["png"]], json.loads(members["json"]))
