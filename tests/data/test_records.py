"""Rows of a batch are made in two goes, text first and images then; what becomes of each is what it would be alone."""

import numpy as np
import pytest
import torch

from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.sample import BadSample
from dslight.data.shards import ShardWriter
from dslight.data.transport.workers import Workers, read_batches
from dslight.layout import SlotLayout


@pytest.fixture
def shards(tmp_path, png):
    """Twelve records, of which 3 has an image that does not decode and 7 a conversation that template ``plain`` cannot
    write."""
    with ShardWriter(tmp_path, shard_records=5) as writer:
        for i in range(12):
            image = png(np.full((6, 6, 3), 20 * i, dtype=np.uint8))
            turns = ["<image>", f"{i}"] if i != 7 else ["<image>", "7", "and?", "7"]
            talk = [{"from": ("human", "gpt")[j % 2], "value": text} for j, text in enumerate(turns)]
            cut = image[: len(image) // 2] if i == 3 else image
            writer.write(f"r-{i:02d}", [cut], {"conversations": talk})
    return tmp_path


def dataset(shards, tokenizer, **settings):
    data = ShardData([str(shards)], SingleView(), 4, template="plain", **settings)
    data.connect(tokenizer, (6, 6), SlotLayout((2, 2)))
    data.setup("fit")
    return data.train_dataloader().dataset


def same(a, b) -> bool:
    texts = (a.key, list(a.ids), list(a.labels), a.grids, a.sizes) == (
        b.key,
        list(b.ids),
        list(b.labels),
        b.grids,
        b.sizes,
    )
    return texts and all(torch.equal(x, y) for x, y in zip(a.pixels, b.pixels, strict=True))


def test_rows_of_a_batch_are_those_of_its_records(shards, tokenizer):
    records = dataset(shards, tokenizer)
    wanted = [5, (0, 11, 0), 2, (1,), 5]
    rows = records.__getitems__(wanted)
    alone = [tuple(records[i] for i in item) if isinstance(item, tuple) else records[item] for item in wanted]
    assert [isinstance(row, tuple) for row in rows] == [False, True, False, True, False]
    flat = [list(row) if isinstance(row, tuple) else [row] for row in rows]
    theirs = [list(row) if isinstance(row, tuple) else [row] for row in alone]
    assert [item.key for row in flat for item in row] == ["r-05", "r-00", "r-11", "r-00", "r-02", "r-01", "r-05"]
    assert all(same(a, b) for x, y in zip(flat, theirs, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("bad", "what"), [(3, "does not decode"), (7, "template plain")])
def test_what_is_wrong_with_a_record_is_raised_with_its_shard_and_key(bad, what, shards, tokenizer):
    records = dataset(shards, tokenizer)
    with pytest.raises(BadSample, match=rf"00000{bad // 5}\.tar: r-{bad:02d}: .*{what}"):
        records.__getitems__([1, bad, 2])


@pytest.mark.parametrize("bad", [3, 7])
def test_a_worker_says_the_same_in_one_line(bad, shards, tokenizer):
    records = dataset(shards, tokenizer)
    said = []
    for workers in (0, 1):
        batches = read_batches(records, [[1, 2], [4, bad]], len, Workers(workers))
        assert next(batches) == 2
        with pytest.raises(BadSample) as caught:
            next(batches)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    assert "BytesIO" not in said[0]


def test_text_that_cannot_be_kept_is_refused_before_the_first_step(shards, tokenizer):
    with pytest.raises(BadSample, match=r"000001\.tar: .*template plain"):
        dataset(shards, tokenizer, keep_tokens=True)


def test_stand_ins_in_a_batch_are_those_of_the_record_alone(shards, tokenizer):
    records = dataset(shards, tokenizer, on_bad="substitute")
    rows = records.__getitems__([3, 1, 7])
    assert rows[0].key not in ("r-03", "r-07")
    assert rows[1].key == "r-01"
    assert rows[2].key not in ("r-03", "r-07")
    fresh = dataset(shards, tokenizer, on_bad="substitute")
    assert [fresh[3].key, fresh[1].key, fresh[7].key] == [row.key for row in rows]


def test_text_is_left_out_where_it_is_kept_already(shards, tokenizer, monkeypatch):
    records = dataset(shards, tokenizer, keep_tokens=True, on_bad="substitute")
    monkeypatch.setattr("dslight.data.sample.parse_turns", lambda *_: pytest.fail("turns are parsed again"))
    assert records[2].key == "r-02"
