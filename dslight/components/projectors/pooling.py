"""Fewer tokens by attention: every block of neighbours is read by its own mean (Molmo 2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.projector import MapProjector, blocks, shrunk
from dslight.types import Grid


class AttentionPoolProjector(MapProjector):
    """Attention pooling, then a gated MLP: ``[M, h, w, C]`` -> ``[M, h / factor, w / factor, D]``.

    The mean of a block of factor x factor tokens asks them, and the answer passes a SwiGLU: Molmo 2's adapter, whose
    names of weights these are. Its C is that of two layers of the encoder side by side. A
    token of the output shows its block and no other. Sides that do not divide by ``factor`` are refused; Molmo 2 pools
    what is left of a block there.

    Args:
        in_widths: C of each level.
        out_width: D.
        factor: the side of the blocks that become one token.
        heads: of the attention.
        head_dim: width of each.
        hidden: the width inside the gated MLP.
        per_level: see :class:`MapProjector`.

    Example:
        >>> pooled = dslight.AttentionPoolProjector([16], 32, factor=2, heads=2, head_dim=8, hidden=64)
        >>> pooled([torch.randn(1, 4, 4, 16)]).shape
        torch.Size([1, 1, 2, 2, 32])
    """

    local = True

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        factor: int = 2,
        heads: int = 16,
        head_dim: int = 72,
        hidden: int = 18944,
        per_level: bool = False,
    ) -> None:
        for name, value in (("factor", factor), ("heads", heads), ("head_dim", head_dim), ("hidden", hidden)):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
        self.factor, self.heads, self.head_dim, self.hidden = factor, heads, head_dim, hidden
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        return nn.Sequential(
            OrderedDict(
                image_pooling_2d=AttentionPool(self.in_widths[level], self.factor, self.heads, self.head_dim),
                image_projector=GatedMLP(self.heads * self.head_dim, self.hidden, self.out_width),
            )
        )

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`."""
        return shrunk(grid, self.factor, "factor")


class AttentionPool(nn.Module):
    """``[M, h, w, C]`` -> ``[M, h / factor, w / factor, heads * head_dim]``."""

    def __init__(self, width: int, factor: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.factor, self.heads = factor, heads
        inner = heads * head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.o_proj = nn.Linear(inner, inner)

    def forward(self, maps: Tensor) -> Tensor:
        """What the mean of every block finds in it."""
        seen = blocks(maps, self.factor).flatten(3, 4)  # [M, rows, columns, factor^2, C]
        query = seen.mean(3, keepdim=True)
        places = seen.shape[:3]
        asked, keys, values = (
            project(tokens).flatten(0, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, tokens in ((self.q_proj, query), (self.k_proj, seen), (self.v_proj, seen))
        )
        found = F.scaled_dot_product_attention(asked, keys, values)  # [M * rows * columns, heads, 1, head_dim]
        return self.o_proj(found.flatten(1).unflatten(0, places))


class GatedMLP(nn.Module):
    """SwiGLU, without biases."""

    def __init__(self, in_width: int, hidden: int, out_width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(in_width, hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(hidden, out_width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """From ``[..., in_width]`` to ``[..., out_width]``."""
        return self.down_proj(F.silu(self.gate_proj(tokens)) * self.up_proj(tokens))
