"""Which piece of a tensor this process holds: all of it, or its share of one that is sharded (DTensor)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from dslight.checkpoints.read import Share
from dslight.upstream.torch import own_share, storage


def local(tensor: Tensor) -> Tensor:
    """The piece itself, which may be empty."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share(tensor: Tensor) -> Share | None:
    """Where the piece lies in the whole, a slice per dimension; ``None``: it is the whole."""
    if not isinstance(tensor, DTensor):
        return None
    sizes, begins = own_share(tensor)
    return tuple(slice(begin, begin + size) for begin, size in zip(begins, sizes, strict=True))


def identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two names of one tensor, whether it has memory or not."""
    piece = local(tensor)
    return storage(piece), piece.storage_offset()
