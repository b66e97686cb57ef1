"""How a batch comes from a data worker to the training process.

torch hands over each tensor of a batch in shared memory of its own: a file descriptor, sent over a socket that is
opened and authenticated for it, and pages that the kernel has to clear and map on both sides. For the pixels of a batch
that can take as long as resizing them. Decided here:

* A worker has a few places in shared memory, and makes a batch in one of them (``arena``). What is sent is the rest of
  the batch and where its tensors lie; the memory itself is sent once.
* A place is used again when the last tensor of its batch is gone in the training process, not before: whoever keeps a
  batch may keep it. If all places are in use, or a batch is larger than those before it, it goes torch's way.
"""

from __future__ import annotations

import io
import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dslight.data.transport.batch_buffer import Arena

_PLACES = 5
"""Of a worker: two batches that it is ahead, one or two that the trainer holds, the one that is being made."""
_SMALL = 1 << 16
"""Bytes of tensors that are not worth a place."""


class Parcel(NamedTuple):
    """What a worker sends: the place, its memory if that is new, and the batch without its tensors."""

    worker: int
    place: int
    memory: Tensor | None
    body: bytes


class Crossing:
    """The places of the workers of a loader, in the training process. It travels to the workers."""

    def __init__(self, workers: int) -> None:
        self.busy = torch.zeros(workers, _PLACES, dtype=torch.uint8).share_memory_()
        self._memories: dict[tuple[int, int], Tensor] = {}

    def open(self, sent: Any) -> Any:
        """The batch that was sent."""
        if not isinstance(sent, Parcel):
            return sent
        at = (sent.worker, sent.place)
        if sent.memory is not None:
            self._memories[at] = sent.memory
        memory = self._memories[at].numpy()[:]  # an object that lives as long as a tensor needs the memory
        weakref.finalize(memory, _release, self.busy, at, os.getpid()).atexit = False
        return _Reader(sent.body, torch.from_numpy(memory)).load()


class Sender:
    """The end in a worker.

    Args:
        worker: its number.
        busy: uint8 ``[workers, places]``, 1 where a place is in use.
    """

    here: ClassVar[Sender | None] = None
    """In a worker process: its own."""

    def __init__(self, worker: int, busy: Tensor) -> None:
        self.worker, self._busy = worker, busy[worker].numpy()
        self._memories: list[Tensor | None] = [None] * _PLACES
        self._largest = 0

    def send(self, make: Callable[[], Any]) -> Any:
        """The batch that ``make`` makes, as a :class:`Parcel` where that saves time."""
        place, new = self._free()
        memory = self._memories[place] if place >= 0 else None
        with Arena(torch.empty(0, dtype=torch.uint8) if memory is None else memory) as arena:
            batch = make()
        if memory is None:  # only what the batch itself needs, not what was asked for on the way to it
            arena.wanted = 0
        body = io.BytesIO()
        _Writer(body, arena).dump(batch)
        self._largest = max(self._largest, arena.wanted)
        if memory is None:
            return batch
        if not arena.enough:
            self._memories[place] = None  # it leaves with the tensors that are in it
            return batch
        self._busy[place] = 1
        return Parcel(self.worker, place, memory if new else None, body.getvalue())

    def _free(self) -> tuple[int, bool]:
        """A place that is not in use and has room for the largest batch so far, or -1; and whether its memory is
        new."""
        if self._largest < _SMALL:
            return -1, False
        for place in range(_PLACES):
            if not self._busy[place]:
                memory = self._memories[place]
                if memory is not None and len(memory) >= self._largest:
                    return place, False
                size = self._largest + self._largest // 4
                self._memories[place] = torch.empty(size, dtype=torch.uint8).share_memory_()
                return place, True
        return -1, False


def _release(busy: Tensor, at: tuple[int, int], owner: int) -> None:
    if os.getpid() == owner:  # a process that was forked meanwhile holds a copy, and may not give away what is not its
        busy[at] = 0


class _Writer(pickle.Pickler):
    """Pickles a batch without its tensors, which are put into the arena."""

    def __init__(self, file: io.BytesIO, arena: Arena) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._arena = arena

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        """Where a tensor lies."""
        if type(obj) is not Tensor:
            return None
        return obj.dtype, tuple(obj.shape), self._arena.place(obj)


class _Reader(pickle.Unpickler):
    def __init__(self, body: bytes, memory: Tensor) -> None:
        super().__init__(io.BytesIO(body))
        self._memory = memory

    def persistent_load(self, pid: tuple[torch.dtype, tuple[int, ...], tuple[int, tuple[int, ...]]]) -> Tensor:
        """The tensor that lies there."""
        dtype, shape, (start, strides) = pid
        span = (
            1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0
        )
        return self._memory[start : start + span * dtype.itemsize].view(dtype).as_strided(shape, strides)
