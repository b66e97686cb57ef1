"""Memory that a batch is made in.

The views of a batch are its bulk: 13 MB for eight images of five views each. Decided here:

* While a batch is made, views are written side by side into one piece of memory, where the collate finds them in the
  order it wants and copies nothing. Whoever makes a batch (``loader``, ``crossing``) says which piece. Outside of a
  batch, and where the piece is too small, memory is torch's as ever and views are joined by a copy: nothing but time
  depends on this.
* The piece is used again when the batch is gone. Memory that is new to a process has to be cleared and mapped page by
  page, which takes longer than to write it.
* The three colours of a pixel lie side by side, as they are decoded and resized. To take them apart takes a quarter of
  the time of resizing; the model does it on its device, where it makes them floating point.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

_ALIGNED = 64
_KEPT = 3
"""Pieces that wait to be used again."""
_current = threading.local()


class Arena:
    """The memory of the batch that is made inside of ``with``, by this thread.

    Args:
        memory: uint8 ``[n]``.

    Attributes:
        offset: where the memory begins in its storage.
        wanted: bytes that were asked for so far, also beyond ``n``.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory, self.wanted = memory, 0
        self._start = memory.data_ptr()
        self.offset = memory.storage_offset()

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
        start = self.allot(size, aligned)
        return None if start is None else self.memory[start : start + size]

    def allot(self, size: int, aligned: int = 1) -> int | None:
        """Where the next ``size`` bytes begin, or ``None`` if there are not as many left."""
        start = -(-self.wanted // aligned) * aligned
        self.wanted = end = start + size
        return start if end <= len(self.memory) else None

    def place(self, tensor: Tensor) -> tuple[int, tuple[int, ...]] | None:
        """At which byte of the memory a tensor lies, and its strides; it is copied there if need be. ``None``: there is
        no room for it."""
        inside = tensor.data_ptr() - self._start
        if 0 <= inside < len(self.memory):
            return inside, tensor.stride()
        room = self.take(tensor.nbytes, _ALIGNED)
        if room is None:
            return None
        copy = room.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        return room.data_ptr() - self._start, copy.stride()


class Pool:
    """Pieces of memory, each used again when the last tensor of the batch that was made in it is gone."""

    def __init__(self) -> None:
        self._free: deque[Tensor] = deque(maxlen=_KEPT)

    def take(self, size: int) -> Tensor:
        """uint8 of ``size`` bytes or more, of unknown content."""
        memory = self._free.pop() if self._free else torch.empty(0, dtype=torch.uint8)
        if len(memory) < size:
            memory = torch.empty(size + size // 4, dtype=torch.uint8)
        lent = memory.numpy()[:]  # an object that lives as long as a tensor needs the memory
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)


def empty(count: int, height: int, width: int) -> Tensor:
    """Views, uint8 ``[count, 3, height, width]``, in the memory of this batch where it has room."""
    arena: Arena | None = getattr(_current, "arena", None)
    start = None if arena is None else arena.allot(count * height * width * 3)
    if arena is None or start is None:
        return torch.empty((count, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    return arena.memory.as_strided(
        (count, 3, height, width), (height * width * 3, 1, width * 3, 3), arena.offset + start
    )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Views ``[a, 3, h, w]`` and ``[b, 3, h, w]`` behind one another, ``[a + b, 3, h, w]``.

    Parts that lie in memory like that are not copied: the result and they are the same memory.
    """
    first, end = parts[0], parts[0].data_ptr()
    count, _, height, width = (sum(map(len, parts)), *first.shape[1:])
    strides = (height * width * 3, 1, width * 3, 3)
    for part in parts:
        if part.data_ptr() != end or part.stride() != strides:
            break
        end += part.nbytes
    else:
        storage = first.untyped_storage()
        if end <= storage.data_ptr() + storage.nbytes():  # else they are neighbours by chance, of different memory
            return first.as_strided((count, 3, height, width), strides)
    if first.dtype != torch.uint8:  # pixels that are normalised already
        return torch.cat(list(parts))
    return torch.cat(list(parts), out=empty(count, height, width))
