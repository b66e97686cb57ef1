"""A tiny training with a real Trainer over real shards, which writes down the keys of every step; and kills itself.

As a module: :func:`launch` runs it in forked processes, one per rank, which is quick. As a program, under any launcher:
``python training.py '{"data": "...", "out": "..."}'``.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from transformers import AutoTokenizer

from dslight.data.datamodule import ShardData, Source, ValSource
from dslight.data.images import SingleView
from dslight.data.plan import Order
from dslight.layout import SlotLayout

GLOBAL = 8
EPOCHS = 3
PER_EPOCH = 5  # steps: (33 + 21 / 2) // 8
STEPS = EPOCHS * PER_EPOCH
SLOTS = SlotLayout((2, 2))


class BrokenStepError(RuntimeError):
    """What a training step may raise."""


class Recorder(LightningModule):
    """Writes down every batch; dies at ``kill``: (where, which time), e.g. ``("train", 3)`` before batch 3, by SIGKILL
    or, where ``breaks``, by an exception."""

    def __init__(self, out: Path, kill: tuple[str, int] | None = None, breaks: bool = False) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.out, self.kill, self.breaks, self.times = out, kill, breaks, Counter()

    def _may_die(self, where: str) -> None:
        if self.kill == (where, self.times[where]):
            if self.breaks:
                raise BrokenStepError
            os.kill(os.getpid(), signal.SIGKILL)
        self.times[where] += 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self._may_die("train")
        with (self.out / f"rank{self.global_rank}.jsonl").open("a") as file:
            line = {"step": self.global_step, "epoch": self.current_epoch, "keys": list(batch.keys)}
            file.write(json.dumps(line) + "\n")
        return self.layer(batch.input_ids[:1, :1].float()).sum()

    def on_after_backward(self) -> None:
        self._may_die("backward")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._may_die("validation")

    def on_train_epoch_end(self) -> None:
        self._may_die("epoch end")

    def on_train_end(self) -> None:
        self._may_die("train end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.0)


Save = Literal["step", "epoch end", "validation", "exception"]
SAVES: dict[str, Any] = {
    "epoch end": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
}


def fit(
    data: str | Path,
    out: str | Path,
    world: int = 1,
    micro: int = 8,
    workers: int = 0,
    start: Any = None,
    every: int = 1,
    save: Save = "step",
    kill: tuple[str, int] | None = None,
    resume: str | Path | None = None,
    order: Order | None = None,
    epochs: int = EPOCHS,
    steps: int = -1,
    reload: int = 0,
    sources: tuple[tuple[str, float], ...] = (("a", 1.0), ("b", 0.5)),
    global_batch: int = GLOBAL,
    val: bool = True,
) -> None:
    """Train on one rank of ``world``, until ``epochs`` or, with ``steps``, by steps alone; checkpoints in ``out/ckpt``
    after every ``every`` steps, or as ``save`` says."""
    torch.set_num_threads(1)
    data, out = Path(data), Path(out)
    module = ShardData(
        [Source(str(data / name), weight) for name, weight in sources],
        SingleView(),
        global_batch,
        val={"q": ValSource(str(data / "q"))} if val else None,
        template="bare",
        micro_batch_size=micro,
        num_workers=workers,
        max_length=40,
        order=order,
        worker_start=start,
    )
    module.connect(AutoTokenizer.from_pretrained(data / "tokenizer"), (8, 8), SLOTS)
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
        max_epochs=epochs if steps == -1 else -1,
        max_steps=steps,
        reload_dataloaders_every_n_epochs=reload,
        accumulate_grad_batches=module.accumulate(world),
        num_sanity_val_steps=0,
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver(out / "ckpt", save, every)],
    )
    recorder = Recorder(out, None if kill is None else (kill[0], kill[1]), breaks=save == "exception")
    trainer.fit(recorder, module, ckpt_path=resume)


def saver(folder: Path, save: Save, every: int) -> ModelCheckpoint | OnExceptionCheckpoint:
    if save == "exception":
        return OnExceptionCheckpoint(folder, "step=last")
    when = {"every_n_train_steps": every} if save == "step" else SAVES[save]
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, **when)


def _rank(rank: int, port: int, settings: dict[str, Any]) -> None:
    world = str(settings.get("world", 1))
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=world, LOCAL_WORLD_SIZE=world,
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test", GLOO_SOCKET_IFNAME="lo",
    )  # fmt: skip
    _quietly(**settings)


def _quietly(**settings: Any) -> None:
    log = os.open(Path(settings["out"]) / f"log-{os.getpid()}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)  # pytest has put its own there
    torch.set_num_threads(1)  # a forked process makes its threads while it has but one
    fit(**settings)


def launch(timeout: float = 280, **settings: Any) -> list[int | None]:
    """Run :func:`fit` in forked processes, one per rank; their exit codes. Once one is killed, the others are too."""
    Path(settings["out"]).mkdir(exist_ok=True)
    world, context = settings.get("world", 1), multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if world == 1:
        processes = [context.Process(target=_quietly, kwargs=settings)]
    else:
        processes = [context.Process(target=_rank, args=(rank, port, settings)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


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


def epochs_of(*outs: Path) -> dict[int, int]:
    """By optimizer step, the epoch that Lightning counts; as in :func:`per_step`, the latest run's."""
    result: dict[int, int] = {}
    for out in outs:
        lines = [line for path in sorted(out.glob("rank*.jsonl")) for line in path.read_text().splitlines()]
        result |= {entry["step"]: entry["epoch"] for entry in map(json.loads, lines)}
    return result


def newest(out: Path) -> Path | None:
    """The last checkpoint of a run, if there is one."""
    found = list((out / "ckpt").glob("*.ckpt"))
    return max(found, key=lambda path: path.stat().st_mtime_ns) if found else None


if __name__ == "__main__":
    fit(**json.loads(sys.argv[1]))
