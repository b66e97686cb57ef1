"""Where things stand in a batch, and how it moves to a device: found out once, on the CPU.

A device that has to count what it holds (``nonzero``, a boolean index) makes the host wait for it. So indices are made
where the batch is made, before it moves, and how many there are is known by their shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dslight.types import Batch


IGNORE = -100
"""Label of a position that is not supervised (the value that torch's cross entropy and every Hugging Face model
use).
"""


class TokenGrid(NamedTuple):
    """Visual tokens that form a grid, in the order frames, rows, columns; see :mod:`dslight.positions`.

    Attributes:
        frames: 1 for an image.
        rows: of tokens, as they stand in the sequence.
        columns: see ``rows``.
        step: how many positions its frames stand apart.
    """

    frames: int
    rows: int
    columns: int
    step: float = 1.0

    @property
    def tokens(self) -> int:
        """How many they are."""
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class Places:
    """Where things stand in a batch: indices into its rows laid end to end, so ``row * T + column``.

    Attributes:
        visual: int64 ``[N]``, the visual slots.
        supervised: int64 ``[n]``, the positions whose next token is learned; ``None`` for questions.
        targets: int64 ``[n]``, those tokens.
        weights: float32 ``[n]``, how many times the loss of each counts; ``None``: all alike.
        documents: int64 ``[d + 1]``, where each document of packed rows begins, and the end; padding is one too.
            ``None`` where rows are not packed.
        longest: positions of the longest document.
        aligned: whether rows begin in column 0 and padding stands behind them alone.
        runs: the visual slots once more, as (first, behind the last) of those that stand side by side; for the host.
    """

    visual: Tensor
    supervised: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None
    documents: Tensor | None = None
    longest: int = 0
    aligned: bool = False
    runs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, batch: Batch) -> Places:
        """Those of a batch."""
        real = batch.attention_mask.bool()
        aligned = bool(real[:, 0].all() and (real[:, 1:] <= real[:, :-1]).all())
        visual = batch.visual_mask.flatten().nonzero().squeeze(1)
        found = cls(visual, aligned=aligned, runs=runs(visual))
        if batch.labels is not None:
            places, targets = supervised(batch.labels)
            weights = None if batch.weights is None else batch.weights.flatten().index_select(0, places + 1)
            found = replace(found, supervised=places, targets=targets, weights=weights)
        if batch.segments is not None:
            starts = document_starts(batch.segments)
            found = replace(found, documents=starts, longest=int(starts.diff().max()))
        return found

    def map(self, move: Callable[[Tensor], Tensor]) -> Places:
        """Each tensor moved."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: move(value) for name, value in values.items() if isinstance(value, Tensor)})


def supervised(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of ``[B, T]`` whose next token is learned, and those tokens: :class:`Places`' ``[n]`` each."""
    following = torch.full_like(labels, IGNORE)
    following[:, :-1] = labels[:, 1:]
    following = following.flatten()
    found = (following != IGNORE).nonzero().squeeze(1)
    return found, following.index_select(0, found)


def document_starts(segments: Tensor) -> Tensor:
    """Where the documents of packed rows ``[B, T]`` begin, and the end: :class:`Places`' ``[d + 1]``."""
    begins = torch.ones(segments.shape[0], segments.shape[1] + 1, dtype=torch.bool, device=segments.device)
    begins[:, 1:-1] = segments[:, 1:] != segments[:, :-1]
    begins[:-1, -1] = False  # but of the last row, a row's end is the next one's beginning
    row, column = begins.nonzero(as_tuple=True)
    return row * segments.shape[1] + column


def runs(index: Tensor) -> tuple[tuple[int, int], ...]:
    """The runs of consecutive numbers in an ascending ``[N]``, each as (first, behind the last)."""
    if not len(index):
        return ()
    breaks = (index.diff() != 1).nonzero().squeeze(1)
    firsts = torch.cat([index[:1], index[breaks + 1]]).tolist()
    lasts = torch.cat([index[breaks], index[-1:]]).tolist()
    return tuple((first, last + 1) for first, last in zip(firsts, lasts, strict=True))


def moved(tensor: Tensor, device: torch.device | str, non_blocking: bool | None = None) -> Tensor:
    """The tensor on ``device``. On its way to a GPU nobody waits for it, unless told to: what is computed there later
    comes behind it. Read on a CPU, it has to be there.
    """
    wait = torch.device(device).type == "cpu" if non_blocking is None else not non_blocking
    return tensor.to(device, non_blocking=not wait)
