"""A real Lightning Trainer is killed with SIGKILL and resumed: every optimizer step must see the records it would have
seen."""

import json
import multiprocessing
import os
import signal
import socket
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from transformers import AutoTokenizer

from dslight.data.datamodule import ShardData, Source, ValSource
from dslight.data.images import SingleView
from dslight.data.loader import TrainLoader
from dslight.data.plan import Order
from dslight.layout import SlotLayout

GLOBAL = 8
EPOCHS = 3


class Recorder(LightningModule):
    """Writes down the keys of every batch with the optimizer step it belongs to; kills its process at ``kill_at``."""

    def __init__(self, out: Path, kill_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.out, self.kill_at, self.batches = out, kill_at, 0

    def training_step(self, batch, batch_idx):
        if self.batches == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches += 1
        with (self.out / f"rank{self.global_rank}.jsonl").open("a") as file:
            line = {"step": self.global_step, "epoch": self.current_epoch, "keys": list(batch.keys)}
            file.write(json.dumps(line) + "\n")
        return self.layer(batch.input_ids[:1, :1].float()).sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        with (self.out / f"asked{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([[q.question_id, q.valid] for q in batch.questions]) + "\n")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def fit(
    data: Path, out: Path, tokenizer, world: int, micro: int, kill_at=None, resume=None, workers=0, every=2, order=None
):
    torch.set_num_threads(1)
    module = ShardData(
        [Source(str(data / "a")), Source(str(data / "b"), 0.5)],
        SingleView(),
        GLOBAL,
        val={"q": ValSource(str(data / "q"))},
        template="bare",
        micro_batch_size=micro,
        num_workers=workers,
        max_length=40,
        order=order,
    )
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        max_epochs=EPOCHS,
        accumulate_grad_batches=module.accumulate(world),
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(out / "ckpt", "{step}", every_n_train_steps=every, save_top_k=-1)],
    )
    trainer.fit(Recorder(out, kill_at), module, ckpt_path=resume)


def _rank(rank: int, port: int, args: tuple, kwargs: dict) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    fit(*args, **kwargs)


