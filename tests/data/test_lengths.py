"""Lengths that are counted from heads of files are those of the rows that training makes."""

import json
import logging
import multiprocessing
import os
import signal
import time
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dslight.data.caches.lengths import Measure, image_size, lengths_of
from dslight.data.conversation import template
from dslight.data.datamodule import ShardData, ValSource
from dslight.data.images import AnyResViews, AspectGridViews, SingleView
from dslight.data.plan import Order
from dslight.data.sample import BadSample, decode_image
from dslight.data.shards import ShardReader, ShardWriter
from dslight.layout import SlotLayout

SLOTS = SlotLayout((2, 2), crops=True, newline=True, unpad=True)


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, png) -> Path:
    """Images of many shapes and formats, several to a record, turned ones, large ones, and text alone."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("mixed")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
    with ShardWriter(root, shard_records=7) as writer:
        for i in range(30):
            height, width = (int(x) for x in rng.integers(5, 40, 2))
            array = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            large = rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)
            images = {
                0: [png(array, "JPEG", exif=exif)],
                1: [png(array), png(array[: height // 2 + 1])],
                2: [],
                3: [png(array, "WEBP")],
                4: [png(large)],  # more than a head of it
                5: [png(large, "JPEG", comment=b"x" * 40_000, quality=30)],  # its size stands behind the comment
            }[i % 6]
            text = "".join("<image>\n" for _ in images) + "A1" * int(rng.integers(1, 5))
            writer.write(f"m-{i:02d}", images, {"conversations": turns(text, str(i), "B2 C3", "7" * (i % 4 + 1))})
    return root


def module(root: Path, tokenizer, views, slots=SLOTS, **settings) -> ShardData:
    made = ShardData([str(root)], views, 1, template="vicuna_v1", max_length=10_000, **settings)
    made.connect(tokenizer, (8, 8), slots)
    return made


@pytest.mark.parametrize(
    ("views", "slots"),
    [(AnyResViews(), SLOTS), (AspectGridViews(4), SlotLayout((2, 2), crops=True)), (SingleView(), SlotLayout((3, 3)))],
    ids=lambda value: type(value).__name__ if not isinstance(value, SlotLayout) else "",
)
@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_lengths_are_those_of_the_rows(mixed, tokenizer, views, slots, exif, tmp_path):
    data = module(mixed, tokenizer, views, slots, exif=exif)
    data.setup("fit")
    dataset = data.train_dataloader().dataset
    rows = [data.processor.collate([dataset[i]]) for i in range(30)]
    expected = [row.input_ids.shape[1] * (1 if row.visual_mask.any() else -1) for row in rows]
    measure = Measure(template("vicuna_v1"), "vicuna_v1", tokenizer, views, (8, 8), slots, exif)
    reader = ShardReader(mixed)
    assert lengths_of(reader, measure, tmp_path).tolist() == expected
    (file,) = tmp_path.glob("*.npy")
    assert file.name == f"lengths.{measure.hash}.npy"
    assert np.load(file).tolist() == expected  # numpy reads it as it is


def test_the_size_of_an_image_is_that_of_its_pixels(mixed):
    reader = ShardReader(mixed)
    for row in range(len(reader)):
        members = reader.read(row)
        for name in json.loads(members["json"])["images"]:
            for exif in ("apply", "ignore"):
                assert image_size(members[name], exif) == decode_image(members[name], exif=exif).shape[:2]


def test_the_plan_measures_a_turned_image_as_the_rows_have_it(tokenizer, tmp_path, png):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # orientation 6
    with ShardWriter(tmp_path / "turned") as writer:
        for i in range(2):
            image = png(np.zeros((8, 20, 3), np.uint8), "JPEG", exif=exif)
            writer.write(f"t-{i}", [image], {"conversations": turns("<image>\nA1", "B2")})
    lengths = {}
    for policy in ("apply", "ignore"):
        data = module(tmp_path / "turned", tokenizer, AnyResViews(), exif=policy, order=Order(group_by=["length"]))
        data.setup("fit")
        (measured,) = {int(length) for length in data._plan.sources[0].lengths}
        row = data.processor.collate([data.train_dataloader().dataset[0]])
        assert measured == row.input_ids.shape[1]
        assert row.views.grids == [(3, 1) if policy == "apply" else (1, 3)]
        lengths[policy] = measured
    assert lengths["apply"] != lengths["ignore"]  # one newline slot per row


def measure_of(tokenizer, name="vicuna_v1", views=None, slots=SLOTS, exif="apply") -> Measure:
    return Measure(template(name), name, tokenizer, views or AnyResViews(), (8, 8), slots, exif)


def test_the_hash_changes_with_all_that_changes_lengths(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["<new>"])
    measures = [
        measure_of(tokenizer),
        measure_of(other),
        measure_of(tokenizer, "chatml"),
        measure_of(tokenizer, views=AnyResViews([(2, 2)])),
        measure_of(tokenizer, slots=SlotLayout((3, 3), crops=True, newline=True, unpad=True)),
        measure_of(tokenizer, slots=SlotLayout((2, 2), crops=True)),
        measure_of(tokenizer, exif="ignore"),
    ]
    assert len({measure.hash for measure in measures}) == len(measures)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert measure_of(again).hash == measures[0].hash


def test_lengths_are_counted_once_and_again_for_other_shards(tokenizer, tmp_path, write_shards, caplog):
    root = write_shards(tmp_path / "a", 12)
    measure = measure_of(tokenizer)
    first = lengths_of(ShardReader(root), measure)
    (file,) = root.glob("lengths.*.npy")
    stamp = file.stat().st_mtime_ns
    lengths_of(ShardReader(root), measure)
    assert file.stat().st_mtime_ns == stamp
    other = write_shards(tmp_path / "b", 9)
    (other / file.name).write_bytes(file.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert len(lengths_of(ShardReader(other), measure)) == 9
    assert "of other shards, or damaged" in caplog.text
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    assert lengths_of(ShardReader(root), measure).tolist() == first.tolist()


def _slow_count(root: Path, tokenizer, log: Path, hold: float) -> None:
    class Slow(Measure):
        def __call__(self, reader, row):
            with log.open("a") as file:
                file.write(f"{os.getpid()} {row}\n")
            time.sleep(hold)
            return super().__call__(reader, row)

    slow = Slow(template("vicuna_v1"), "vicuna_v1", tokenizer, AnyResViews(), (8, 8), SLOTS)
    assert len(lengths_of(ShardReader(root), slow)) == 12


def test_of_several_processes_one_counts_also_when_the_first_is_killed(tokenizer, tmp_path, write_shards):
    root, log = write_shards(tmp_path / "a", 12), tmp_path / "log"
    context = multiprocessing.get_context("fork")
    first = context.Process(target=_slow_count, args=(root, tokenizer, log, 0.5))
    first.start()
    while not log.exists():
        time.sleep(0.02)
    others = [context.Process(target=_slow_count, args=(root, tokenizer, log, 0.01)) for _ in range(2)]
    for process in others:
        process.start()
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGKILL)
    for process in [first, *others]:
        process.join(60)
    assert [process.exitcode for process in others] == [0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    counted = [int(row) for pid, row in lines if int(pid) != first.pid]
    assert counted == list(range(12))
    assert {int(row) for pid, row in lines if int(pid) == first.pid} < set(range(12))
    assert sorted(path.name for path in root.glob("lengths*")) == [f"lengths.{measure_of(tokenizer).hash}.npy"]


def test_a_record_that_cannot_be_measured_is_named_or_counts_nothing(tokenizer, tmp_path, png):
    with ShardWriter(tmp_path / "bad") as writer:
        for i in range(3):
            image = b"\xff\xd8\xff nothing" if i == 1 else png(np.zeros((4, 4, 3), np.uint8))
            writer.write(f"r{i}", [image], {"conversations": turns("<image>\nA1", "1")})
    reader = ShardReader(tmp_path / "bad")
    with pytest.raises(BadSample, match=r"shard-000000\.tar: r1: image of 11 bytes does not decode"):
        lengths_of(reader, measure_of(tokenizer))
    assert not list((tmp_path / "bad").glob("lengths*.npy"))
    lengths = lengths_of(reader, measure_of(tokenizer), on_bad="substitute")
    assert (lengths == 0).tolist() == [False, True, False]


def test_a_stand_in_never_makes_a_pack_too_long(tokenizer, tmp_path, png):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "bad") as writer:
        for i in range(60):
            image = png(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            broken = image[:60] if i % 20 == 7 else b"\xff\xd8\xff nothing" if i % 20 == 9 else image
            writer.write(f"r{i:02d}", [broken], {"conversations": turns("<image>\nA1", "1" * int(rng.integers(1, 9)))})
    settings = {"max_length": 24, "on_bad": "substitute", "order": Order(pack=True)}
    data = ShardData([str(tmp_path / "bad")], SingleView(), 4, template="bare", **settings)
    data.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert max(batch.input_ids.shape[1] for batch in batches) <= 24
    keys = {key for batch in batches for key in batch.keys}
    assert keys == {f"r{i:02d}" for i in range(60) if i % 20 not in (7, 9)}


@pytest.fixture(scope="module")
def questions(tmp_path_factory, png) -> Path:
    """Thirteen questions about images of many shapes, several to a record; one has a prompt of its own."""
    rng = np.random.default_rng(1)
    root = tmp_path_factory.mktemp("questions")
    with ShardWriter(root, shard_records=4) as writer:
        for i in range(6):
            height, width = (int(x) for x in rng.integers(5, 40, 2))
            image = png(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
            asked = [
                {"question_id": f"{i}-{q}", "question": "A1 " * int(rng.integers(1, 30)), "answers": ["1"], "type": ""}
                for q in range(1 + i % 3 + (i == 0))
            ]
            if i == 4:
                asked[0]["suffix"] = " B2" * 40
            writer.write(f"q{i}", [image] * (i % 3), {"questions": asked})
    return root


def keys_of(batches: list[Any]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


_first = itemgetter(0)


@pytest.mark.parametrize("views", [SingleView(), AnyResViews([(1, 2), (2, 1), (2, 2)])], ids=["alike", "any shape"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_ranks_questions_come_longest_first_with_their_numbers(views, rank, tokenizer, questions, monkeypatch):
    """The lengths are those of the prompts that are then generated from; padding is no more than in any other order."""
    slots = SlotLayout((2, 2)) if isinstance(views, SingleView) else SLOTS
    data = module(questions, tokenizer, views, slots, val={"q": ValSource(str(questions))}, val_batch_size=3)
    data.connect(tokenizer, (8, 8), slots, suffixes={"q": " C3"})
    monkeypatch.setattr("dslight.data.datamodule.rank_and_world", lambda trainer: (rank, 2))
    data.setup("validate")
    (loader,) = data.val_dataloader()
    batches = list(loader)
    lengths = [int(row.sum()) for batch in batches for row in batch.attention_mask]
    numbers = [question.number for batch in batches for question in batch.questions]
    records = [[length for _, length in own] for _, own in groupby(zip(keys_of(batches), lengths, strict=True), _first)]
    assert len(records) == len(set(keys_of(batches)))  # those of a record, which shows the same images, are together
    assert [max(own) for own in records] == sorted(map(max, records), reverse=True)
    assert all(own == sorted(own, reverse=True) for own in records)
    assert len(set(lengths)) > 3
    shares = {0: [*range(7)], 1: [*range(7, 13), 12]}
    assert sorted(numbers) == shares[rank]
    assert [question.valid for batch in batches for question in batch.questions].count(False) == rank
    padded = sum(batch.attention_mask.numel() for batch in batches)
    unsorted = [lengths[numbers.index(number)] for number in shares[rank]]
    assert padded < sum(len(part) * max(part) for part in (unsorted[:3], unsorted[3:6], unsorted[6:]))


def test_a_question_that_cannot_be_measured_is_left_to_whoever_asks_it(tokenizer, tmp_path, png):
    with ShardWriter(tmp_path / "bad") as writer:
        for i in range(3):
            image = b"\xff\xd8\xff nothing" if i == 1 else png(np.zeros((4, 4, 3), np.uint8))
            asked = {"question_id": str(i), "question": "A1", "answers": ["1"], "type": ""}
            writer.write(f"r{i}", [image], {"questions": [asked]})
    data = module(
        tmp_path / "bad",
        tokenizer,
        AnyResViews([(1, 2), (2, 1)]),
        val={"q": ValSource(str(tmp_path / "bad"))},
        val_batch_size=2,
    )
    data.setup("validate")
    first, last = iter(data.val_dataloader()[0]), []
    assert sorted(question.number for question in next(first).questions) == [0, 2]
    with pytest.raises(BadSample, match=r"shard-000000\.tar: r1: image of 11 bytes does not decode"):
        last.append(next(first))
