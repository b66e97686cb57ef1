"""Arrays that a process shares with those it starts, in whatever way it starts them.

A forked process has all that its parent has. One that is spawned has nothing, and would read the index of millions of
records again, once for each worker of each rank. Decided here: the index lies in a file without a name
(``memfd_create``), which a process hands to those it starts; it takes no room in ``/dev/shm``, which containers make
small, and is gone with the last process that has it. What is seldom asked for (hashes, keys) lies in a file without a
name on disk, of which only those pages are in memory that somebody looks at.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from contextlib import suppress
from math import prod
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

_ALIGNED = 64


class SharedMemory:
    """Room for ``size`` bytes of arrays, and for ``cold`` bytes of those that need not be in memory.

    Args:
        size: in bytes.
        file: descriptor of memory that there is already.
        cold: in bytes.
        cold_file: descriptor of the file of those.
    """

    def __init__(self, size: int, file: int | None = None, cold: int = 0, cold_file: int | None = None) -> None:
        self.size, self.cold = size, cold
        self.file = _in_memory(size) if file is None else file
        self.cold_file = (_on_disk(cold) if cold_file is None else cold_file) if cold else -1
        self._maps = mmap.mmap(self.file, size), mmap.mmap(self.cold_file, cold) if cold else None
        self._ends = [0, 0]

    def __del__(self) -> None:
        for name in ("file", "cold_file"):
            if getattr(self, name, -1) >= 0:
                os.close(getattr(self, name))

    def __reduce__(self) -> tuple[Any, ...]:
        cold = DupFd(self.cold_file) if self.cold else None
        return _received, (self.size, DupFd(self.file), self.cold, cold)

    @staticmethod
    def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Bytes that an array takes at most."""
        return prod(shape) * dtype.itemsize + _ALIGNED

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], cold: bool = False) -> np.ndarray:
        """The next array of this memory: whoever asks for the same ones in the same order has the same."""
        start = -(-self._ends[cold] // _ALIGNED) * _ALIGNED
        self._ends[cold] = start + prod(shape) * dtype.itemsize
        return np.frombuffer(self._maps[cold], dtype, prod(shape), start).reshape(shape)  # type: ignore[arg-type]

    def cool(self) -> None:
        """Leave to the disk what was written to the cold part."""
        cold = self._maps[1]
        if cold is not None and hasattr(mmap, "MADV_DONTNEED"):
            cold.flush()
            cold.madvise(mmap.MADV_DONTNEED)
            cold.madvise(mmap.MADV_RANDOM)  # one page for one record, and none ahead


def _in_memory(size: int) -> int:
    file = os.memfd_create("dslight", os.MFD_CLOEXEC)
    os.ftruncate(file, size)
    return file


def _on_disk(size: int) -> int:
    """A file without a name; in memory, where the disk has no room for it."""
    with suppress(OSError), tempfile.TemporaryFile() as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a disk that is full later would kill the process
        return os.dup(file.fileno())
    return _in_memory(size)


def give_back() -> None:
    """Return to the system what was freed: the C library keeps the room of thousands of indexes for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _received(size: int, file: Any, cold: int, cold_file: Any) -> SharedMemory:
    return SharedMemory(size, file.detach(), cold, None if cold_file is None else cold_file.detach())


def is_starting() -> bool:
    """Whether what is pickled now goes to a process that is being started, and may bring descriptors along."""
    return get_spawning_popen() is not None
