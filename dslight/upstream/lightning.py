"""Lightning."""

from __future__ import annotations

import math
import signal
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.strategies.model_parallel import _METADATA_FILENAME
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh

NEXT_BATCH = "train_dataloader_next"
"""How the name of the action ends, of which Lightning tells its profiler when it asks for the next batch."""

REST = _METADATA_FILENAME
"""The file of a sharded checkpoint with what is no tensor of model and optimizer."""


def group_settings(strategy: Any) -> tuple[str, timedelta] | None:
    """The backend and the timeout of the process group that a strategy would make; ``None``: it makes none."""
    if not hasattr(strategy, "_get_process_group_backend"):
        return None
    return strategy._get_process_group_backend(), strategy._timeout


def set_sizes(strategy: ModelParallelStrategy, data_parallel: int) -> None:
    """Let all parallelism be of data, before the strategy lays out its mesh."""
    strategy._data_parallel_size, strategy._tensor_parallel_size = data_parallel, 1


def set_mesh(strategy: ModelParallelStrategy, model: pl.LightningModule, mesh: DeviceMesh) -> None:
    """Let ``device_mesh`` of both be another mesh than the one that the strategy has laid out."""
    strategy._device_mesh = model._device_mesh = mesh


def load_only_what_is_named(trainer: pl.Trainer) -> None:
    """Let ``ckpt_path=None`` mean: load nothing.

    Otherwise Lightning looks for files by itself, with a model given too: under SLURM for ``hpc_ckpt_N.ckpt`` in
    ``default_root_dir``, and before training for what an ``OnExceptionCheckpoint`` has left.
    """
    connector: Any = trainer._checkpoint_connector
    connector._parse_ckpt_path = lambda state_fn, ckpt_path, **_: ckpt_path


def never_requeue(trainer: pl.Trainer) -> None:
    """Under SLURM, Lightning answers the announced end with a checkpoint of its own, in the middle of a step, and a
    new job; no longer.
    """
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def announced_by(trainer: pl.Trainer) -> signal.Signals:
    """The signal by which a scheduler announces the end (SLURM's ``--signal``)."""
    environment = trainer._accelerator_connector.cluster_environment
    return getattr(environment, "requeue_signal", None) or signal.SIGUSR1


def log_by_steps_done(trainer: pl.Trainer) -> None:
    """Let every logger get, with each row, the optimizer steps that are done, and the epochs, as a fraction; and a row
    of the last step, whatever ``log_every_n_steps`` says.

    Lightning gives rows of training the number of the step from 0, those of a last validation the steps that are done,
    and after the training an epoch more than there was.
    """
    connector: Any = trainer._logger_connector
    settings: Any = trainer
    log, update = connector.log_metrics, connector.update_train_step_metrics

    def log_metrics(metrics: Any, step: int | None = None) -> None:
        if step is None and metrics and "step" not in metrics:
            metrics, step = {"epoch": epochs_done(trainer), **metrics}, trainer.global_step
        log(metrics, step)

    def update_train_step_metrics() -> None:
        update()
        at_hand = settings.log_every_n_steps and not connector.should_update_logs and not settings.fast_dev_run
        if at_hand and is_last(trainer, trainer.global_step) and not trainer.fit_loop._should_accumulate():
            connector.log_metrics(connector.metrics["log"])

    connector.log_metrics, connector.update_train_step_metrics = log_metrics, update_train_step_metrics


def is_last(trainer: pl.Trainer, step: int) -> bool:
    """Whether a training is over after so many steps, as far as is known before."""
    return step >= trainer.estimated_stepping_batches


def epochs_done(trainer: pl.Trainer) -> float:
    """The optimizer steps that are done, in epochs of the training data; whole ones where nobody knows their length."""
    batches = trainer.num_training_batches
    if not 0 < batches < float("inf"):
        return float(trainer.current_epoch)
    return round(trainer.global_step / math.ceil(batches / trainer.accumulate_grad_batches), 4)


class FitProgress:
    """Lightning's own count of a run's epochs and batches, to be kept in step with the position in the plan.

    The plan's position is exact, and the same on all ranks. Lightning counts beside it, and decides by its count when
    an epoch and the run are over. Its count is put right here, because after a resume it is not:

    * It is of micro-batches of one rank. Saved at one world size, it means another place at another one.
    * A checkpoint of an epoch's last batch counts that epoch as begun, not as done. Resumed from it, Lightning trains
      the next epoch without counting its beginning; whatever is saved in that epoch then looks like the end of one.
    * A batch in hand, when an exception or a callback saves inside of it, is not trained on.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        loop: Any = trainer.fit_loop
        self._epochs: Any = loop.epoch_progress
        self._batches: Any = loop.epoch_loop.batch_progress

    @property
    def in_hand(self) -> int:
        """Micro-batches of this rank that it was given and has not trained on: 1 inside of a batch."""
        return self._batches.current.ready - self._batches.current.processed

    def resume(self, batches: int) -> None:
        """Count ``batches`` of this epoch, at this world size, as done; again is the same as once."""
        current, epoch = self._batches.current, self._epochs.current
        unfinished = current.processed - current.completed  # 1 if saved at the end of a batch; Lightning completes it
        if unfinished and self._batches.is_last_batch and epoch.ready > epoch.processed:
            self._epochs.increment_processed()
            self._epochs.increment_completed()
            self._batches.is_last_batch = False  # or Lightning would count the end of the epoch once more
        current.ready = current.started = current.processed = batches
        current.completed = batches - unfinished
