"""Callbacks of every run: a clean stop, the newest checkpoint, the pace."""

from __future__ import annotations

import json
import signal
import statistics
import sys
import time
from collections import deque
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Timer, TQDMProgressBar

from dslight.files.system import room_for
from dslight.train.checkpoints import Checkpoints
from dslight.upstream.lightning import announced_by


class TimeUp(KeyboardInterrupt):
    """The run has used the time that it has; it is saved, and not finished."""


class StopCleanly(pl.Callback):
    """Ctrl-C, SIGTERM or SIGUSR1 ends the run after the current optimizer step, with a checkpoint; a second Ctrl-C ends
    it at once.

    SIGTERM is how a scheduler announces that it takes the machine away. It may come twice (from the scheduler, and
    handed on by torchrun), which asks no more than once. SIGUSR1, or what ``SLURMEnvironment(requeue_signal=...)``
    names, is what batch scripts have SLURM send (``--signal=USR1@90``); a handler that somebody else has set for it
    stays. So does the end of ``limit``, ``trainer.max_time``, which counts from the start of each attempt: Lightning's
    own way would leave in the middle of a step, and call the run finished.

    An interrupt in the middle of an optimizer step would leave half-updated weights beside a data position that is one
    batch off: resuming would not be exact.
    """

    def __init__(self, checkpoints: Checkpoints, limit: Timer | None = None) -> None:
        self.checkpoints, self.limit = checkpoints, limit
        self.asked = self.saved = self.late = False
        self._at = 0
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = True
            print("\nstopping after this step (Ctrl-C again: at once) ...", flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._at = trainer.global_step
        if self.limit is not None:
            self.limit.on_train_start(trainer, pl_module)
        listened = [signal.SIGINT, signal.SIGTERM]
        announced = announced_by(trainer)
        if announced not in listened and signal.getsignal(announced) == signal.SIG_DFL:
            listened.append(announced)
        self._before = {which: signal.signal(which, self._ask) for which in listened}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the optimizer has just stepped; all ranks together."""
        if trainer.global_step == self._at:
            return
        self._at = trainer.global_step
        last = trainer.global_step >= trainer.estimated_stepping_batches
        left = self.limit.time_remaining() if self.limit is not None and not last else None
        self.late = left is not None and left <= 0
        asked = self.asked or self.late
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.saved = True
            self.checkpoints.save(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave: by now the loss of the last step has been logged."""
        self._leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave before a validation that is due after the last step."""
        self._leave()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave where the last step ended the epoch."""
        self._leave()

    def _leave(self) -> None:
        if self.saved and self.late and not self.asked:
            raise TimeUp(f"trainer.max_time: the time is up after step {self._at}; the same command continues")
        if self.saved:
            raise KeyboardInterrupt

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop listening."""
        for which, before in self._before.items():
            signal.signal(which, before)
        self._before = {}


class FirstError(pl.Callback):
    """Keeps what ended a training: Lightning then closes loggers, and what that raises (on a full disk, say) would take
    its place.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the first."""
        self.error = self.error or exception


class ValidateEvery(pl.Callback):
    """Validates after every ``steps`` optimizer steps, whatever the epoch.

    Lightning's own ``val_check_interval`` counts micro-batches of a rank, so the same number means other moments on
    another number of ranks, and they shift where a run continues on one.

    Args:
        steps: between two validations.
    """

    TRAINER: ClassVar[dict[str, Any]] = {"val_check_interval": sys.maxsize, "check_val_every_n_epoch": None}
    """Arguments of the Trainer that this needs: it never validates by itself."""

    def __init__(self, steps: int) -> None:
        self.steps, self._at = steps, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where the run does."""
        self._at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let Lightning, which looks at this number next, validate now or not."""
        due = trainer.global_step > self._at and trainer.global_step % self.steps == 0
        self._at = trainer.global_step
        trainer.val_check_batch = 1 if due else sys.maxsize


class GradientError(RuntimeError):
    """What trains is not what the stage says."""


class AuditGradients(pl.Callback):
    """Fails the first step, by name, where what trains is not what the stage says.

    A parameter that is meant to train and gets no gradient stays as it was made, and makes a sharded run impossible to
    resume; one that is meant to be frozen and gets a gradient is trained by accident. Neither shows in the loss.
    """

    def __init__(self) -> None:
        self.done = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look once."""
        if self.done:
            return
        self.done = True
        named = list(pl_module.named_parameters())
        idle = [name for name, p in named if p.requires_grad and p.grad is None]
        stray = [name for name, p in named if not p.requires_grad and p.grad is not None]
        if idle:
            raise GradientError(
                f"stage.train: {len(idle)} parameters are meant to train, but no gradient reaches them: {_some(idle)}. "
                f"Remove them from the model, or leave their part out of stage.train"
            )
        if stray:
            raise GradientError(f"stage.train: {len(stray)} frozen parameters got a gradient: {_some(stray)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


class Bar(TQDMProgressBar):
    """Lightning's progress bar with the speed and the time that the whole run has left, not only its epoch."""

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self.pace = pace

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        shown: dict[str, Any] = {**super().get_metrics(trainer, pl_module)}
        shown.pop("v_num", None)
        speed = trainer.callback_metrics.get("throughput/tokens_per_second")
        if speed is not None:
            shown["tokens/s"] = f"{float(speed):,.0f}"
        steps, step = trainer.estimated_stepping_batches - trainer.global_step, self.pace.recent_seconds
        if trainer.training and step is not None and steps < float("inf"):
            shown["eta"] = str(timedelta(seconds=round(step * steps)))
        return shown


class Pace(pl.Callback):
    """Times the steps, and tells a watching process how far the run is.

    Args:
        file: ``progress.json`` of the run.
        every: seconds between two writes.
    """

    def __init__(self, file: Path, every: float = 2.0) -> None:
        self.file, self.every = file, every
        self.seconds: deque[float] = deque(maxlen=2000)
        self.train_seconds = 0.0
        self._began: float | None = None
        self._counted = self._written = 0.0
        self._at = 0

    def state_dict(self) -> dict[str, Any]:
        """Kept in checkpoints: a run that was interrupted reports on all of its attempts."""
        return {"seconds": list(self.seconds), "train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds.extend(state_dict["seconds"])
        self.train_seconds = state_dict["train_seconds"]

    @property
    def step_seconds(self) -> float | None:
        """Median wall-clock seconds of an optimizer step, data and logging included, validation left out; ``None``
        before two steps are done.
        """
        settled = list(self.seconds)[len(self.seconds) // 10 :]
        return statistics.median(settled) if settled else None

    @property
    def recent_seconds(self) -> float | None:
        """The mean of the last steps, for a guess at what is to come."""
        last = list(self.seconds)[-50:]
        return statistics.fmean(last) if last else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the whole training, validation included."""
        self._counted, self._at = time.perf_counter(), trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next step's clock does not count what validation takes."""
        self._began = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is timed from the end of the one before it, so that waiting for data counts."""
        if trainer.global_step == self._at:
            return
        self._at = trainer.global_step
        now = time.perf_counter()
        if self._began is not None:
            self.seconds.append(now - self._began)
        self._began = now
        self.train_seconds += now - self._counted
        self._counted = now
        if trainer.is_global_zero and now - self._written > self.every:
            self._written = now
            loss = trainer.callback_metrics.get("train/loss")
            at = {
                "step": trainer.global_step,
                "max_steps": int(trainer.estimated_stepping_batches),
                "loss": None if loss is None else float(loss),
                "seconds": self.train_seconds,
            }
            with room_for(self.file):
                self.file.write_text(json.dumps(at))
