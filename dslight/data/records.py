"""Records of shards as rows of batches, and what happens to one that is bad.

Decided here, and why:

* Nothing is skipped. A bad record raises with its shard and key, or a stand-in that is a function of the plan takes its
  place.
* Of a batch, all text is read and made into ids first, then all images are decoded and resized. An image is larger than
  a processor's nearest caches, so that what comes after it starts anew; this takes half the time for the text.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from dslight.data.collate import Item
from dslight.data.plan import TrainPlan, question_rows
from dslight.data.sample import BadSample, Sample, parse_sample
from dslight.data.shards import ShardError, ShardReader
from dslight.data.transport.workers import Notes
from dslight.data.views.frames import AS_USUAL, Frames
from dslight.types import IGNORE, Question

log = logging.getLogger(__name__)

OnBad = Literal["raise", "substitute"]
T = TypeVar("T")

_MAX_SPARES = 100
_BAD_SHARE = 0.001


def read_sample(reader: ShardReader, row: int, text: bool = True, frames: Frames = AS_USUAL) -> Sample:
    """Read and check one record; without ``text``, the turns of its conversation are left out. Its
    videos become ``frames``.

    Raises:
        BadSample, ShardError: naming shard and key.
    """
    Notes.take(reader, row)
    members = reader.read(row)
    try:
        return parse_sample(reader.index.key(row), members, text, frames)
    except BadSample as error:
        raise BadSample(f"{reader.root / reader.locate(row)[0].name}: {error}") from error


class _Taken(NamedTuple):
    """A record that was read: where it is, and what there is beside it."""

    reader: ShardReader
    row: int
    sample: Sample
    beside: tuple[Any, ...]


class TrainRecords(Dataset[T], Generic[T]):
    """The records of all training sources, numbered as the plan numbers them, made into rows by ``make``.

    Args:
        readers: of the sources.
        plan: the order, which knows stand-ins too.
        make: a sample, and what its text became where that is known, to a row.
        on_bad: what happens to a bad record.
        text: a sample to what its text becomes.
        tokens: per source what is kept of that, by the row of the record; then ``text`` is not asked.
        frames: that videos become.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        plan: TrainPlan,
        make: Callable[..., T],
        on_bad: OnBad = "raise",
        text: Callable[[Sample], Any] | None = None,
        tokens: Sequence[Any] = (),
        frames: Frames = AS_USUAL,
    ) -> None:
        self.readers, self.plan, self.make, self.on_bad = list(readers), plan, make, on_bad
        self.text, self.tokens, self.frames = text, tokens, frames
        self._starts: list[int] = plan.starts.tolist()
        self._read = self._bad = 0

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, item: int | tuple[int, ...]) -> Any:
        """The row of a record, or the tuple of rows of a pack."""
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int | tuple[int, ...]]) -> list[Any]:
        """The rows, or packs of rows, of a batch."""
        packs = [item if isinstance(item, tuple) else (item,) for item in items]
        taken = iter([self._take(record) for pack in packs for record in pack])
        rows = [tuple([self._row(record, next(taken)) for record in pack]) for pack in packs]
        return [row if isinstance(item, tuple) else row[0] for item, row in zip(items, rows, strict=True)]

    def _take(self, record: int) -> _Taken | BadSample | ShardError:
        """A record before its images are decoded, or what is wrong with it, which is raised when its turn comes."""
        source = bisect_right(self._starts, record) - 1
        reader, row = self.readers[source], record - self._starts[source]
        try:
            kept = self.tokens[source][row] if self.tokens else None
            sample = read_sample(reader, row, kept is None, self.frames)
            if kept is not None:
                return _Taken(reader, row, sample, (kept,))
        except (BadSample, ShardError) as error:
            return error
        try:
            return _Taken(reader, row, sample, (self.text(sample),) if self.text else ())
        except BadSample as error:
            return _named(error, reader, row)

    def _row(self, record: int, taken: _Taken | BadSample | ShardError) -> T:
        self._read += 1
        for attempt in range(1, _MAX_SPARES + 1):
            try:
                return self._make(taken)
            except (BadSample, ShardError) as error:
                if self.on_bad == "raise":
                    raise
                self._bad += 1
                log.warning("substituting a bad sample: %s", error)
                if self._bad > max(_MAX_SPARES, _BAD_SHARE * self._read):
                    raise BadSample(f"{self._bad} bad samples of {self._read} read; the last: {error}") from error
            taken = self._take(self.plan.spare(record, attempt))
        raise BadSample(f"no good stand-in for record {record} among {_MAX_SPARES}")

    def _make(self, taken: _Taken | BadSample | ShardError) -> T:
        if not isinstance(taken, _Taken):
            raise taken
        Notes.take(taken.reader, taken.row)
        try:
            return self.make(taken.sample, *taken.beside)
        except BadSample as error:
            raise _named(error, taken.reader, taken.row) from error


def _named(error: BadSample, reader: ShardReader, row: int) -> BadSample:
    """The error with shard and key in front."""
    shard, key = reader.locate(row)
    return BadSample(f"{reader.root / shard.name}: {key}: {error}", error.reason)


class ConversationRecords(Dataset[Item]):
    """The conversations of a source whose loss is wanted; an index is (number of the record, whether it is no padding,
    which teaches nothing).
    """

    def __init__(self, reader: ShardReader, make: Callable[[Sample], Item], frames: Frames = AS_USUAL) -> None:
        self.reader, self.make, self.frames = reader, make, frames

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: tuple[int, bool]) -> Item:
        number, valid = index
        try:
            item = self.make(read_sample(self.reader, number, frames=self.frames))
        except BadSample as error:
            raise _named(error, self.reader, number) from error
        return item if valid else replace(item, labels=np.full(len(item.ids), IGNORE))


class QuestionRecords(Dataset[T], Generic[T]):
    """One row per question of an evaluation source; an index is (number of the question, whether it is no padding)."""

    def __init__(
        self, reader: ShardReader, make: Callable[[Sample, Question, bool], T], frames: Frames = AS_USUAL
    ) -> None:
        self.reader, self.make, self.frames = reader, make, frames
        self._rows = question_rows(reader.index.questions)
        self._first = np.cumsum(reader.index.questions) - reader.index.questions
        self._last: tuple[int, Sample] | None = None  # questions about a record are neighbours

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, number: int) -> int:
        """Which record a question is about."""
        return int(self._rows[number])

    def __getitem__(self, index: tuple[int, bool]) -> T:
        number, valid = index
        row = self.record(number)
        if self._last is None or self._last[0] != row:
            self._last = row, read_sample(self.reader, row, frames=self.frames)
        sample = self._last[1]
        question = sample.questions[number - int(self._first[row])]
        try:
            return self.make(sample, replace(question, number=number), valid)
        except BadSample as error:
            raise _named(error, self.reader, row) from error
