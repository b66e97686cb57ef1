"""Positions of several axes (M-RoPE): where each token stands in time, height and width, as a pure function.

Text counts on along all axes at once. The tokens of a grid (an image, a frame, a clip) share the beginning that text
would have had there, and differ by their frame, row and column; what follows them begins behind the farthest of them.
So an image of 32 x 32 tokens moves the text behind it by 32 positions and not by 1,024.

The ids are the same whether a decoder lays them out in sections one behind the other (Qwen2-VL, Qwen2.5-VL),
interleaves them (Qwen3-VL and its kin) or does so in some of its layers (Cohere Compass): that is the decoder's. Frames
of a video between timestamps of text are grids of one frame each (Qwen3-VL); the frames of one grid stand ``step``
positions apart (Qwen2.5-VL, Qwen3-Omni). Documents that share a row begin anew, and padding counts nothing.

Which grids an image has is decided where its slots are: by :class:`~dslight.layout.SlotLayout`. Every map is a grid; a
mosaic with its newlines is one with a column more; a token alone is a grid of one, which is a position of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from dslight.layout import NEWLINE, SlotLayout
from dslight.places import TokenGrid, moved
from dslight.types import Grid

AXES = 3
"""Time, height, width."""


def token_grids(
    layout: SlotLayout, grid: Grid, size: Grid | None = None, pieces: Grid = (1, 1)
) -> tuple[TokenGrid, ...]:
    """The grids of an image's tokens, in the order of its slots.

    Args:
        layout: of the slots.
        grid: (rows, columns) of its crops.
        size: its own (height, width) in pixels; needed where the layout needs it.
        pieces: (rows, columns) of the pieces of its base view.

    Example:
        >>> from dslight.layout import SlotLayout
        >>> token_grids(SlotLayout((2, 3), crops=True, newline=True), (1, 2))
        (TokenGrid(frames=1, rows=2, columns=3, step=1.0), TokenGrid(frames=1, rows=2, columns=7, step=1.0))
    """
    rows, columns = layout.grid(pieces)
    base = (TokenGrid(1, rows, columns),) if layout.base else ()
    if base and layout.thumbnail == "last":
        return (*token_grids(replace(layout, base=False), grid, size, pieces), *base)
    area, order = rows * columns, layout.order(grid, size, pieces)
    behind = order[area:] if layout.base else order  # the crops'
    if newlines := behind.count(NEWLINE):
        return (*base, TokenGrid(1, newlines, len(behind) // newlines))
    if behind and layout.native:  # the enlarged view is one grid
        return (*base, TokenGrid(1, grid[0] * rows, grid[1] * columns))
    return (*base, *(TokenGrid(1, rows, columns) for _ in range(len(behind) // area)))


def clip_grids(
    images: Sequence[Sequence[TokenGrid]], clips: Sequence[tuple[int, float]], per_second: float | None
) -> tuple[TokenGrid, ...]:
    """The grids of all images in their order; temporal patches of one clip, where each is one grid, are one together.

    Args:
        images: the grids of each.
        clips: how many of the images, one behind the other, are temporal patches of one clip, and the seconds between
            them; empty: each is alone.
        per_second: positions of a second; ``None``: each temporal patch is one behind the other.

    Example:
        >>> clip_grids([[TokenGrid(1, 2, 2)]] * 3, [(1, 0.0), (2, 0.5)], per_second=4)[1]
        TokenGrid(frames=2, rows=2, columns=2, step=2.0)
    """
    found: list[TokenGrid] = []
    rest = iter(images)
    for count, seconds in clips or [(1, 0.0)] * len(images):
        own = [next(rest) for _ in range(count)]
        if count > 1 and all(len(grids) == 1 for grids in own):
            step = 1.0 if per_second is None else per_second * seconds
            found.append(own[0][0]._replace(frames=count, step=step))
        else:
            found += [grid for grids in own for grid in grids]
    return tuple(found)


def axis_positions(
    attention_mask: Tensor,
    visual_mask: Tensor,
    grids: Sequence[TokenGrid],
    segments: Tensor | None = None,
    slots: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Positions of time, height and width.

    Args:
        attention_mask: int64 ``[B, T]``, 1 for real positions.
        visual_mask: bool ``[B, T]``, where visual tokens stand.
        grids: of these tokens, in row-major order of the mask.
        segments: int64 ``[B, T]``, the document of each position of packed rows.
        slots: int64 ``[N]``, where the mask is true in its rows laid end to end; ``None``: it is looked for.

    Returns:
        int64 ``[3, B, T]``, 0 for padding; and int64 ``[B]``, the position of what would follow each row.

    Raises:
        ValueError: the grids are of more or fewer tokens than the mask.

    Example:
        >>> mask = torch.tensor([[False, True, True, True, True, False]])
        >>> axis_positions(torch.ones_like(mask).long(), mask, [TokenGrid(1, 2, 2)])[0][:, 0].tolist()
        [[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]]
    """
    flat = visual_mask.flatten().nonzero().squeeze(1) if slots is None else slots
    inside, moves = (moved(tensor, flat.device) for tensor in _inside(tuple(grids)))
    if len(flat) != len(moves):
        raise ValueError(f"positions: grids of {len(moves)} tokens for {len(flat)} visual slots")
    real = attention_mask.to(torch.int64)
    steps = real.flatten().index_copy(0, flat, moves).view_as(real)
    upto = steps.cumsum(-1)
    starts = upto - steps
    if segments is not None:
        begins = torch.zeros_like(segments, dtype=torch.bool)
        begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
        starts = starts - torch.where(begins, starts, 0).cummax(-1).values
    found = starts.expand(AXES, *starts.shape).flatten(1).index_add(1, flat, inside)
    return found.view(AXES, *starts.shape) * real, upto[:, -1]


@lru_cache(maxsize=256)
def _inside(grids: tuple[TokenGrid, ...]) -> tuple[Tensor, Tensor]:
    """Of each token its place in its grid ``[3, N]``, and how far positions move on behind it ``[N]``."""
    if not grids:
        return torch.zeros(AXES, 0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    places, moves = [], []
    for grid in grids:
        frames = (torch.arange(grid.frames) * grid.step).long()
        axes = torch.meshgrid(frames, torch.arange(grid.rows), torch.arange(grid.columns), indexing="ij")
        place = torch.stack(axes).flatten(1)
        move = torch.zeros(place.shape[1], dtype=torch.int64)
        move[-1] = place.max() + 1
        places.append(place)
        moves.append(move)
    return torch.cat(places, dim=1), torch.cat(moves)
