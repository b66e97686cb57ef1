"""Rows of kept tokens are the rows that tokenizing gives, and kept tokens of anything else are not used."""

import logging
import os
import pickle
import shutil

import numpy as np
import pytest

from dslight.data.caches.lengths import Measure
from dslight.data.caches.tokens import Tokens, tokens_of
from dslight.data.conversation import TEMPLATES, Encoded, template
from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.records import read_sample
from dslight.data.sample import BadSample
from dslight.data.shards import ShardError, ShardReader, ShardWriter
from dslight.layout import SlotLayout

SLOTS = SlotLayout((2, 2))


@pytest.fixture(scope="module")
def root(tmp_path_factory, png, photo):
    """Conversations about none, one or two images, of one or several rounds, with answers that are empty."""
    made = tmp_path_factory.mktemp("talk")
    with ShardWriter(made, shard_records=5) as writer:
        for i in range(23):
            images = [png(photo)] * (i % 3)
            texts = ["<image>\n" * len(images) + "A1" * (i % 4 + 1), str(i), "B2 C3", "" if i % 5 == 4 else "77"]
            turns = [
                {"from": ("human", "gpt")[j % 2], "value": text} for j, text in enumerate(texts[: 2 + 2 * (i % 2)])
            ]
            if i % 4 == 2:
                turns[1]["weight"] = i / 8
            writer.write(f"t-{i:02d}", images, {"conversations": turns})
    return made


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)


def measure(tokenizer, name="vicuna_v1") -> Measure:
    return Measure(template(name), name, tokenizer, SingleView(), (8, 8), SLOTS)


def listed(encoded: Encoded | None) -> tuple[list[int], list[int], list[float] | None]:
    assert encoded
    return list(encoded.ids), list(encoded.labels), None if encoded.weights is None else encoded.weights.tolist()


def module(root, tokenizer, **settings) -> ShardData:
    made = ShardData([str(root)], SingleView(), 4, max_length=10_000, **settings)
    made.connect(tokenizer, (8, 8), SLOTS)
    made.setup("fit")
    return made


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in ("plain", "tokenizer")])
def test_kept_is_what_the_template_gives(name, root, tokenizer, tmp_path):
    reader = ShardReader(root)
    kept = tokens_of(reader, measure(tokenizer, name), tmp_path)
    for again in (kept, pickle.loads(pickle.dumps(kept)), tokens_of(reader, measure(tokenizer, name), tmp_path)):
        for row in range(len(reader)):
            sample = read_sample(reader, row)
            assert listed(again[row]) == listed(template(name).encode(sample.turns, tokenizer, len(sample.images)))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_and_nothing_is_tokenized_while_training(workers, root, tokenizer, tmp_path, monkeypatch):
    copy = shutil.copytree(root, tmp_path / "copy")
    expected = list(module(copy, tokenizer).train_dataloader())
    loader = module(copy, tokenizer, keep_tokens=True, num_workers=workers).train_dataloader()

    def broken(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr("dslight.data.conversation._tokenize", broken)  # forked workers have it too
    for batch, same in zip(loader, expected, strict=True):
        assert batch.keys == same.keys
        assert (batch.input_ids == same.input_ids).all()
        assert (batch.labels == same.labels).all()
        assert (batch.views.pixels == same.views.pixels).all()


def test_another_tokenizer_template_or_shard_has_a_file_of_its_own(root, tokenizer, tmp_path, write_shards, caplog):
    reader = ShardReader(root)
    tokens_of(reader, measure(tokenizer), tmp_path)
    tokens_of(reader, measure(tokenizer, "bare"), tmp_path)
    assert len(list(tmp_path.glob("tokens.*.bin"))) == 2
    other = ShardReader(write_shards(tmp_path / "other", 23))
    with caplog.at_level(logging.WARNING):
        kept = tokens_of(other, measure(tokenizer), tmp_path)
    assert "of other shards, or damaged; tokenizing again" in caplog.text
    sample = read_sample(other, 3)
    assert listed(kept[3]) == listed(template("vicuna_v1").encode(sample.turns, tokenizer, len(sample.images)))


@pytest.mark.parametrize("where", ["a token", "a start", "the digest"])
def test_a_changed_file_is_found(where, root, tokenizer, tmp_path):
    reader = ShardReader(root)
    path = tokens_of(reader, measure(tokenizer), tmp_path).path
    data = bytearray(path.read_bytes())
    at = {"a token": 9, "a start": len(data) - 32 - 8 * 3, "the digest": len(data) - 5}[where]
    data[at] ^= 1
    path.write_bytes(data)
    if where == "a token":
        kept = Tokens(path, reader.manifest.digest, len(reader))
        with pytest.raises(ShardError, match=r"tokens\..*the tokens of record 0 were changed; delete the file"):
            kept[0]
        assert kept[1] is not None
    else:
        with pytest.raises(ShardError, match="of other shards, or damaged"):
            Tokens(path, reader.manifest.digest, len(reader))


def test_a_cut_file_is_written_again(root, tokenizer, tmp_path):
    reader = ShardReader(root)
    kept = tokens_of(reader, measure(tokenizer), tmp_path)
    whole = kept.path.read_bytes()
    for size in (0, 31, len(whole) - 1, len(whole) - 8, len(whole) // 2):
        kept.path.write_bytes(whole[:size])
        assert tokens_of(reader, measure(tokenizer), tmp_path).path.read_bytes() == whole


def test_text_that_cannot_be_used_says_why_when_it_is_read(tmp_path, tokenizer, write_shards, png, photo):
    with ShardWriter(tmp_path) as writer:
        for i in range(6):
            texts = ("<image>A1", "7") if i != 2 else ("A1", "7")
            turns = [{"from": ("human", "gpt")[j], "value": text} for j, text in enumerate(texts)]
            writer.write(f"k{i}", [png(photo)], {"conversations": turns})
    with pytest.raises(BadSample, match=r"k2: 0 <image> marks"):
        module(tmp_path, tokenizer, keep_tokens=True)
    data = module(tmp_path, tokenizer, keep_tokens=True, on_bad="substitute")
    assert len([key for batch in data.train_dataloader() for key in batch.keys]) == 4  # whole steps
    dataset = data.train_dataloader().dataset
    dataset.on_bad = "raise"
    with pytest.raises(BadSample, match=r"k2: 0 <image> marks"):
        dataset[2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_named(root, tokenizer, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    copy.chmod(0o500)
    with pytest.raises(PermissionError, match=r"data\.cache: needed, as tokens"):
        module(copy, tokenizer, keep_tokens=True)
    module(copy, tokenizer, keep_tokens=True, cache=str(tmp_path / "cache"))
