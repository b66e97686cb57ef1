"""Sampling: from the token mosaic of the high-resolution crops to groups that are each as long as the base view.

The paper's section 3.2 and its Table 5. The crops' tokens are laid out as one mosaic ``[rows*h, cols*w]``. Three
samplers split it into ``rows*cols`` groups of ``h*w`` tokens, and lose and make none; group ``i*cols + j`` is

- ``2d``: the cells ``(y*rows + i, x*cols + j)``: dilated sampling, so that token t of every group lies inside the place
  that token t of the base view covers ("2d Spatial"; the paper's choice and the only aligned one of the three);
- ``block``: crop ``(i, j)`` as it is ("2d Grid");
- ``1d``: every ``rows*cols``-th token of the mosaic read row by row ("1d Sequential").

Two more keep the place as well, in a single group: ``patch_merge`` puts the ``rows*cols`` tokens of a place side by
side into one of ``rows*cols*C`` channels (Qwen2-VL's patch merger, SliMM), ``pool`` takes their mean.

A view can also be sampled on its own: ``identity`` takes its map as it is, ``corner`` takes the tokens at one corner
of each k x k block (Granite 4 Vision's spatial groups): dilated sampling of the view itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

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
