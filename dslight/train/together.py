"""Where one process of a run fails, the others end too, with its reason, instead of waiting for it in a collective.

torchrun and Lightning's launcher kill the other processes, but do not tell them why; plain ``srun`` does not even do
that, and NCCL then waits for its own timeout (ten minutes and more). Decided here: the reason goes through the store
that the processes met in, which works while a collective hangs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import nn

from dslight.upstream.torch import group_store

_REASON, _HEARD = "dslight/failed", "dslight/heard"


class StopTogether(pl.Callback):
    """Tells all ranks of the first failure, and ends those that do not end by themselves.

    A rank that is killed from outside cannot tell; the launcher, or the connection that breaks, ends the others then.

    Args:
        describe: what to tell about an exception, one line.
        every: seconds between two looks.
        patience: seconds that a rank has for ending by itself, and the failed one waits until it was heard.
    """

    def __init__(self, describe: Callable[[BaseException], str], every: float = 1.0, patience: float = 10.0) -> None:
        self.describe, self.every, self.patience = describe, every, patience
        self._store: Any = None
        self._samples: Sequence[str] = ()
        self._done = threading.Event()
        self._told = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look out from here on."""
        if trainer.world_size > 1 and dist.is_initialized():
            self._done = threading.Event()
            self._store = group_store()
            watch = threading.Thread(target=self._watch, args=(self._store, trainer.global_rank, self._done))
            watch.daemon = True
            watch.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """All went well on this rank."""
        self._done.set()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others, or say who failed first."""
        self._done.set()
        if trainer.world_size == 1 or not dist.is_initialized() or isinstance(exception, KeyboardInterrupt):
            return
        self._end_soon(2 * self.patience)  # taking down what was built may wait for the others, too
        if self._told:
            return
        mine = f"rank {trainer.global_rank} failed: {self.describe(exception)}"
        mine += _where(trainer, pl_module, exception, self._samples)
        print(mine, file=sys.stderr, flush=True)
        try:
            store = self._store or group_store()  # a new one waits long for a store that is gone
            first = store.compare_set(_REASON, "", mine).decode()
            if first != mine:
                store.add(_HEARD, 1)
                _say(trainer.global_rank, first)
                return
            end = time.monotonic() + self.patience  # this rank may keep the store; and no launcher kills meanwhile
            while store.add(_HEARD, 0) < trainer.world_size - 1 and time.monotonic() < end:
                time.sleep(0.1)
        except dist.DistError as error:
            print(f"rank {trainer.global_rank}: the others could not be told: {error}", file=sys.stderr, flush=True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember whose fault a failure may be."""
        self._samples = getattr(batch, "keys", ())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Not these samples'."""
        self._samples = ()

    def _end_soon(self, seconds: float) -> None:
        timer = threading.Timer(seconds, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def _watch(self, store: Any, rank: int, done: threading.Event) -> None:
        while not done.wait(self.every):
            try:
                if not store.check([_REASON]):
                    continue
                reason = store.get(_REASON).decode()
                store.add(_HEARD, 1)
            except dist.DistError:
                reason = "the process that keeps the store is gone"
            self._told = True
            _say(rank, reason)
            if not done.wait(self.patience):  # the main thread hangs in a collective
                os._exit(1)


def _where(trainer: pl.Trainer, model: nn.Module, error: BaseException, samples: Sequence[str]) -> str:
    """The step, the innermost module whose code an exception came out of, and the samples of the batch."""
    names = {id(module): name for name, module in model.named_modules() if name}
    inside, at = "", error.__traceback__
    while at is not None:
        inside = names.get(id(at.tb_frame.f_locals.get("self")), inside)
        at = at.tb_next
    said = [f"in {inside}"] if inside else []
    said += [f"step {trainer.global_step + 1}", f"samples {', '.join(samples)}"] if samples else []
    return f" ({'; '.join(said)})" if said else ""


def _say(rank: int, reason: str) -> None:
    print(f"rank {rank}: stopping, because {reason}", file=sys.stderr, flush=True)
