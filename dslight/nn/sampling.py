"""Sampling: from the token mosaic of the high-resolution crops to groups that are each as long as the base view.

The paper's section 3.2 and its Table 5. The crops' tokens are laid out as one mosaic ``[rows*h, cols*w]``. Three
samplers split it into ``rows*cols`` groups of ``h*w`` tokens, and lose and make none; group ``i*cols + j`` is

- ``2d``: the cells ``(y*rows + i, x*cols + j)``: dilated sampling, so that token t of every group lies inside the place
  that token t of the base view covers ("2d Spatial"; the paper's choice and the only aligned one of the three);
- ``block``: crop ``(i, j)`` as it is ("2d Grid");
- ``1d``: every ``rows*cols``-th token of the mosaic read row by row ("1d Sequential").

Two more keep the place as well, in a single group: ``patch_merge`` puts the ``rows*cols`` tokens of a place side by
side into one of ``rows*cols*C`` channels (Qwen2-VL's patch merger, SliMM), ``pool`` takes their mean.

At native resolution one enlarged view stands in place of the crops, ``rows`` times as high and ``cols`` times as wide
as the base view; it is a mosaic of pieces instead of crops, sampled the same way (:func:`sample_pieces`).

A view can also be sampled on its own: ``identity`` takes its map as it is, ``corner`` takes the tokens at one corner
of each k x k block (Granite 4 Vision's spatial groups): dilated sampling of the view itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from dslight.places import moved
from dslight.types import Grid

SamplerName = Literal["2d", "block", "1d", "patch_merge", "pool", "identity", "corner"]
MOSAIC_SAMPLERS = ("2d", "block", "1d", "patch_merge", "pool")
ONE_GROUP = ("patch_merge", "pool", "identity")


def mosaic(crops: Tensor, grid: Grid) -> Tensor:
    """Lay crops side by side.

    Args:
        crops: ``[..., rows*cols, h, w, C]``, row by row.
        grid: (rows, cols).

    Returns:
        ``[..., rows*h, cols*w, C]``.
    """
    rows, cols = grid
    *lead, count, h, w, width = crops.shape
    if count != rows * cols:
        raise ValueError(f"mosaic: {count} crops cannot form a grid of {rows} x {cols}")
    tiles = crops.reshape(*lead, rows, cols, h, w, width)
    return tiles.transpose(-4, -3).reshape(*lead, rows * h, cols * w, width)


def _dilated(tokens: Tensor, grid: Grid) -> Tensor:
    rows, cols = grid
    *lead, height, width, channels = tokens.shape
    cells = tokens.reshape(-1, height // rows, rows, width // cols, cols, channels)
    groups = cells.permute(2, 4, 0, 1, 3, 5)  # the offsets inside a cell lead
    return groups.reshape(rows * cols, *lead, height // rows, width // cols, channels)


def _block(tokens: Tensor, grid: Grid) -> Tensor:
    rows, cols = grid
    *lead, height, width, channels = tokens.shape
    cells = tokens.reshape(-1, rows, height // rows, cols, width // cols, channels)
    groups = cells.permute(1, 3, 0, 2, 4, 5)
    return groups.reshape(rows * cols, *lead, height // rows, width // cols, channels)


def _sequential(tokens: Tensor, grid: Grid) -> Tensor:
    rows, cols = grid
    *lead, height, width, channels = tokens.shape
    strided = tokens.reshape(-1, height * width // (rows * cols), rows * cols, channels)
    return strided.permute(2, 0, 1, 3).reshape(rows * cols, *lead, height // rows, width // cols, channels)


def _patch_merge(tokens: Tensor, grid: Grid) -> Tensor:
    return torch.cat(list(_dilated(tokens, grid)), dim=-1)[None]


def _pool(tokens: Tensor, grid: Grid) -> Tensor:
    return _dilated(tokens, grid).mean(0, keepdim=True)


SAMPLERS: dict[str, Callable[[Tensor, Grid], Tensor]] = {
    "2d": _dilated,
    "block": _block,
    "1d": _sequential,
    "patch_merge": _patch_merge,
    "pool": _pool,
    "identity": lambda tokens, grid: tokens[None],
    "corner": _dilated,
}


def sample(tokens: Tensor, grid: Grid, sampler: SamplerName = "2d") -> Tensor:
    """Split a map of tokens into stack groups.

    Args:
        tokens: ``[..., rows*h, cols*w, C]`` from :func:`mosaic`, or for ``corner`` one view's own map.
        grid: (rows, cols) of the crops; of ``corner``'s blocks.
        sampler: see the module's docstring.

    Returns:
        ``[groups, ..., h, w, C]``.
    """
    height, width = tokens.shape[-3:-1]
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"sample: a mosaic of {height} x {width} tokens does not divide into {grid[0]} x {grid[1]}")
    return SAMPLERS[sampler](tokens, grid)


def sample_pieces(
    pieces: Tensor, bases: Sequence[Grid], grids: Sequence[Grid], count: int, sampler: SamplerName = "2d"
) -> Tensor:
    """Split the enlarged views of images of unequal sizes into stack groups, all in one step.

    Args:
        pieces: ``[K, h, w, C]``, of all enlarged views of all images, each row by row.
        bases: per image the (rows, columns) of pieces of its base view.
        grids: per image how many times as many the enlarged view has; ``(0, 0)``: it has none.
        count: groups; those that an image does not have are zero, more than these are left out.
        sampler: of :func:`sample` for crops.

    Returns:
        ``[count, M, h, w, C']``, M pieces of all base views.
    """
    tokens = (pieces.shape[1], pieces.shape[2])
    area = tokens[0] * tokens[1]
    shapes = [(base[0] * base[1], grid[0] * grid[1]) for base, grid in zip(bases, grids, strict=True)]
    starts = accumulate((each * times * area for each, times in shapes), initial=0)
    found, held = [], []
    for base, grid, (each, times), start in zip(bases, grids, shapes, starts, strict=False):
        one = sampler in ONE_GROUP
        index = torch.zeros(count, each * area, max(times, 1) if one else 1, dtype=torch.int64)
        own = _groups_of(base, grid, tokens, sampler)[:count] if times else index[:0]
        index[: len(own)] = own + start
        found.append(index)
        held.append((torch.arange(count) < len(own))[:, None].expand(-1, each * area))
    if len({index.shape[2] for index in found}) > 1:
        raise ValueError(f"sample: {sampler} makes tokens of one width of equal grids alone, not of {list(grids)}")
    index, filled = torch.cat(found, dim=1), torch.cat(held, dim=1)
    flat = pieces.flatten(0, 2)
    taken = flat[moved(index, flat.device).flatten()] if len(flat) else flat.new_zeros(index.numel(), flat.shape[1])
    taken = taken.view(*index.shape, -1)
    made = taken.mean(2) if sampler == "pool" else taken.flatten(2)
    if not filled.all():
        made = made * moved(filled, made.device)[..., None].to(made.dtype)
    return made.view(count, -1, *tokens, made.shape[-1])


@lru_cache(maxsize=256)
def _groups_of(base: Grid, grid: Grid, tokens: Grid, sampler: SamplerName) -> Tensor:
    """Which tokens of an enlarged view go where, int64 ``[groups, tokens of the base view, tokens that become one]``:
    in both views piece by piece, each row by row.
    """
    shape = (base[0] * grid[0], base[1] * grid[1])
    numbers = torch.arange(shape[0] * shape[1] * tokens[0] * tokens[1])
    large = mosaic(numbers.view(-1, *tokens, 1), shape)
    groups = sample(large, grid, "patch_merge" if sampler == "pool" else sampler)
    split = groups.unflatten(2, (base[1], tokens[1])).unflatten(1, (base[0], tokens[0]))
    return split.transpose(2, 3).flatten(1, 4)
