"""Batches of a dataset, made in the training process or by data workers that read ahead.

Decided here: a worker writes down which record it takes up, in memory that it shares with the training process. What
kills or hangs it then has a name, which torch's own message (a process id) has not.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dslight.data.sample import BadSample
from dslight.data.shards import ShardError, ShardReader, name_of_record
from dslight.data.transport.batch_buffer import Arena, Pool
from dslight.data.transport.shared_memory import Crossing, Sender

Start = Literal["fork", "spawn", "forkserver"]

_NOTE = 4096  # bytes that a worker has for the path of a folder


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


NO_WORKERS = Workers()


def read_batches(
    dataset: Dataset[Any], batches: Iterable[Any], collate: Callable[[list[Any]], Any], workers: Workers
) -> Iterator[Any]:
    """The collated batches of a dataset, in order.

    Raises:
        WorkerError: a worker was killed, or the timeout is over.
    """
    _keep_freed_memory()
    made = _Batches(dataset, collate)
    if not workers.count:
        yield from (made[indices] for indices in batches)
        return
    crossing, notes = Crossing(workers.count), Notes(workers)
    _opened.append(notes)
    loader = DataLoader(
        made,
        batch_size=None,  # what is read by one index is a batch already
        sampler=cast(Any, batches),  # any iterable of lists of indices
        collate_fn=_as_it_is,
        num_workers=workers.count,
        generator=torch.Generator(),  # so that making an iterator draws nothing from the global generator
        timeout=workers.timeout,
        multiprocessing_context=workers.start,
        worker_init_fn=partial(_begin, notes, crossing.busy),
    )
    try:
        for sent in loader:
            if isinstance(sent, BadSample | ShardError):
                raise sent
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
            try:
                return Sender.here.send(lambda: self._make(indices))
            except (BadSample, ShardError) as error:  # torch would put a traceback into its message
                return error
        with Arena(self._memory.take(self._largest)) as arena:
            batch = self._make(indices)
        self._largest = max(self._largest, arena.wanted)
        return batch

    def _make(self, indices: Sequence[Any]) -> Any:
        whole = getattr(self.dataset, "__getitems__", None)  # torch's name for it
        return self.collate(whole(indices) if whole else [self.dataset[index] for index in indices])


def _keep_freed_memory() -> None:
    """Let this process use memory again that a batch has left, instead of handing it to the kernel and asking for new.

    glibc gives back what is larger than the largest block that was freed before (up to 32 MiB, see mallopt(3)).
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(notes: Notes, busy: torch.Tensor, worker: int) -> None:
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


class Notes:
    """What each worker of a loader took up last, in memory shared with it: the number of a record and its folder, of
    which a name is made when it is asked for."""

    _row: ClassVar[np.ndarray | None] = None  # in a worker: its line
    _root: ClassVar[np.ndarray]
    _reader: ClassVar[ShardReader | None] = None

    def __init__(self, workers: Workers) -> None:
        self.rows = torch.zeros(workers.count, 1, dtype=torch.int64).share_memory_()
        self.roots = torch.zeros(workers.count, _NOTE, dtype=torch.uint8).share_memory_()

    def begin(self, worker: int) -> None:
        """Called in the worker."""
        Notes._row, Notes._root, Notes._reader = self.rows[worker].numpy(), self.roots[worker].numpy(), None

    @classmethod
    def take(cls, reader: ShardReader, row: int) -> None:
        """Note a record; nothing outside of a worker."""
        if cls._row is None:
            return
        cls._row[0] = row
        if reader is not cls._reader:
            cls._reader = reader
            cls._root[:] = np.frombuffer(os.fsencode(reader.root).ljust(_NOTE, b"\0")[:_NOTE], np.uint8)

    def __str__(self) -> str:
        return "; ".join(f"worker {i}: {self._name(i)}" for i in range(len(self.rows)))

    def _name(self, worker: int) -> str:
        root = os.fsdecode(bytes(self.roots[worker].tolist()).rstrip(b"\0"))
        return name_of_record(Path(root), int(self.rows[worker])) if root else "nothing"


_opened: deque[Notes] = deque(maxlen=2)  # that of training, and of the validation within
