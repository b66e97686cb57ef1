"""Sampling: from the token mosaic of the high-resolution crops to groups that are each as long as the base view.

The paper's section 3.2 and its Table 5. The crops' tokens are laid out as one mosaic ``[rows*h, cols*w]``; a sampler
splits it into ``rows*cols`` groups of ``h*w`` tokens, group ``i*cols + j`` being

- ``2d``: the cells ``(y*rows + i, x*cols + j)``: dilated sampling, so that token t of every group lies inside the place
  that token t of the base view covers ("2d Spatial"; the paper's choice and the only aligned one);
- ``block``: crop ``(i, j)`` as it is ("2d Grid");
- ``1d``: every ``rows*cols``-th token of the mosaic read row by row ("1d Sequential").

All three are permutations: no token is lost or made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from dslight.types import Grid

SamplerName = Literal["2d", "block", "1d"]


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
    return groups.reshape(rows * cols, *lead, (height // rows) * (width // cols), channels)


def _block(tokens: Tensor, grid: Grid) -> Tensor:
    rows, cols = grid
    *lead, height, width, channels = tokens.shape
    cells = tokens.reshape(-1, rows, height // rows, cols, width // cols, channels)
    groups = cells.permute(1, 3, 0, 2, 4, 5)
    return groups.reshape(rows * cols, *lead, (height // rows) * (width // cols), channels)


def _sequential(tokens: Tensor, grid: Grid) -> Tensor:
    count = grid[0] * grid[1]
    *lead, height, width, channels = tokens.shape
    strided = tokens.reshape(-1, height * width // count, count, channels)
    return strided.permute(2, 0, 1, 3).reshape(count, *lead, height * width // count, channels)


SAMPLERS: dict[str, Callable[[Tensor, Grid], Tensor]] = {"2d": _dilated, "block": _block, "1d": _sequential}


def sample(tokens: Tensor, grid: Grid, sampler: SamplerName = "2d") -> Tensor:
    """Split a mosaic into stack groups.

    Args:
        tokens: ``[..., rows*h, cols*w, C]`` from :func:`mosaic`.
        grid: (rows, cols) of the crops.
        sampler: see the module's docstring.

    Returns:
        ``[rows*cols, ..., h*w, C]``: one group per crop.
    """
    height, width = tokens.shape[-3:-1]
    if height % grid[0] or width % grid[1]:
        raise ValueError(f"sample: a mosaic of {height} x {width} tokens does not divide into {grid[0]} x {grid[1]}")
    return SAMPLERS[sampler](tokens, grid)
