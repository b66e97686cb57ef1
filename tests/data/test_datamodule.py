"""The data module from a recipe's point of view: what it yields, what it refuses, and what it does with bad records."""

import logging
import os
import pickle
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from dslight.data.datamodule import ShardData, Source, ValSource
from dslight.data.images import AnyResViews, AspectGridViews, GridViews, HDViews, SingleView, ViewPolicy
from dslight.data.plan import Order
from dslight.data.sample import BadSample
from dslight.data.shards import ShardError, ShardReader, ShardWriter
from dslight.layout import SlotLayout


def connected(tokenizer, *train, views: ViewPolicy | None = None, batch: int = 4, **settings) -> ShardData:
    module = ShardData(list(train), views or SingleView(), batch, template="bare", **settings)
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    module.setup("fit")
    return module


def test_training_batches_hold_what_the_records_say(tmp_path, write_shards, tokenizer):
    root = write_shards(tmp_path, 20)
    loader = connected(tokenizer, str(root), views=GridViews(1, 2)).train_dataloader()
    assert len(loader) == 5
    for batch in loader:
        assert batch.input_ids.shape == (4, 4 + 3)  # four slots, A1, the answer, the end
        assert batch.views.pixels.shape == (4 * 3, 3, 8, 8)
        for key, ids in zip(batch.keys, batch.input_ids.tolist(), strict=True):
            assert tokenizer.decode(ids[5]) == str(int(key[2:]) % 10)


def test_fine_crops_and_image_sizes_reach_the_batch(tmp_path, write_shards, tokenizer):
    root = write_shards(tmp_path, 4)
    batch = next(iter(connected(tokenizer, str(root), views=HDViews(2, up=2)).train_dataloader()))
    assert batch.views.fine == 2
    assert batch.views.pixels.shape == (4 * 3 * 5, 3, 8, 8)
    assert batch.views.sizes == [(8, 8)] * 4


def test_slots_depend_on_the_size_of_the_image_that_was_read(tmp_path, png, tokenizer):
    """A strip four times as wide as high is seen by 2 of the 4 rows of tokens of its 2 x 2 grid."""
    with ShardWriter(tmp_path) as writer:
        turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "7"}]
        strip = png(np.zeros((10, 40, 3), np.uint8))
        writer.write("strip", [strip], {"id": "strip", "conversations": turns})
    module = ShardData([str(tmp_path)], AnyResViews([(2, 2)]), 1, template="bare")
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2), crops=True, newline=True, unpad=True))
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch.views.sizes == [(10, 40)]
    assert int(batch.visual_mask.sum()) == 4 + 2 * (4 + 1)


