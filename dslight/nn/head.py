"""The head of a language model, shown the positions that its logits are wanted at and no others.

Logits are wide: at a vocabulary of 150,000, 640 positions have 390 MB of them and as much of their gradient, and of a
conversation about a picture a tenth is supervised. What a family does to logits (a scale, a soft cap) it does behind
the head, to each by itself. So it is the head's input that is narrowed, by a hook on whatever module the model calls as
its head, and all else is the model's own: a head that is tied, sharded, or has adapters beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from dslight.nn.hooks import before, first_input, with_first_input


@contextmanager
def narrowed(head: nn.Module | None, rows: int, positions: Tensor) -> Iterator[None]:
    """While the block runs, ``head`` gets hidden states ``[1, n, D]`` where the model gives it ``[B, T, D]``.

    Args:
        head: its first argument is the hidden states; ``None``: nothing is narrowed.
        rows: B.
        positions: int64 ``[n]``, indices into the rows laid end to end.
    """

    def select(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = first_input(args, kwargs)
        if hidden.ndim != 3 or hidden.shape[0] != rows:  # not what it is taken for: the model gives logits of all
            return None
        return with_first_input(args, kwargs, hidden.flatten(0, 1).index_select(0, positions)[None])

    if head is None:
        yield
        return
    handle = before(head, select)
    try:
        yield
    finally:
        handle.remove()


def at(logits: Tensor, rows: int, length: int, positions: Tensor) -> Tensor:
    """``[n, vocabulary]``: logits of the positions, from those of a head that was :func:`narrowed`, or of all.

    Args:
        logits: ``[1, n, vocabulary]`` or ``[B, T, vocabulary]``.
        rows: B.
        length: T.
        positions: as given to :func:`narrowed`.
    """
    flat = logits.flatten(0, 1)  # the last position of a row is not supervised: n is less than B * T
    return flat.index_select(0, positions) if len(flat) == rows * length else flat
