"""Convolutions around a pool: fewer tokens that know their neighbourhood (Honeybee's C-Abstractor)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn

from dslight.components.projector import MapProjector, shrunk
from dslight.components.projectors.mlp import mlp
from dslight.types import Grid


class CAbstractorProjector(MapProjector):
    """RegNet blocks, an adaptive average pool, RegNet blocks, an MLP: ``[M, h, w, C]`` -> ``[M, h', w', D]``.

    Honeybee's, on timm's blocks, but for its learned positions, which would bind it to one size of map, and its
    end-of-image tokens.

    A token of the output shows the cells of its block and those around it: ``depth`` cells from the blocks before the
    pool, and ``depth`` tokens' worth of cells (``depth * factor``) from those behind it. Squeeze-and-excitation scales
    channels by a mean over the whole map besides; ``se_ratio: 0`` leaves it out.

    Args:
        in_widths: C of each level.
        out_width: D.
        factor: how many times fewer rows and columns come out.
        grid: the (rows, columns) that come out, instead of ``factor``; they need not divide the map's.
        depth: the number of blocks before and of blocks behind the pool.
        width: of the blocks.
        layers: the number of linear layers.
        se_ratio: the width of the squeeze relative to the block's input.
        per_level: see :class:`MapProjector`.

    Example:
        >>> dslight.CAbstractorProjector([16], 32, factor=2, depth=1, width=16)([torch.randn(1, 4, 4, 16)]).shape
        torch.Size([1, 1, 2, 2, 32])
    """

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        factor: int = 2,
        grid: Grid | None = None,
        depth: int = 3,
        width: int = 1024,
        layers: int = 2,
        se_ratio: float = 0.25,
        per_level: bool = False,
    ) -> None:
        if factor < 1:
            raise ValueError(f"factor: blocks of at least 1 x 1 tokens become one, got {factor}")
        if depth < 1:
            raise ValueError(
                f"depth: at least 1 block before and 1 behind the pool, got {depth}; or AveragePoolProjector"
            )
        self.factor, self.grid, self.depth, self.width = factor, grid and (grid[0], grid[1]), depth, width
        self.layers, self.se_ratio = layers, se_ratio
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        before, behind = (
            RegStage(
                self.depth, width, self.width, stride=1, dilation=1, se_ratio=self.se_ratio, act_layer=nn.SiLU,
                norm_layer=LayerNorm2d,
            )
            for width in (self.in_widths[level], self.width)
        )  # fmt: skip
        readout = mlp(self.width, self.out_width, self.layers, activation=nn.SiLU)
        return CAbstractor(before, behind, readout, self.factor, self.grid)

    def units(self, net: nn.Module) -> Iterable[nn.Module]:
        """The RegNet blocks."""
        return [*net.before.children(), *net.behind.children()]  # type: ignore[union-attr]

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`."""
        if self.grid is None:
            return shrunk(grid, self.factor, "factor")
        if self.grid[0] > grid[0] or self.grid[1] > grid[1]:
            raise ValueError(
                f"grid: {self.grid[0]} x {self.grid[1]} tokens cannot be pooled out of a map of {grid[0]} x {grid[1]}"
            )
        return self.grid


class CAbstractor(nn.Module):
    """The net of one level; see :class:`CAbstractorProjector`."""

    def __init__(
        self, before: nn.Module, behind: nn.Module, readout: nn.Module, factor: int, grid: Grid | None
    ) -> None:
        super().__init__()
        self.before, self.behind, self.readout = before, behind, readout
        self.factor, self.grid = factor, grid

    def forward(self, maps: Tensor) -> Tensor:
        """From ``[M, h, w, C]`` to ``[M, h', w', D]``."""
        features = self.before(maps.movedim(-1, 1))
        grid = self.grid or (features.shape[2] // self.factor, features.shape[3] // self.factor)
        return self.readout(self.behind(F.adaptive_avg_pool2d(features, grid)).movedim(1, -1))