def test_epochs_roll_over_when_the_loader_is_asked_again(tmp_path, write_shards, tokenizer):
    loader = connected(tokenizer, str(write_shards(tmp_path, 20))).train_dataloader()
    epochs = [[key for batch in loader for key in batch.keys] for _ in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) == 1
    assert loader.state_dict()["epoch"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_data_workers_change_nothing(workers, tmp_path, write_shards, tokenizer):
    root = str(write_shards(tmp_path, 20))
    here = list(connected(tokenizer, root).train_dataloader())
    there = list(connected(tokenizer, root, num_workers=workers).train_dataloader())
    for a, b in zip(here, there, strict=True):
        assert a.keys == b.keys
        assert (a.views.pixels == b.views.pixels).all()


def test_the_dataset_survives_pickling_for_spawned_workers(tmp_path, write_shards, tokenizer):
    dataset = connected(tokenizer, str(write_shards(tmp_path, 5)), batch=1).train_dataloader().dataset
    assert pickle.loads(pickle.dumps(dataset))[3].ids == dataset[3].ids


def test_reading_leaves_the_global_random_state_alone(tmp_path, write_shards, tokenizer):
    loader = connected(tokenizer, str(write_shards(tmp_path, 5)), batch=1).train_dataloader()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(loader)
    assert (torch.get_rng_state() == state).all()


def test_every_question_is_asked_once_in_order(tmp_path, write_shards, tokenizer):
    write_shards(tmp_path / "t", 4)
    write_shards(tmp_path / "q", 5, "q", questions=3)
    sources = {"all": ValSource(str(tmp_path / "q")), "few": ValSource(str(tmp_path / "q"), limit=4)}
    loaders = connected(tokenizer, str(tmp_path / "t"), val=sources, val_batch_size=2).val_dataloader()
    asked = [[q.question_id for batch in loader for q in batch.questions] for loader in loaders]
    assert asked[0] == [f"q{i}-{q}" for i in range(5) for q in range(3)]
    assert asked[1] == asked[0][:4]
    assert [len(loader) for loader in loaders] == [8, 2]
    assert all(q.valid for loader in loaders for batch in loader for q in batch.questions)


def test_a_benchmarks_suffix_stands_behind_each_of_its_questions(tmp_path, write_shards, tokenizer):
    root = str(write_shards(tmp_path, 3, questions=1))
    module = ShardData(
        [root], SingleView(), 1, val={"plain": ValSource(root), "suffixed": ValSource(root)}, template="bare"
    )
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)), suffixes={"suffixed": " B2"})
    module.setup("validate")
    plain, suffixed = (next(iter(loader)) for loader in module.val_dataloader())
    assert suffixed.input_ids[:, :-1].tolist() == plain.input_ids.tolist()
    assert tokenizer.batch_decode(suffixed.input_ids[:, -1:]) == ["B2"] * 3
    assert [question.text for question in suffixed.questions] == [question.text for question in plain.questions]


def test_a_tokenizer_that_knows_no_word_of_the_answers_is_refused(tmp_path, write_shards):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    good, words = str(write_shards(tmp_path, 20)), {"<unk>": 0, "<end>": 1, "elsewhere": 2}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    other = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", pad_token="<end>")
    with pytest.raises(ValueError, match=r"^data\.train\[0\]\.root: .* knows nothing of what is to be learnt \('"):
        connected(other, good)
    other.add_tokens(["7"])  # one word of them is enough
    connected(other, good)


def test_missing_folders_are_named_by_their_place_in_the_recipe(tmp_path, write_shards, tokenizer):
    good = str(write_shards(tmp_path / "good", 4))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"data\.train\[1\]\.root: '/nowhere' is no folder"):
        connected(tokenizer, good, Source("/nowhere"))
    with pytest.raises(ShardError, match=r"data\.train\[0\]\.root: .*manifest\.json: missing"):
        connected(tokenizer, str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"data\.val\.vqa\.root"):
        connected(tokenizer, good, val={"vqa": ValSource("/nowhere")})
    with pytest.raises(ValueError, match=r"data\.val\.vqa\.root: .* holds no questions"):
        connected(tokenizer, good, val={"vqa": ValSource(good)})
    questions = str(write_shards(tmp_path / "q", 4, questions=1))
    with pytest.raises(ValueError, match=r"data\.train\[0\]\.root: .* holds questions"):
        connected(tokenizer, questions)
    with pytest.raises(ValueError, match=r"data\.train: names no source"):
        connected(tokenizer)


def test_data_that_is_not_connected_says_what_to_call(tmp_path, write_shards):
    module = ShardData([str(write_shards(tmp_path, 4))], SingleView(), 4)
    module.setup("fit")
    with pytest.raises(RuntimeError, match="connect"):
        module.train_dataloader()


