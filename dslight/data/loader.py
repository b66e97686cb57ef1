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
* A worker writes down which record it takes up, in memory that it shares with the training process. What kills or hangs
  it then has a name, which torch's own message (a process id) has not.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dslight.data.arena import Arena, Pool
from dslight.data.crossing import Crossing, Sender
from dslight.data.plan import TrainPlan, accumulation, eval_share, question_rows
from dslight.data.progress import FitProgress
from dslight.data.sample import BadSample, Sample, parse_sample
from dslight.data.shards import ShardError, ShardReader
from dslight.types import Question

log = logging.getLogger(__name__)

OnBad = Literal["raise", "substitute"]
Start = Literal["fork", "spawn", "forkserver"]
T = TypeVar("T")

_MAX_SPARES = 100
_BAD_SHARE = 0.001
_STATE_VERSION = 2
_NOTE = 400  # bytes that a worker has for the name of a record


class WorkerError(RuntimeError):
    """A data worker was killed or hangs; the message names the records that the workers took up last."""


@dataclass(frozen=True)
class Workers:
    """The processes that read ahead for a rank.

    Attributes:
        count: how many; 0 reads in the training process.
        timeout: seconds to wait for a batch before the run is ended; 0: for ever.
        start: how they are started; ``None``: as Python does. A forked worker shares what is loaded, a spawned one is
            safe beside threads and CUDA.
    """

    count: int = 0
    timeout: float = 600
    start: Start | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"data.num_workers: {self.count}; 0 or more")
        if self.timeout < 0:
            raise ValueError(f"data.worker_timeout: {self.timeout}; seconds, or 0 to wait for ever")


def read_sample(reader: ShardReader, row: int) -> Sample:
    """Read and check one record.

    Raises:
        BadSample, ShardError: naming shard and key.
    """
    shard, key = reader.locate(row)
    _Notes.take(f"{reader.root / shard.name}: {key}")
    members = reader.read(row)
    try:
        return parse_sample(key, members)
    except BadSample as error:
        raise BadSample(f"{reader.root / shard.name}: {error}") from error


