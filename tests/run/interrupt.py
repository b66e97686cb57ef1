"""A Lightning callback that the recipes of these tests name: it sends its own process a signal at a chosen moment.

The moment comes from the environment, so that a run that is interrupted and one that is not have the same recipe:
``INTERRUPT="train 3 SIGINT"`` is the first micro-batch after optimizer step 3, ``"validate 6 SIGINT"`` the first batch
of the validation after step 6, ``"score 9 SIGINT"`` that of the last validation, after the training has ended.
"""

from __future__ import annotations

import os
import signal
from typing import Any

import lightning.pytorch as pl


class Interrupt(pl.Callback):
    """See above."""

    def _at(self, where: str, trainer: pl.Trainer) -> None:
        place, step, name = os.environ.get("INTERRUPT", "never 0 SIGINT").split()
        if (place, int(step)) == (where, trainer.global_step):
            os.environ.pop("INTERRUPT")
            os.kill(os.getpid(), getattr(signal, name))

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at("train", trainer)

    def on_validation_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._at("validate" if trainer.state.fn == "fit" else "score", trainer)
