"""Which record every rank reads at every step, known before the first step: a function of data, mix, seed and epoch.

Terms: an *item* is one occurrence of a record in an epoch. Items are cut into global batches of ``G``; with ``W`` ranks
and micro-batches of ``m``, global batch ``g`` is read as ``A = G / (W m)`` rounds, and rank ``r`` of round ``a`` reads
items ``g G + a W m + r m`` up to ``+ m``. So the set of records of an optimizer step depends neither on ``W`` nor on
``m``, the position is one number, and all ranks take equally many steps because the remainder is dropped at the global
batch.

Mixing is by repetition, not by coin flips: a source of weight 2.5 appears twice in full and once by a fresh random half
per epoch, so the realised shares are those that were asked for, to within one record, in every epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlanSource:
    """A source as the plan knows it: digest of its manifest, number of records, weight (1.0: once per epoch)."""

    digest: str
    records: int
    weight: float = 1.0


@dataclass(frozen=True)
class TrainPlan:
    """The order of training.

    Records are numbered through all sources in order: record ``i`` of source ``s`` is ``starts[s] + i``.
    """

    sources: tuple[PlanSource, ...]
    seed: int
    global_batch: int

    def __post_init__(self) -> None:
        for i, source in enumerate(self.sources):
            if source.weight <= 0:
                raise ValueError(
                    f"data.train[{i}].weight: {source.weight}; must be above 0 (leave the source out instead)"
                )
        if self.steps == 0:
            raise ValueError(
                f"data.global_batch_size: {self.global_batch} is more than the {sum(self._counts)} items of an epoch; "
                "lower it or raise a weight"
            )

    @property
    def _counts(self) -> list[int]:
        return [round(source.records * source.weight) for source in self.sources]

    @property
    def starts(self) -> np.ndarray:
        """int64 ``[sources + 1]``: the number of the first record of each source."""
        return np.cumsum([0, *(source.records for source in self.sources)])

    @property
    def steps(self) -> int:
        """Optimizer steps (global batches) per epoch."""
        return sum(self._counts) // self.global_batch

    @property
    def items(self) -> int:
        """Items per epoch, the dropped remainder left out."""
        return self.steps * self.global_batch

    @property
    def hash(self) -> str:
        """Equal if and only if the plans give the same order (16 hex digits)."""
        content = [[[s.digest, s.records, s.weight] for s in self.sources], self.seed, self.global_batch]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def epoch(self, epoch: int) -> np.ndarray:
        """The records of an epoch in order, int64 ``[items]``."""
        rng = np.random.default_rng([self.seed, epoch])
        chosen = []
        for source, start, count in zip(self.sources, self.starts, self._counts, strict=False):
            whole, part = divmod(count, source.records) if source.records else (0, 0)
            rows = [np.arange(source.records)] * whole + [rng.permutation(source.records)[:part]]
            chosen.append(start + np.concatenate(rows))
        return rng.permutation(np.concatenate(chosen))[: self.items].astype(np.int64)

    def micro_batches(self, epoch: int, consumed: int, rank: int, world: int, micro: int) -> np.ndarray:
        """What a rank still has to read in an epoch of which ``consumed`` items are done, int64 ``[batches, micro]``.

        ``consumed`` inside a global batch is taken back to its start: its optimizer step has not happened.
        """
        accumulation(self.global_batch, world, micro)
        done = consumed - consumed % self.global_batch
        return self.epoch(epoch)[done:].reshape(-1, world, micro)[:, rank]

    def spare(self, record: int, attempt: int) -> int:
        """The record that stands in for a bad one, the same on every machine and at every resume."""
        rng = np.random.default_rng([self.seed, record, attempt])
        return int(rng.integers(self.starts[-1]))


def accumulation(global_batch: int, world: int, micro: int) -> int:
    """Micro-batches of a rank per optimizer step.

    Raises:
        ValueError: if the global batch is not a multiple of ``world * micro``.
    """
    if global_batch % (world * micro):
        raise ValueError(
            f"data.global_batch_size: {global_batch} is no multiple of {world} ranks x data.micro_batch_size {micro}"
        )
    return global_batch // (world * micro)


def eval_share(items: int, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    """A rank's share of ``items`` in order: int64 item numbers and bool ``valid``, of equal length on all ranks.

    Shares are contiguous, so that the questions about one image stay together; a short share repeats the last item with
    ``valid`` false.
    """
    length = -(-items // world)
    numbers = np.arange(rank * length, (rank + 1) * length)
    return np.minimum(numbers, items - 1), numbers < items


def question_rows(questions: Sequence[int] | np.ndarray) -> np.ndarray:
    """The record of every question in order, given the questions of each record, int64 ``[questions]``."""
    return np.repeat(np.arange(len(questions)), questions)