def test_jsonargparse_builds_it_from_a_recipe_and_refuses_a_misspelt_template():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardData, "data")
    recipe = {
        "train": ["one", {"root": "two", "weight": 2.0}],
        "val": {"vqa": {"root": "three", "limit": 10}},
        "views": {"class_path": "dslight.data.images.AspectGridViews", "init_args": {"max_crops": 6}},
        "global_batch_size": 8,
        "template": "phi3",
    }
    module = parser.instantiate_classes(parser.parse_object({"data": recipe})).data
    assert module.sources == [Source("one"), Source("two", 2.0)]
    assert module.val_sources == {"vqa": ValSource("three", 10)}
    assert isinstance(module.views, AspectGridViews)
    with pytest.raises(jsonargparse.ArgumentError, match="template"):
        parser.parse_object({"data": {**recipe, "template": "vicuna"}})


# --- bad records at run time
# ---------------------------------------------------------------------------------------------------


@pytest.fixture
def one_bad(tmp_path, png) -> Path:
    """20 records, of which number 7 does not decode."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "bad") as writer:
        for i in range(20):
            image = png(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
            turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "1"}]
            writer.write(f"r{i}", [image[:50] if i == 7 else image], {"conversations": turns})
    return tmp_path / "bad"


def test_a_bad_record_raises_with_shard_and_key(one_bad, tokenizer):
    with pytest.raises(BadSample, match=r"shard-000000\.tar: r7: image of 50 bytes does not decode"):
        list(connected(tokenizer, str(one_bad)).train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_record_is_replaced_by_the_same_one_everywhere(workers, one_bad, tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        loader = connected(tokenizer, str(one_bad), on_bad="substitute", num_workers=workers).train_dataloader()
        keys = [key for batch in loader for key in batch.keys]
    assert len(keys) == 20
    assert sorted({f"r{i}" for i in range(20)} - set(keys)) == ["r7"]
    again = connected(tokenizer, str(one_bad), on_bad="substitute").train_dataloader()
    assert [key for batch in again for key in batch.keys] == keys
    if not workers:
        assert "r7" in caplog.text


def test_substitution_stops_when_most_records_are_bad(tmp_path, tokenizer):
    with ShardWriter(tmp_path) as writer:
        for i in range(10):
            turns = [{"from": "human", "value": "<image>\nA1"}, {"from": "gpt", "value": "1"}]
            writer.write(f"r{i}", [b"\xff\xd8\xff nothing"], {"conversations": turns})
    with pytest.raises(BadSample, match=r"no good stand-in|bad samples of"):
        list(connected(tokenizer, str(tmp_path), on_bad="substitute").train_dataloader())


def test_a_changed_byte_is_found_while_training_when_everything_is_hashed(tmp_path, write_shards, tokenizer):
    root = write_shards(tmp_path, 7)
    reader = ShardReader(root)
    with (root / "shard-000000.tar").open("r+b") as file:
        file.seek(int(reader.index.offsets[0]) + 5)
        file.write(b"\xaa")
    assert os.path.getsize(root / "shard-000000.tar") == reader.manifest.shards[0].bytes
    with pytest.raises(ShardError, match="a-0000"):
        list(connected(tokenizer, str(root), check="full", batch=1).train_dataloader())


def test_rows_without_a_loss_are_counted_and_named(tmp_path, write_shards, tokenizer, caplog):
    root = str(write_shards(tmp_path, 8))
    loader = connected(tokenizer, root, max_length=5, on_unusable="drop").train_dataloader()
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert loader.unusable == 8
    assert "a-0003" in caplog.text
    assert all((batch.labels == -100).all() for batch in batches)
    with pytest.raises(BadSample, match=r"raise data\.max_length"):
        list(connected(tokenizer, root, max_length=5).train_dataloader())


@pytest.fixture
def two_pictures(tmp_path, png) -> Path:
    """Conversations whose second image (4 slots) does not fit 9 positions; every fourth has no answer before it."""
    picture = png(np.zeros((8, 8, 3), np.uint8))
    with ShardWriter(tmp_path / "two") as writer:
        for i in range(8):
            first = (
                [("human", "<image>\nA1"), ("gpt", "7")] if i % 4 else [("human", "<image>" + "A1 " * 9), ("gpt", "7")]
            )
            said = [*first, ("human", "<image>\nB2"), ("gpt", "12345")]
            turns = [{"from": role, "value": value} for role, value in said]
            writer.write(f"t{i}", [picture, picture], {"conversations": turns})
    return tmp_path / "two"


@pytest.mark.parametrize("order", [None, Order(pack=True)], ids=["plain", "packed"])
def test_what_is_shrunk_and_what_is_dropped_is_counted_and_named(order, two_pictures, tokenizer, caplog):
    settings = {"max_length": 9, "on_unusable": "shrink", "order": order}
    loader = connected(tokenizer, str(two_pictures), batch=2, **settings).train_dataloader()
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert (loader.shrunk, loader.unusable) == (6, 2)
    assert "t3" in caplog.text
    assert sorted(key for batch in batches for key in batch.dropped) == ["t0", "t4"]
    assert sum(len(batch.views) for batch in batches if batch.views) == 6
    assert sum(int((batch.labels != -100).sum()) for batch in batches) == 6


def test_packed_batches_hold_what_the_records_say(tmp_path, write_shards, tokenizer, capsys):
    root = write_shards(tmp_path, 20)
    data = connected(tokenizer, str(root), batch=2, max_length=24, order=Order(pack=True))
    assert "of the positions are padding" in capsys.readouterr().out
    loader = data.train_dataloader()
    assert len(loader) == 4  # 7 rows of three records (7 positions each), of 20 records
    batches = list(loader)
    assert sorted(key for batch in batches for key in batch.keys) == [f"a-{i:04d}" for i in range(20)]
    for batch in batches:
        assert batch.input_ids.shape[1] <= 24
        documents = [
            ids[segment == n]
            for ids, segment in zip(batch.input_ids, batch.segments, strict=True)
            for n in range(1, int(segment.max()) + 1)
        ]
        for key, ids in zip(batch.keys, documents, strict=True):
            assert tokenizer.decode(ids[5].tolist()) == str(int(key[2:]) % 10)


def test_an_order_comes_from_a_recipe_and_is_refused_by_its_key():
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ShardData, "data")
    recipe = {"train": ["a"], "views": {"class_path": "dslight.data.images.SingleView"}, "global_batch_size": 8}
    order = {"window": 16, "group_by": ["modality"], "pack": True}
    module = parser.instantiate_classes(parser.parse_object({"data": {**recipe, "order": order}})).data
    assert module.order == Order(16, ["modality"], True)
    with pytest.raises(jsonargparse.ArgumentError, match="group_by"):
        parser.parse_object({"data": {**recipe, "order": {"group_by": ["size"]}}})


# --- under Lightning
# -----------------------------------------------------------------------------------------------------------


class Keys(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[str] = []
        self.asked: dict[int, list[str]] = {}

    def training_step(self, batch, batch_idx):
        self.seen += batch.keys
        return self.layer(batch.input_ids[:1, :1].float()).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.asked.setdefault(dataloader_idx, []).extend(q.question_id for q in batch.questions)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_lightning_trains_and_validates_on_all_of_it(tmp_path, write_shards, tokenizer):
    write_shards(tmp_path / "t", 20)
    write_shards(tmp_path / "q", 5, "q", questions=2)
    sources = {"one": ValSource(str(tmp_path / "q")), "two": ValSource(str(tmp_path / "q"), 3)}
    data = ShardData([str(tmp_path / "t")], SingleView(), 4, sources, "bare", micro_batch_size=2)
    data.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    model = Keys()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        num_sanity_val_steps=0, accumulate_grad_batches=data.accumulate(1), enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    assert trainer.global_step == 10
    assert sorted(model.seen) == sorted([f"a-{i:04d}" for i in range(20)] * 2)
    assert {name: len(ids) for name, ids in model.asked.items()} == {0: 2 * 10, 1: 2 * 3}
