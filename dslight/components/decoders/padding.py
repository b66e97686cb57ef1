"""Batches of unequal rows for decoders that cannot pad on the left: moved to the right, or answered in groups.

A state that runs over padding, positions that count it: nothing of a causal decoder can be hurt by what stands *behind*
a row. So padding in front is moved there for a pass, and logits are moved back. ``generate`` has to continue at the
last column; there, rows of equal length are answered together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dslight.types import Memory, VisualTokens


def leading(attention_mask: Tensor) -> Tensor:
    """How many columns of padding stand in front of each row, int64 ``[B]``."""
    return (attention_mask.cumsum(-1) == 0).sum(-1)


def moved(columns: int, by: Tensor) -> Tensor:
    """The column that each column of each row is taken from when rows begin ``by`` ``[B]`` later; what falls off in
    front stands behind. int64 ``[B, columns]``.
    """
    return (torch.arange(columns, device=by.device) + by[:, None]) % columns


def behind(attention_mask: Tensor, rows: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Logits ``[B, T, V]`` of ``rows(*tensors)``, with the padding of all tensors ``[B, T]`` moved behind."""
    front = leading(attention_mask)
    if not _any(front):
        return rows(*tensors)
    logits = rows(*(tensor.gather(1, moved(tensor.shape[1], front)) for tensor in tensors))
    back = moved(logits.shape[1], -front)
    return logits.gather(1, back[..., None].expand_as(logits))


def _any(front: Tensor) -> bool:
    try:
        return bool(front.any())
    except RuntimeError:  # tensors without values, which are counted with: nothing of theirs is padded
        return False


def groups(attention_mask: Tensor) -> list[Tensor]:
    """The rows of each length, longest first: indices int64 ``[b]`` that together are all rows."""
    front = leading(attention_mask)
    return [(front == padding).nonzero().squeeze(1) for padding in front.unique()]


def chosen(visual: VisualTokens | None, visual_mask: Tensor, rows: Tensor) -> VisualTokens | None:
    """The visual tokens of some rows of a batch."""
    if visual is None:
        return None
    inside = torch.zeros_like(visual_mask)
    inside[rows] = True
    kept = inside[visual_mask]
    sizes = [grid.tokens for grid in visual.grids]
    grids = [grid for grid, there in zip(visual.grids, _inside(sizes, visual_mask, rows), strict=True) if there]
    memory = _memory(visual.memory, visual_mask, rows)
    return replace(visual, slots=visual.slots[:, kept], memory=memory, grids=tuple(grids))


def _memory(memory: Memory | None, visual_mask: Tensor, rows: Tensor) -> Memory | None:
    if memory is None:
        return None
    images = _inside(memory.slots, visual_mask, rows)
    pieces = zip(memory.tokens.split(list(memory.counts)), images, strict=True)
    return replace(
        memory,
        tokens=torch.cat([memory.tokens[:0], *(tokens for tokens, kept in pieces if kept)]),
        counts=tuple(count for count, kept in zip(memory.counts, images, strict=True) if kept),
        slots=tuple(slots for slots, kept in zip(memory.slots, images, strict=True) if kept),
    )


def _inside(sizes: Sequence[int], visual_mask: Tensor, rows: Tensor) -> list[bool]:
    """Of images (or parts of them) that take ``sizes`` slots each, all of them in one row: whether it is chosen."""
    wanted, of_row = set(rows.tolist()), visual_mask.nonzero()[:, 0].tolist()
    found, start = [], 0
    for slots in sizes:
        found.append(start < len(of_row) and of_row[start] in wanted)
        start += slots
    return found


def together(answers: list[tuple[Tensor, Tensor]], batch: int, pad: int) -> Tensor:
    """Answers ``[b * n, new]`` of groups of rows as those of the batch, ``[batch * n, most new]``, padded behind."""
    repeats = answers[0][1].shape[0] // len(answers[0][0])
    longest = max(new.shape[1] for _, new in answers)
    whole = answers[0][1].new_full((batch, repeats, longest), pad)
    for rows, new in answers:
        whole[rows, :, : new.shape[1]] = new.view(len(rows), repeats, -1)
    return whole.flatten(0, 1)


def grouped(
    generate: Callable[..., Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    visual_mask: Tensor,
    visual: VisualTokens | None,
    **options: Any,
) -> Tensor:
    """``generate`` for the rows of each length, without their padding. Under sharding all ranks make as many calls."""
    answers, found = [], groups(attention_mask)
    calls = len(found)
    if options.get("synced_gpus"):
        most = torch.tensor(calls, device=input_ids.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        calls = int(most)
    for call in range(calls):
        rows = found[min(call, len(found) - 1)]
        first = int(leading(attention_mask[rows[:1]]))
        columns = (tensor[rows, first:] for tensor in (input_ids, attention_mask, visual_mask))
        new = generate(*columns, chosen(visual, visual_mask, rows), **options)
        if call < len(found):
            answers.append((rows, new))
    return together(answers, len(input_ids), options.get("pad_token_id") or 0)
