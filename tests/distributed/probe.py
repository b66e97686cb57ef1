"""A Lightning callback that the recipes of these tests name: it tells what cannot be seen from outside of a process."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.tensor import DTensor


def _raise(module: Any, args: Any, output: Any) -> None:
    raise ArithmeticError("out of paper")


FAILURES = {
    "nan": lambda module, args, output: output * float("nan"),
    "raise": _raise,
    "kill": lambda module, args, output: os.kill(os.getpid(), signal.SIGKILL),
}


class Probe(pl.Callback):
    """Writes ``probe-RANK.json`` into the folder ``PROBE_FOLDER``.

    It also presses Ctrl-C on rank ``STOP_RANK`` in step ``STOP_STEP`` (counted from 1), and cuts the answer to question
    i at 2 i + 1 tokens, so that ranks are done at different times. With ``FAIL=KIND STEP RANK`` the third layer's MLP
    fails there in one of the ways of ``FAILURES``. ``SLOW_WRITE`` is how many seconds a sharded checkpoint takes to be
    written, times its step.
    """

    def __init__(self) -> None:
        self.images: list[int] = []
        self.start: int | None = None
        if seconds := float(os.environ.get("SLOW_WRITE", "0")):
            write = FileSystemWriter.write_data

            def write_data(self: Any, *args: Any) -> Any:
                time.sleep(seconds * int(re.findall(r"step-(\d+)", str(self.path))[-1]))
                return write(self, *args)

            setattr(FileSystemWriter, "write_data", write_data)  # noqa: B010

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.start = trainer.global_step if self.start is None else self.start
        self.images.append(0 if batch.views is None else len(batch.views))
        if [str(trainer.global_step + 1), str(trainer.global_rank)] == [
            os.environ.get(k) for k in ("STOP_STEP", "STOP_RANK")
        ]:
            os.kill(os.getpid(), signal.SIGINT)
        kind, step, rank = os.environ.get("FAIL", "nothing 0 0").split()
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if [trainer.global_step + 1, trainer.global_rank] == [int(step), int(rank)] and not again:
            pl_module.language_model.layers[2].mlp.register_forward_hook(FAILURES[kind])
            (Path(os.environ["PROBE_FOLDER"]) / "failed").touch()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        sizes = {
            name: {"whole": p.numel(), "here": p.to_local().numel() if isinstance(p, DTensor) else p.numel()}
            for name, p in pl_module.named_parameters()
        }
        report = {
            "sharded": all(isinstance(p, DTensor) for p in pl_module.parameters()),
            "sizes": sizes,
            "images": self.images,
            "start": self.start,
            "world_size": trainer.world_size,
        }
        (Path(os.environ["PROBE_FOLDER"]) / f"probe-{trainer.global_rank}.json").write_text(json.dumps(report))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        number = int(batch.questions[0].question_id.removeprefix("q"))
        pl_module.generation["pages"]["max_new_tokens"] = 2 * number + 1
