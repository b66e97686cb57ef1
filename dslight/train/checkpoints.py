"""The checkpoints of a run: one every so many steps and one of the last, written whole or not at all, the newest kept.

Decided here, instead of in Lightning's ``ModelCheckpoint``: a checkpoint is written under another name and renamed when
all processes are done, so that one that was cut off is never continued from; and several of the newest are kept, so
that there is one to go back to. Where the strategy writes in the background (``Sharded(async_save=True)``), the name
comes once everything is written, at a later step; until then the one before is the newest. What a ``ModelCheckpoint``
of the recipe writes elsewhere is its own business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from dslight.errors import UserError
from dslight.files.system import NoSpaceError, room_for
from dslight.train.checkpoint_io import tensor_bytes, unreadable

_PATIENCE = 10.0
"""Seconds that a training which has failed waits for its last checkpoint."""


class Place(Protocol):
    """Where checkpoints lie (:class:`dslight.run.folder.RunFolder`)."""

    def partial(self, step: int) -> Path:
        """Where one is written to."""
        ...

    def discard(self, step: int) -> None:
        """It could not be written: give back the room."""
        ...

    def finish(self, step: int) -> None:
        """It is whole: give it its name."""
        ...

    def keep(self, count: int) -> None:
        """Delete all but the ``count`` newest, and what was cut off."""
        ...

    def set_aside(self, after: int) -> None:
        """Take what lies behind step ``after`` out of the count: were it whole, it would have been continued from."""
        ...


class Checkpoints(Checkpoint):
    """Saves every ``every`` optimizer steps, after the last one, and when asked (:meth:`save`).

    Saving is collective, so all ranks decide by the step, never by the files.

    Args:
        place: the run's folder.
        every: optimizer steps; ``None``: only when asked.
        keep: how many of the newest stay.
    """

    def __init__(self, place: Place, every: int | None, keep: int) -> None:
        self.place, self.every, self.count = place, every, keep
        self._saved: int | None = None
        self._unnamed: int | None = None
        self._at = 0

    def save(self, trainer: pl.Trainer, wait: bool = True) -> None:
        """Write a checkpoint of this step, once; all ranks together.

        Args:
            trainer: whose.
            wait: until it is whole, where the strategy writes in the background.

        Raises:
            NoSpaceError: the disk is full; what was written of it is removed.
        """
        step = trainer.global_step
        if step != self._saved:
            self._finish(trainer)  # the one before
            self._saved = self._unnamed = step
            with self._room(trainer, step):
                trainer.save_checkpoint(self.place.partial(step))  # returns when all ranks are done, or have copied
        if wait or not _in_background(trainer):
            self._finish(trainer)

    def _finish(self, trainer: pl.Trainer) -> None:
        """Wait for what is being written, and give it its name; all ranks together."""
        step = self._unnamed
        if step is None:
            return
        if _in_background(trainer):
            with self._room(trainer, step):
                trainer.strategy.finish_saving()  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            self._name(step)
        self._unnamed = None
        trainer.strategy.barrier()  # a rank that now ends must not take rank 0 down before the last line

    def _name(self, step: int) -> None:
        if self.place.partial(step).exists():  # else it was named while the training went on
            self.place.finish(step)
            self.place.keep(self.count)

    @contextmanager
    def _room(self, trainer: pl.Trainer, step: int) -> Iterator[None]:
        try:
            with room_for(self.place.partial(step), _size(trainer)):
                yield
        except NoSpaceError:
            if trainer.is_global_zero:
                self.place.discard(step)
            raise

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count at the step that the run continues from."""
        self._saved = self._at = trainer.global_step
        if trainer.is_global_zero:  # the others cannot save before it has taken part in a step
            self.place.set_aside(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the optimizer has just stepped and a checkpoint is due."""
        if self._unnamed is not None and trainer.is_global_zero and trainer.strategy.is_saved():  # type: ignore[attr-defined]
            self._name(self._unnamed)
        if trainer.global_step == self._at:  # a micro-batch; an epoch's last step may have fewer of them
            return
        self._at = trainer.global_step
        if self.every is not None and self._at % self.every == 0:
            self.save(trainer, wait=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Do not lose what is nearly written; the others may be gone, so it is not waited for long."""
        step, self._unnamed = self._unnamed, None
        if step is None or not _in_background(trainer):
            return
        with suppress(Exception):  # what ended the training is said
            trainer.strategy.finish_saving(_PATIENCE)  # type: ignore[attr-defined]
            if trainer.is_global_zero:
                self._name(step)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a callback whose state could not be read again; all ranks alike.

        Raises:
            UserError: naming the callback and the value.
        """
        for name, state in checkpoint.get("callbacks", {}).items():
            if (found := unreadable(state)) is not None:
                raise UserError(
                    f"trainer.callbacks: {name.partition('{')[0]}: {found[0] or 'its state'} is a {found[1]}, which no "
                    f"run could be continued with; let its state_dict give plain numbers, text and tensors"
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step, which validate and predict read."""
        if self.every is not None:
            self.save(trainer)


def _size(trainer: pl.Trainer) -> int:
    """Bytes of the model and the optimizers' states, over all ranks."""
    states = [optimizer.state for optimizer in trainer.optimizers]
    return tensor_bytes([dict(trainer.lightning_module.state_dict()), states])


def _in_background(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer.strategy, "async_save", False))
