"""What the recipes of the fault tests name: a callback that writes down every batch, and views that end their process.

All is set from outside by the environment, so that a run and the one that continues it have the same recipe.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from dslight.data.images import GridViews


class Witness(pl.Callback):
    """Appends ``{"step": 3, "keys": [...]}`` per micro-batch to ``rank0.jsonl`` in the folder ``WITNESS``.

    ``FAULT="train 3 1 SIGTERM"`` sends the process of rank 1 this signal at its first micro-batch after step 3;
    ``validate`` does so at the first batch of the validation after step 3.
    """

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with (Path(os.environ["WITNESS"]) / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": trainer.global_step, "keys": list(batch.keys)}) + "\n")
        self._at("train", trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at("validate", trainer)

    def _at(self, where: str, trainer: pl.Trainer) -> None:
        place, step, rank, name = os.environ.get("FAULT", "never 0 0 SIGINT").split()
        if (place, int(step), int(rank)) == (where, trainer.global_step, trainer.global_rank):
            os.environ.pop("FAULT")
            os.kill(os.getpid(), getattr(signal, name))


class DeadlyViews(GridViews):
    """In a data worker, the picture number ``DEADLY`` that it sees kills it, or holds it up for ever (``HANG=1``).

    Both are those of the process that makes it: what starts workers for forkserver may have another environment.
    """

    seen = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deadly, self.hangs = int(os.environ.get("DEADLY", "0")), bool(os.environ.get("HANG"))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None and self.deadly:
            DeadlyViews.seen += 1
            if self.seen == self.deadly:
                if self.hangs:
                    time.sleep(1000)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*args, **kwargs)
