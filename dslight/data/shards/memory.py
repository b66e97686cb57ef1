"""Arrays that a process shares with those it starts, in whatever way it starts them.

A forked process has all that its parent has. One that is spawned has nothing, and would read the index of millions of
records again, once for each worker of each rank. Decided here: the index lies in a file without a name
(``memfd_create``), which a process hands to those it starts; it takes no room in ``/dev/shm``, which containers make
small, and is gone with the last process that has it.
"""

from __future__ import annotations

import mmap
import os
from math import prod
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import DupFd
from typing import Any

import numpy as np

_ALIGNED = 64


class SharedMemory:
    """Room for ``size`` bytes of arrays.

    Args:
        size: in bytes.
        file: descriptor of memory that there is already.
    """

    def __init__(self, size: int, file: int | None = None) -> None:
        self.size, self._end = size, 0
        self.file = os.memfd_create("dslight", os.MFD_CLOEXEC) if file is None else file
        if file is None:
            os.ftruncate(self.file, size)
        self._map = mmap.mmap(self.file, size)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            os.close(self.file)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (self.size, DupFd(self.file))

    @staticmethod
    def room(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Bytes that an array takes at most."""
        return prod(shape) * dtype.itemsize + _ALIGNED

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """The next array of this memory: whoever asks for the same ones in the same order has the same."""
        start = -(-self._end // _ALIGNED) * _ALIGNED
        self._end = start + prod(shape) * dtype.itemsize
        return np.frombuffer(self._map, dtype, prod(shape), start).reshape(shape)


def _received(size: int, file: Any) -> SharedMemory:
    return SharedMemory(size, file.detach())


def is_starting() -> bool:
    """Whether what is pickled now goes to a process that is being started, and may bring descriptors along."""
    return get_spawning_popen() is not None
