"""A fixed number of tokens out of any map: learned queries that look at all of it (elsewhere: Perceiver, resampler).

After Flamingo, whose latents read the map and each other at once; with Qwen-VL's two-dimensional positions, without
which a query could not ask for a place. Decided here: the queries form a grid, so their positions and the map's are on
one scale, and stacks and base tokens of the same query meet. But nothing holds a query to its place, so the projector
is not ``aligned``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor, nn

from dslight.components.projector import MapProjector
from dslight.types import Grid


class PerceiverResamplerProjector(MapProjector):
    """Learned queries read a map over some blocks of cross-attention: ``[M, h, w, C]`` -> ``[M, *grid, D]``.

    Places are **not** kept: every token may tell of the whole map. Without ``positions`` it equals the resampler of
    Idefics (Flamingo's, with ReLU), and ``grid`` means no more than how many tokens there are.

    Args:
        in_widths: C of each level.
        out_width: D.
        grid: (rows, columns) of the queries.
        depth: the number of blocks (Qwen-VL has 1, Idefics2 3, Flamingo 6).
        heads: of the attention.
        width: of the queries; where it is not C, maps are brought to it by a linear layer. ``None``: C.
        positions: whether sine-cosine positions are added to queries and keys, in every block.
        per_level: see :class:`MapProjector`.

    Example:
        >>> resampler = dslight.PerceiverResamplerProjector([16], 32, grid=(2, 2), depth=1, heads=2)
        >>> resampler([torch.randn(1, 4, 4, 16)]).shape
        torch.Size([1, 1, 2, 2, 32])
    """

    aligned = False

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        grid: Grid = (8, 8),
        depth: int = 3,
        heads: int = 16,
        width: int | None = None,
        positions: bool = True,
        per_level: bool = False,
    ) -> None:
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"grid: the queries have rows and columns, at least 1 of each, got {list(grid)}")
        if depth < 1:
            raise ValueError(f"depth: queries read the map in at least 1 block, got {depth}")
        self.grid, self.depth, self.heads = (grid[0], grid[1]), depth, heads
        self.width, self.positions = width, positions
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        in_width = self.in_widths[level]
        width = self.width or in_width
        if width % self.heads:
            raise ValueError(f"heads: a width of {width} does not divide by {self.heads}; choose another, or `width`")
        if self.positions and width % 4:
            raise ValueError(f"width: sine-cosine positions need a multiple of 4, got {width}; or set positions: false")
        return Resampler(in_width, width, self.out_width, self.grid, self.depth, self.heads, self.positions)

    def units(self, net: nn.Module) -> Iterable[nn.Module]:
        """The blocks."""
        return net.blocks  # type: ignore[return-value]

    def out_grid(self, grid: Grid) -> Grid:
        """The queries' grid, whatever the map's."""
        return self.grid


class Resampler(nn.Module):
    """The net of one level; see :class:`PerceiverResamplerProjector`."""

    def __init__(
        self, in_width: int, width: int, out_width: int, grid: Grid, depth: int, heads: int, positions: bool
    ) -> None:
        super().__init__()
        self.grid, self.positions = grid, positions
        self.inward = nn.Linear(in_width, width, bias=False) if in_width != width else nn.Identity()
        self.queries = nn.Parameter(torch.empty(grid[0] * grid[1], width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.blocks = nn.ModuleList(ResamplerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.outward = nn.Linear(width, out_width)

    def forward(self, maps: Tensor) -> Tensor:
        """From ``[M, h, w, C]`` to ``[M, *grid, D]``."""
        seen = self.inward(maps)
        places, asked_at = self._positions(seen)
        seen, asked = seen.flatten(1, 2), self.queries.expand(len(seen), -1, -1)
        for block in self.blocks:
            asked = block(asked, seen, asked_at, places)
        return self.outward(self.norm(asked)).unflatten(1, self.grid)

    def _positions(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Of the map's tokens, ``[h * w, width]``, and of the queries, ``[rows * columns, width]``: the queries' are
        the sine-cosine table, the map's are interpolated in it, as in Qwen-VL.
        """
        if not self.positions:
            return maps.new_zeros(()), maps.new_zeros(())
        table = build_sincos2d_pos_embed(list(self.grid), maps.shape[-1], device=maps.device)
        image = table.T.unflatten(1, self.grid)[None]
        if maps.shape[1:3] != self.grid:
            image = F.interpolate(image, tuple(maps.shape[1:3]), mode="bicubic", align_corners=False)
        return image[0].flatten(1).T.to(maps.dtype), table.to(maps.dtype)


class ResamplerBlock(nn.Module):
    """Queries read the map and each other, then pass an MLP; normalised first, without biases, as in Flamingo."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_map, self.norm_queries, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.ReLU(), nn.Linear(4 * width, width, bias=False)
        )

    def forward(self, queries: Tensor, maps: Tensor, queries_at: Tensor, maps_at: Tensor) -> Tensor:
        """From queries ``[M, Q, width]``, maps ``[M, h * w, width]`` and their positions to queries."""
        asked, seen = self.norm_queries(queries), self.norm_map(maps)
        placed = asked + queries_at
        keys, values = torch.cat([seen + maps_at, placed], 1), torch.cat([seen, asked], 1)
        queries = queries + self.attention(placed, keys, values, need_weights=False)[0]
        return queries + self.mlp(self.norm_mlp(queries))
