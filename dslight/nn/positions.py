"""Positions of several axes for a decoder, in whichever part of a sequence a pass computes.

As with stacks, nothing is kept on a module: a hook lives for the length of a ``with`` block. A
:mod:`window <dslight.nn.window>` says which columns a pass computes: all of them in training, a chunk of a prefill, one
of a decode step. Columns behind the sequence are what is generated: they count on from where the row ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dslight.nn.hooks import before
from dslight.nn.window import Window

ARGUMENT = "position_ids"
"""What decoders call it."""


@contextmanager
def placed(decoder: nn.Module, table: Tensor, following: Tensor, window: Window) -> Iterator[None]:
    """While the block runs, call ``decoder`` with positions of this table, whatever it is called with.

    Args:
        decoder: called with ``input_ids`` or ``inputs_embeds``, ``[b, t]`` or ``[b, t, D]``.
        table: int64 ``[A, B, T]``, of all columns.
        following: int64 ``[A, B]``, of the first column behind them.
        window: of the pass that runs.

    Raises:
        ValueError: when a pass has rows that are no multiple of B (beams repeat rows).
    """
    batch, length = table.shape[1:]

    def act(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows, count = _tokens(args, kwargs).shape[:2]
        repeats, rest = divmod(rows, batch)
        if rest:
            raise ValueError(f"positions: {rows} rows in a pass over {batch} of the batch")
        start = window.start(count)
        found = table
        if start or count != length:
            columns = torch.arange(start, start + count, device=table.device)
            behind = following[..., None] + columns - length
            found = torch.where(columns < length, table[..., columns.clamp(max=length - 1)], behind)
        if repeats > 1:  # beams: row r became rows r * repeats ... r * repeats + repeats - 1
            found = found.repeat_interleave(repeats, dim=1)
        return args, {**kwargs, ARGUMENT: found}

    handle = before(decoder, act)
    try:
        yield
    finally:
        handle.remove()


def _tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    given = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
    return next(tokens for tokens in given if isinstance(tokens, Tensor))
