"""Memory that a batch is made in.

The views of a batch are its bulk: 13 MB for eight images of five views each. Decided here: while a batch is made, views
are written side by side into one piece of memory, where the collate finds them in the order it wants and copies
nothing. Whoever makes a batch (``loader``, ``crossing``) says which piece. Outside of a batch, and where the piece is
too small, memory is torch's as ever and views are joined by a copy, so that nothing but time depends on this.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from types import TracebackType

import torch
from torch import Tensor

_ALIGNED = 64
_current = threading.local()


class Arena:
    """The memory of the batch that is made inside of ``with``, by this thread.

    Args:
        memory: uint8 ``[n]``.

    Attributes:
        wanted: bytes that were asked for so far, also beyond ``n``.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory, self.wanted = memory, 0
        self._start = memory.data_ptr()

    def __enter__(self) -> Arena:
        _current.arena = self
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _current.arena = None

    @property
    def enough(self) -> bool:
        """Whether all that was asked for is in it."""
        return self.wanted <= len(self.memory)

    def take(self, size: int, aligned: int = 1) -> Tensor | None:
        """The next ``size`` bytes, or ``None`` if there are not as many left."""
        start = -(-self.wanted // aligned) * aligned
        self.wanted = start + size
        return self.memory[start : self.wanted] if self.enough else None

    def place(self, tensor: Tensor) -> int:
        """Where in the memory a tensor lies; it is copied there if need be. Negative: nowhere, there is no room."""
        inside = tensor.data_ptr() - self._start
        if 0 <= inside < len(self.memory) and tensor.is_contiguous():
            return inside
        room = self.take(tensor.nbytes, _ALIGNED)
        if room is None:
            return -1
        room.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return room.data_ptr() - self._start


def empty(shape: Sequence[int]) -> Tensor:
    """uint8 of a shape, in the memory of this batch where it has room."""
    arena: Arena | None = getattr(_current, "arena", None)
    room = None if arena is None else arena.take(prod(shape))
    return torch.empty(tuple(shape), dtype=torch.uint8) if room is None else room.view(tuple(shape))


def joined(parts: Sequence[Tensor]) -> Tensor:
    """uint8 parts behind one another: ``[a, ...]`` and ``[b, ...]`` give ``[a + b, ...]``.

    Parts that lie in memory like that are not copied: the result and they are the same memory.
    """
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous():
            return torch.cat(list(parts), out=empty((sum(map(len, parts)), *first.shape[1:])))
        end += part.nbytes
    storage, count = first.untyped_storage(), sum(map(len, parts))
    if end > storage.data_ptr() + storage.nbytes():  # neighbours by chance, of different memory
        return torch.cat(list(parts), out=empty((count, *first.shape[1:])))
    return first.as_strided((count, *first.shape[1:]), first.stride())