def launch(*args, **kwargs) -> list[int]:
    """Run :func:`fit` in processes of its own, one per rank; their exit codes."""
    world = args[3]
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if world == 1:
        processes = [context.Process(target=fit, args=args, kwargs=kwargs)]
    else:
        processes = [context.Process(target=_rank, args=(rank, port, args, kwargs)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert not process.is_alive()
    return [process.exitcode or 0 for process in processes]


def per_step(*outs: Path) -> dict[int, Counter]:
    """Records per optimizer step over the runs in ``outs``, oldest first: a later run replaces the steps that it
    repeats."""
    result: dict[int, Counter] = {}
    for out in outs:
        found: dict[int, Counter] = defaultdict(Counter)
        for path in out.glob("rank*.jsonl"):
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                found[entry["step"]].update(entry["keys"])
        result = {step: keys for step, keys in result.items() if not found or step < min(found)} | dict(found)
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_shards) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_shards(root / "a", 33, "a")
    write_shards(root / "b", 21, "b")
    write_shards(root / "q", 7, "q", questions=1)
    return root


@pytest.fixture(scope="module")
def whole(data, tokenizer, tmp_path_factory) -> dict[int, Counter]:
    """An uninterrupted run on one rank."""
    out = tmp_path_factory.mktemp("whole")
    assert launch(data, out, tokenizer, 1, 8) == [0]
    return per_step(out)


def newest(out: Path) -> Path:
    return max((out / "ckpt").glob("*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))


def test_an_uninterrupted_run_sees_the_mix_that_was_asked_for(whole):
    per_epoch = 5  # (33 + 21 / 2 = 43) // 8
    assert sorted(whole) == list(range(EPOCHS * per_epoch))
    for epoch in range(EPOCHS):
        seen = sum((whole[epoch * per_epoch + i] for i in range(per_epoch)), Counter())
        assert set(seen.values()) == {1}
        assert sum(seen.values()) == per_epoch * GLOBAL
    assert whole[0] != whole[per_epoch]


@pytest.mark.parametrize(
    ("before", "after", "kill_at"),
    [
        ((1, 8), (1, 8), 3),
        ((1, 8), (1, 4), 7),
        ((1, 2), (1, 8), 27),
        ((1, 4), (2, 4), 8),
        ((2, 4), (1, 4), 8),
        ((2, 2), (1, 8), 15),
        ((2, 4), (1, 8), 10),
    ],
    ids=lambda value: f"{value[0]}x{value[1]}" if isinstance(value, tuple) else f"killed-at-{value}",
)
def test_a_killed_run_resumes_with_the_same_global_batches(before, after, kill_at, data, whole, tokenizer, tmp_path):
    """(ranks, micro-batch) before and after the kill; accumulation makes up the global batch of 8."""
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    killed.mkdir()
    resumed.mkdir()
    codes = launch(data, killed, tokenizer, *before, kill_at=kill_at)
    assert -signal.SIGKILL in codes
    assert set(launch(data, resumed, tokenizer, *after, resume=newest(killed))) == {0}
    assert min(per_step(resumed)) == int(newest(killed).stem.split("=")[1])
    assert per_step(killed, resumed) == whole


def test_two_ranks_ask_every_question_once_and_equally_often(data, tokenizer, tmp_path):
    assert launch(data, tmp_path, tokenizer, 2, 4) == [0, 0]
    ranks = []
    for rank in range(2):
        lines = (tmp_path / f"asked{rank}.jsonl").read_text().splitlines()
        assert len(lines) == EPOCHS
        ranks.append(json.loads(lines[0]))
    assert [len(rank) for rank in ranks] == [4, 4]
    assert sorted(q for rank in ranks for q, valid in rank if valid) == [f"q{i}-0" for i in range(7)]


@pytest.mark.parametrize("kill_at", range(1, 15))
def test_a_run_killed_after_any_step_resumes_exactly(kill_at, data, whole, tokenizer, tmp_path):
    """A checkpoint at every step, so also at the first one, at the end of an epoch and just after it."""
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    killed.mkdir()
    resumed.mkdir()
    assert launch(data, killed, tokenizer, 1, 8, kill_at=kill_at, every=1) == [-signal.SIGKILL]
    assert launch(data, resumed, tokenizer, 1, 8, resume=newest(killed)) == [0]
    assert min(per_step(resumed)) == kill_at
    assert per_step(killed, resumed) == whole


def test_a_resumed_run_can_be_killed_and_resumed_again_with_data_workers(data, whole, tokenizer, tmp_path):
    outs = [tmp_path / name for name in ("first", "second", "third")]
    for out in outs:
        out.mkdir()
    launch(data, outs[0], tokenizer, 1, 8, kill_at=4, every=1, workers=2)
    launch(data, outs[1], tokenizer, 1, 4, kill_at=9, every=1, resume=newest(outs[0]))
    assert launch(data, outs[2], tokenizer, 1, 8, resume=newest(outs[1]), workers=1) == [0]
    assert per_step(*outs) == whole


def test_a_checkpoint_inside_an_accumulation_repeats_the_unfinished_step(data, whole, tokenizer, tmp_path):
    """Lightning saves between optimizer steps; a signal or an exception may not. The gradients of the half step are
    lost."""
    module = ShardData([Source(str(data / "a")), Source(str(data / "b"), 0.5)], SingleView(), GLOBAL, template="bare",
                       micro_batch_size=2)  # fmt: skip
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    module.setup("fit")
    loader, rest = module.train_dataloader(), module.train_dataloader()
    batches = iter(loader)
    for _ in range(6):  # a step of four, and half of the next
        next(batches)
    rest.load_state_dict(loader.state_dict())
    assert sum((Counter(next(iter(rest)).keys) for _ in range(1)), Counter()) <= whole[1]
    assert rest.consumed == GLOBAL + 2


# --- packed rows
# -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def varied(tmp_path_factory, write_varied, write_shards) -> Path:
    root = write_varied(tmp_path_factory.mktemp("varied"))
    write_shards(root / "q", 2, "q", questions=1)
    return root


ORDERS = {
    "packs": Order(pack=True, pack_window=50, window=4, group_by=["modality"]),
    "groups": Order(window=4, group_by=["modality", "length"]),
}


@pytest.fixture(scope="module")
def wholes(varied, tokenizer, tmp_path_factory) -> dict[str, dict[int, Counter]]:
    """An uninterrupted run on one rank, for each order."""
    found = {}
    for name, order in ORDERS.items():
        out = tmp_path_factory.mktemp(name)
        assert launch(varied, out, tokenizer, 1, 8, order=order) == [0]
        found[name] = per_step(out)
    return found


def test_packed_epochs_hold_the_mix_that_was_asked_for(wholes, varied):
    steps = len(wholes["packs"]) // EPOCHS
    for epoch in range(EPOCHS):
        seen = sum((wholes["packs"][epoch * steps + i] for i in range(steps)), Counter())
        total = sum(seen.values())
        assert set(seen.values()) == {1}
        assert total > 150 - 8
        assert abs(sum(key.startswith("a") for key in seen) - total * 120 / 155) < 1
    assert max(sum(step.values()) for step in wholes["packs"].values()) > 2 * GLOBAL  # conversations, not rows


@pytest.mark.parametrize(
    ("order", "before", "after", "kill_at", "workers"),
    [
        ("packs", (1, 8), (1, 2), 4, 2),
        ("packs", (2, 4), (1, 4), 7, 0),
        pytest.param("packs", (1, 8), (1, 8), 3, 0, marks=pytest.mark.slow),
        pytest.param("packs", (1, 2), (2, 4), 14, 0, marks=pytest.mark.slow),
        pytest.param("packs", (2, 2), (2, 4), 9, 1, marks=pytest.mark.slow),
        pytest.param("groups", (1, 4), (2, 2), 9, 0, marks=pytest.mark.slow),
        pytest.param("groups", (2, 4), (1, 8), 21, 2, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_of_any_order_resumes_with_the_same_global_batches(
    order, before, after, kill_at, workers, varied, wholes, tokenizer, tmp_path
):
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    killed.mkdir()
    resumed.mkdir()
    codes = launch(varied, killed, tokenizer, *before, kill_at=kill_at, every=1, order=ORDERS[order], workers=workers)
    assert -signal.SIGKILL in codes
    done = launch(varied, resumed, tokenizer, *after, resume=newest(killed), order=ORDERS[order], workers=workers)
    assert set(done) == {0}
    assert per_step(killed, resumed) == wholes[order]


# --- what may not change
# -----------------------------------------------------------------------------------------------


def loader_of(data: Path, tokenizer, **settings) -> TrainLoader:
    settings = {"train": ["a", "b"], "global_batch_size": 8, "template": "bare", **settings}
    train = [Source(str(data / name), weight) for name, weight in dict.fromkeys(settings.pop("train"), 1.0).items()]
    train[0].weight = settings.pop("weight", 1.0)
    module = ShardData(train, SingleView(), **settings)
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    module.setup("fit")
    return module.train_dataloader()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, r"plan_hash is .* \(data\.seed: 0, now 1\)"),
        ({"global_batch_size": 4}, "global_batch is 8, this run has 4"),
        ({"train": ["a"]}, r"plan_hash is .* \(data\.train \(shards\): \["),
        ({"train": ["a", "q"]}, r"plan_hash is .* \(data\.train \(shards\)\[1\]: "),
        ({"weight": 0.5}, r"plan_hash is .* \(data\.train \(weights\)\[0\]: 1\.0, now 0\.5\)"),
        ({"order": Order(window=4, pack=True)}, r"plan_hash is .* \(data\.order\.window: None, now 4\)"),
        ({"order": Order()}, r"plan_hash is .* \(data\.order\.pack: True, now False; data\.max_length: 30, now None"),
        ({"max_length": 29}, r"plan_hash is .* \(data\.max_length: 30, now 29\)"),
        ({"template": "vicuna_v1"}, r"plan_hash is .* \(data\.template: 'bare "),
    ],
)
def test_resuming_with_other_data_is_refused_by_the_name_of_what_changed(
    change, named, data, tokenizer, tmp_path, write_shards
):
    write_shards(tmp_path / "a", 33, "a")
    write_shards(tmp_path / "b", 21, "b")
    write_shards(tmp_path / "q", 21, "q")
    settings = {"order": Order(pack=True), "max_length": 30}
    state = loader_of(tmp_path, tokenizer, **settings).state_dict()
    with pytest.raises(ValueError, match=f"checkpoint of the data loader: {named}.* resume with the same"):
        loader_of(tmp_path, tokenizer, **settings | change).load_state_dict(state)


@pytest.mark.parametrize("order", [None, Order(pack=True)], ids=["plain", "packed"])
def test_resuming_with_another_tokenizer_is_refused_by_its_name(order, data, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    state = loader_of(data, tokenizer, order=order).state_dict()
    loader_of(data, other, order=order).load_state_dict(state)
    other.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"plan_hash is .* \(model\.language_model \(tokenizer\): '"):
        loader_of(data, other, order=order).load_state_dict(state)


def test_the_state_is_small(data, tokenizer):
    assert len(json.dumps(loader_of(data, tokenizer, order=Order(pack=True)).state_dict())) < 1000


def test_accumulation_that_does_not_fit_the_batch_sizes_is_refused(data, tokenizer, tmp_path):
    module = ShardData([str(data / "a")], SingleView(), GLOBAL, template="bare", micro_batch_size=2)
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match=r"trainer\.accumulate_grad_batches: 1, .* set it to 4"):
        trainer.fit(Recorder(tmp_path), module)
