"""Loaders that Lightning drives: sized, resumable to the batch, and equal in length on all ranks.

Decided here, and why:

* A loader has a length. Lightning prefetches a batch from one that has not, and the saved position is then one batch
  ahead.
* The state is a position in the plan, the same on every rank (Lightning keeps only rank 0's), and so resumes at another
  world size.
* A finished epoch rolls over at the start of ``__iter__``: Lightning stops asking at the length, so code after the last
  ``yield`` does not run.
* Nothing is skipped. A bad record raises with its shard and key, or a stand-in that is a function of the plan takes its
  place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dslight.data.plan import TrainPlan, accumulation, eval_share, question_rows
from dslight.data.sample import BadSample, Sample, parse_sample
from dslight.data.shards import ShardError, ShardReader
from dslight.types import Question

log = logging.getLogger(__name__)

OnBad = Literal["raise", "substitute"]
T = TypeVar("T")

_MAX_SPARES = 100
_BAD_SHARE = 0.001
_STATE_VERSION = 2


def read_sample(reader: ShardReader, row: int) -> Sample:
    """Read and check one record.

    Raises:
        BadSample, ShardError: naming shard and key.
    """
    members = reader.read(row)
    shard, key = reader.locate(row)
    try:
        return parse_sample(key, members)
    except BadSample as error:
        raise BadSample(f"{reader.root / shard.name}: {error}") from error


class TrainRecords(Dataset[T], Generic[T]):
    """The records of all training sources, numbered as the plan numbers them, made into rows by ``make``."""

    def __init__(
        self, readers: Sequence[ShardReader], plan: TrainPlan, make: Callable[[Sample], T], on_bad: OnBad = "raise"
    ) -> None:
        self.readers, self.plan, self.make, self.on_bad = list(readers), plan, make, on_bad
        self._starts = plan.starts
        self._read = self._bad = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, item: int | tuple[int, ...]) -> Any:
        """The row of a record, or the tuple of rows of a pack."""
        return tuple(self._row(record) for record in item) if isinstance(item, tuple) else self._row(item)

    def _row(self, record: int) -> T:
        self._read += 1
        for attempt in range(_MAX_SPARES):
            chosen = record if attempt == 0 else self.plan.spare(record, attempt)
            source = int(np.searchsorted(self._starts, chosen, side="right")) - 1
            reader, row = self.readers[source], chosen - int(self._starts[source])
            try:
                return self._make(reader, row)
            except (BadSample, ShardError) as error:
                if self.on_bad == "raise":
                    raise
                self._bad += 1
                log.warning("substituting a bad sample: %s", error)
                if self._bad > max(_MAX_SPARES, _BAD_SHARE * self._read):
                    raise BadSample(f"{self._bad} bad samples of {self._read} read; the last: {error}") from error
        raise BadSample(f"no good stand-in for record {record} among {_MAX_SPARES}")

    def _make(self, reader: ShardReader, row: int) -> T:
        sample = read_sample(reader, row)
        try:
            return self.make(sample)
        except BadSample as error:
            shard, key = reader.locate(row)
            raise BadSample(f"{reader.root / shard.name}: {key}: {error}") from error


class TrainLoader(Generic[T]):
    """This rank's micro-batches of one epoch after another.

    Args:
        dataset: gives rows by record number.
        plan: the order.
        collate: rows to a batch.
        rank, world: of the data-parallel group.
        micro: rows of a batch.
        num_workers: processes that read ahead; 0 reads in this one.
        on_load: called after a resume with the number of micro-batches of this epoch that are done at *this* world
            size.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        plan: TrainPlan,
        collate: Callable[[list[T]], Any],
        rank: int,
        world: int,
        micro: int,
        num_workers: int = 0,
        on_load: Callable[[int], None] | None = None,
    ) -> None:
        self.dataset, self.plan, self.collate = dataset, plan, collate
        self.rank, self.world, self.micro, self.num_workers, self.on_load = rank, world, micro, num_workers, on_load
        self.accumulate = accumulation(plan.global_batch, world, micro)
        self.epoch = self.consumed = self.unusable = self.shrunk = 0

    def __len__(self) -> int:
        return self.plan.steps * self.accumulate

    def __iter__(self) -> Iterator[Any]:
        if self.consumed >= self.plan.items:
            self.epoch, self.consumed = self.epoch + 1, 0
        batches = self.plan.micro_batches(self.epoch, self.consumed, self.rank, self.world, self.micro)
        for batch in _torch_loader(self.dataset, batches, self.collate, self.num_workers):
            self.consumed += self.world * self.micro  # before the yield: a checkpoint is saved while the batch is out
            self._count_unusable(batch)
            yield batch

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
        return {
            "version": _STATE_VERSION,
            "epoch": self.epoch,
            "consumed": self.consumed,
            "global_batch": self.plan.global_batch,
            "plan_hash": self.plan.hash,
            "plan": self.plan.parts,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after ``state``.

        Raises:
            ValueError: naming the field, if the state belongs to another order of the data.
        """
        now = self.state_dict()
        hints = {"global_batch": "data.global_batch_size", "plan_hash": "data"}
        for name in ("version", "global_batch", "plan_hash"):
            if state.get(name) != now[name]:
                what = f" ({_differences(state['plan'], now['plan'])})" if name == "plan_hash" else ""
                raise ValueError(
                    f"checkpoint of the data loader: {name} is {state.get(name)!r}, this run has {now[name]!r}{what}; "
                    f"resume with the same {hints.get(name, 'version of dslight')}"
                )
        self.epoch = state["epoch"]
        self.consumed = state["consumed"] - state["consumed"] % self.plan.global_batch
        if self.on_load is not None:
            self.on_load(self.consumed // (self.world * self.micro))


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


class QuestionRecords(Dataset[T], Generic[T]):
    """One row per question of an evaluation source; an index is (number of the question, whether it is no padding)."""

    def __init__(self, reader: ShardReader, make: Callable[[Sample, Question, bool], T]) -> None:
        self.reader, self.make = reader, make
        self._rows = question_rows(reader.index.questions)
        self._first = np.cumsum(reader.index.questions) - reader.index.questions

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: tuple[int, bool]) -> T:
        number, valid = index
        row = int(self._rows[number])
        sample = read_sample(self.reader, row)
        return self.make(sample, sample.questions[number - int(self._first[row])], valid)


class EvalLoader(Generic[T]):
    """This rank's share of ``items`` in order; all ranks have equally many batches, short ones are padded with invalid
    rows.

    The dataset is indexed with (number of the item, valid).
    """

    def __init__(
        self,
        dataset: Dataset[T],
        items: int,
        collate: Callable[[list[T]], Any],
        rank: int,
        world: int,
        batch: int,
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.collate, self.num_workers = dataset, collate, num_workers
        numbers, valid = eval_share(items, rank, world)
        share = list(zip(numbers.tolist(), valid.tolist(), strict=True))
        self.batches = [share[i : i + batch] for i in range(0, len(share), batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(_torch_loader(self.dataset, self.batches, self.collate, self.num_workers))


def _torch_loader(
    dataset: Dataset[Any], batches: Iterable[Any], collate: Callable[[list[Any]], Any], workers: int
) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=cast(Any, batches),  # any iterable of lists of indices
        collate_fn=collate,
        num_workers=workers,
        generator=torch.Generator(),  # so that making an iterator draws nothing from the global generator
    )
