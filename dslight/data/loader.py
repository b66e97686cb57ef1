"""Loaders that Lightning drives: sized, resumable to the batch, and equal in length on all ranks.

Decided here, and why:

* A loader has a length. Lightning prefetches a batch from one that has not, and the saved position is then one batch
  ahead.
* The state is a position in the plan, the same on every rank (Lightning keeps only rank 0's), and so resumes at another
  world size.
* A finished epoch rolls over at the start of ``__iter__``: Lightning stops asking at the length, so code after the last
  ``yield`` does not run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import Dataset

from dslight.data.plan import TrainPlan, accumulation, eval_share
from dslight.data.transport.workers import NO_WORKERS, Workers, read_batches

log = logging.getLogger(__name__)

T = TypeVar("T")

_STATE_VERSION = 2


class Progress(Protocol):
    """A trainer's own count of this rank's micro-batches (:class:`dslight.upstream.lightning.FitProgress`)."""

    @property
    def in_hand(self) -> int:
        """Those that it was given and has not trained on."""
        ...

    def resume(self, batches: int) -> None:
        """Count so many of this epoch as done."""
        ...


class TrainLoader(Generic[T]):
    """This rank's micro-batches of one epoch after another.

    Args:
        dataset: gives rows by record number.
        plan: the order.
        collate: rows to a batch.
        rank, world: of the data-parallel group.
        micro: rows of a batch.
        workers: processes that read ahead.
        progress: Lightning's own count, put right after a resume.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        plan: TrainPlan,
        collate: Callable[[list[T]], Any],
        rank: int,
        world: int,
        micro: int,
        workers: Workers = NO_WORKERS,
        progress: Progress | None = None,
    ) -> None:
        self.dataset, self.plan, self.collate = dataset, plan, collate
        self.rank, self.world, self.micro, self.workers, self.progress = rank, world, micro, workers, progress
        self.accumulate = accumulation(plan.global_batch, world, micro)
        self.epoch = self.consumed = self.unusable = self.shrunk = 0

    def __len__(self) -> int:
        return self.plan.steps * self.accumulate

    def __iter__(self) -> Iterator[Any]:
        if self.consumed >= self.plan.items:
            self.epoch, self.consumed = self.epoch + 1, 0
        batches = self.plan.micro_batches(self.epoch, self.consumed, self.rank, self.world, self.micro)
        for batch in read_batches(self.dataset, batches, self.collate, self.workers):
            self.consumed += self.world * self.micro  # before the yield: a checkpoint is saved while the batch is out
            self._count_unusable(batch)
            yield batch
            del batch  # its memory is free for the next one as soon as nobody else has it

    def _count_unusable(self, batch: Any) -> None:
        dropped, shrunk = getattr(batch, "dropped", ()), getattr(batch, "shrunk", ())
        self.unusable += len(dropped)
        self.shrunk += len(shrunk)
        if dropped:
            log.warning("rows that teach nothing (%d so far on this rank): %s", self.unusable, ", ".join(dropped))
        if shrunk:
            log.warning("rows cut at a whole turn (%d so far on this rank): %s", self.shrunk, ", ".join(shrunk))

    def state_dict(self) -> dict[str, Any]:
        """The position: equal on all ranks, and meaningful at any world size."""
        in_hand = 0 if self.progress is None else self.progress.in_hand
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch,
            "consumed": self.consumed - in_hand * self.world * self.micro,
            "global_batch": self.plan.global_batch,
            "plan_hash": self.plan.hash,
            "plan": self.plan.parts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after ``state``.

        Raises:
            ValueError: naming the field, if the state belongs to another order of the data.
        """
        hints = {"global_batch": "data.global_batch_size", "plan_hash": "data"}
        if (found := differing(state, self.plan)) is not None:
            name, what = found
            raise ValueError(
                f"checkpoint of the data loader: {what}; resume with the same {hints.get(name, 'version of dslight')}"
            )
        self.epoch = state["epoch"]
        self.consumed = state["consumed"] - state["consumed"] % self.plan.global_batch
        if self.progress is not None:
            self.progress.resume(self.consumed // (self.world * self.micro))


def differing(state: dict[str, Any], plan: TrainPlan) -> tuple[str, str] | None:
    """In what a loader's state is of another order than ``plan``: the field, and a phrase; ``None``: of this one."""
    now = {"version": _STATE_VERSION, "global_batch": plan.global_batch, "plan_hash": plan.hash}
    for name, value in now.items():
        if state.get(name) != value:
            what = f" ({_differences(state['plan'], plan.parts)})" if name == "plan_hash" else ""
            return name, f"{name} is {state.get(name)!r}, this run has {value!r}{what}"
    return None


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Which parts of two plans differ, and in what."""
    found = []
    for name in dict.fromkeys([*then, *now]):
        old, new = then.get(name), now.get(name)
        if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
            found += [f"{name}[{i}]: {a!r}, now {b!r}" for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        elif isinstance(old, dict) and isinstance(new, dict):
            inner = _differences(old, new)
            found += [f"{name}.{inner}"] if inner else []
        elif old != new:
            found.append(f"{name}: {old!r}, now {new!r}")
    return "; ".join(found)


class EvalLoader(Generic[T]):
    """This rank's share of ``items``; all ranks have equally many batches, short ones are padded with invalid rows.

    The dataset is indexed with (number of the item, valid). With ``lengths`` (numbers of items -> the length of each)
    the longest come first, so that rows of a batch are of like lengths and memory runs out at once or not at all;
    without, items come in their order. Items of one ``record`` stay together.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        items: int,
        collate: Callable[[list[T]], Any],
        rank: int,
        world: int,
        batch: int,
        workers: Workers = NO_WORKERS,
        lengths: Callable[[Sequence[int]], Sequence[int]] | None = None,
        record: Callable[[int], int] = lambda number: number,
    ) -> None:
        self.dataset, self.collate, self.workers = dataset, collate, workers
        numbers, valid = eval_share(items, rank, world)
        share = list(zip(numbers.tolist(), valid.tolist(), strict=True))
        if lengths is not None and len(share) > batch > 1:
            length, of = lengths([number for number, _ in share]), [record(number) for number, _ in share]
            longest: dict[int, int] = {}
            for each, own in zip(of, length, strict=True):
                longest[each] = max(longest.get(each, 0), own)
            share = [share[i] for i in sorted(range(len(share)), key=lambda i: (-longest[of[i]], of[i], -length[i]))]
        self.batches = [share[i : i + batch] for i in range(0, len(share), batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return read_batches(self.dataset, self.batches, self.collate, self.workers)