class TrainRecords(Dataset[T], Generic[T]):
    """The records of all training sources, numbered as the plan numbers them, made into rows by ``make``.

    ``make`` gets the sample and, where ``tokens`` of every source are given, what is kept there of it.
    """

    def __init__(
        self,
        readers: Sequence[ShardReader],
        plan: TrainPlan,
        make: Callable[..., T],
        on_bad: OnBad = "raise",
        tokens: Sequence[Any] = (),
    ) -> None:
        self.readers, self.plan, self.make, self.on_bad, self.tokens = list(readers), plan, make, on_bad, tokens
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
            try:
                return self._make(source, chosen - int(self._starts[source]))
            except (BadSample, ShardError) as error:
                if self.on_bad == "raise":
                    raise
                self._bad += 1
                log.warning("substituting a bad sample: %s", error)
                if self._bad > max(_MAX_SPARES, _BAD_SHARE * self._read):
                    raise BadSample(f"{self._bad} bad samples of {self._read} read; the last: {error}") from error
        raise BadSample(f"no good stand-in for record {record} among {_MAX_SPARES}")

    def _make(self, source: int, row: int) -> T:
        reader = self.readers[source]
        sample = read_sample(reader, row)
        try:
            return self.make(sample, *(kept[row] for kept in self.tokens[source : source + 1]))
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
        workers: Workers = Workers(),
        progress: FitProgress | None = None,
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
        if self.progress is not None:
            self.progress.resume(self.consumed // (self.world * self.micro))


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
        question = sample.questions[number - int(self._first[row])]
        try:
            return self.make(sample, replace(question, number=number), valid)
        except BadSample as error:
            shard, key = self.reader.locate(row)
            raise BadSample(f"{self.reader.root / shard.name}: {key}: {error}") from error


class EvalLoader(Generic[T]):
    """This rank's share of ``items``; all ranks have equally many batches, short ones are padded with invalid rows.

    The dataset is indexed with (number of the item, valid). With ``lengths`` (numbers of items -> the length of each)
    the longest come first, so that rows of a batch are of like lengths and memory runs out at once or not at all;
    without, items come in their order.
    """

    def __init__(
        self,
        dataset: Dataset[T],
        items: int,
        collate: Callable[[list[T]], Any],
        rank: int,
        world: int,
        batch: int,
        workers: Workers = Workers(),
        lengths: Callable[[Sequence[int]], Sequence[int]] | None = None,
    ) -> None:
        self.dataset, self.collate, self.workers = dataset, collate, workers
        numbers, valid = eval_share(items, rank, world)
        share = list(zip(numbers.tolist(), valid.tolist(), strict=True))
        if lengths is not None and len(share) > batch > 1:
            length = lengths([number for number, _ in share])
            share = [share[i] for i in sorted(range(len(share)), key=lambda i: -length[i])]
        self.batches = [share[i : i + batch] for i in range(0, len(share), batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return read_batches(self.dataset, self.batches, self.collate, self.workers)


def read_batches(
    dataset: Dataset[Any], batches: Iterable[Any], collate: Callable[[list[Any]], Any], workers: Workers
) -> Iterator[Any]:
    """The collated batches of a dataset, in order.

    Raises:
        WorkerError: a worker was killed, or the timeout is over.
    """
    _keep_freed_memory()
    crossing, options = Crossing(workers.count), {}
    if workers.count:
        notes = _Notes(workers)
        _opened.append(notes)
        begin = partial(_begin, notes, crossing.busy)
        options = {"timeout": workers.timeout, "multiprocessing_context": workers.start, "worker_init_fn": begin}
    loader = DataLoader(
        _Batches(dataset, collate),
        batch_size=None,  # what is read by one index is a batch already
        sampler=cast(Any, batches),  # any iterable of lists of indices
        collate_fn=_as_it_is,
        num_workers=workers.count,
        generator=torch.Generator(),  # so that making an iterator draws nothing from the global generator
        **options,
    )
    try:
        for sent in loader:
            yield crossing.open(sent)
    except RuntimeError as error:
        if died := worker_error(error):
            raise died from error
        raise


class _Batches(Dataset[Any]):
    """The collated batch of a list of indices, made in memory that is allotted for the whole of it."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], Any]) -> None:
        self.dataset, self.collate = dataset, collate
        self._memory, self._largest = Pool(), 0

    def __getitem__(self, indices: Sequence[Any]) -> Any:
        if Sender.here is not None:
            return Sender.here.send(lambda: self._make(indices))
        with Arena(self._memory.take(self._largest)) as arena:
            batch = self._make(indices)
        self._largest = max(self._largest, arena.wanted)
        return batch

    def _make(self, indices: Sequence[Any]) -> Any:
        return self.collate([self.dataset[index] for index in indices])


def _keep_freed_memory() -> None:
    """Let this process use memory again that a batch has left, instead of handing it to the kernel and asking for new.

    glibc gives back what is larger than the largest block that was freed before (up to 32 MiB, see mallopt(3)).
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(notes: _Notes, busy: torch.Tensor, worker: int) -> None:
    """Called in a worker."""
    _keep_freed_memory()
    notes.begin(worker)
    Sender.here = Sender(worker, busy)


def worker_error(error: BaseException) -> WorkerError | None:
    """torch's error about a dead or hanging worker with the records that workers had in hand; ``None``: another error.

    That a worker died comes with a signal, so it may be raised anywhere in the training process.
    """
    what = str(error).splitlines()[0] if str(error) else ""
    if not isinstance(error, RuntimeError) or not what.startswith(("DataLoader worker (pid", "DataLoader timed out")):
        return None
    return WorkerError(
        f"data.num_workers: {what.rstrip('. ')}. Taken up last: {'; '.join(str(notes) for notes in _opened)}. A worker "
        "that was killed was often short of memory; one that hangs is waited for data.worker_timeout seconds"
    )


class _Notes:
    """What each worker of a loader took up last, in memory shared with it."""

    _own: ClassVar[np.ndarray | None] = None  # in a worker: its line

    def __init__(self, workers: Workers) -> None:
        self.lines = torch.zeros(workers.count, _NOTE, dtype=torch.uint8).share_memory_()

    def begin(self, worker: int) -> None:
        """Called in the worker."""
        _Notes._own = self.lines[worker].numpy()

    @classmethod
    def take(cls, record: str) -> None:
        """Note a record; nothing outside of a worker."""
        if cls._own is not None:
            text = record.encode()[-_NOTE:]  # of a long path the end
            cls._own[:] = np.frombuffer(text.ljust(_NOTE, b"\0"), np.uint8)

    def __str__(self) -> str:
        texts = [bytes(line.tolist()).rstrip(b"\0").decode(errors="replace") for line in self.lines]
        return "; ".join(f"worker {i}: {text or 'nothing'}" for i, text in enumerate(texts))


_opened: deque[_Notes] = deque(maxlen=2)  # that of training, and of the validation within
