"""Fewer tokens out of neighbours: factor x factor of them become one, by concatenation or by their mean.

A token of the output shows the block of the input that it covers and nothing else, so levels stay aligned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from dslight.components.projector import MapProjector, blocks, shrunk
from dslight.components.projectors.mlp import mlp
from dslight.types import Grid

Norm = Literal["none", "pre", "post"]


class PixelShuffleMLPProjector(MapProjector):
    """Neighbours side by side along the channels, then an MLP (a "patch merger"): ``[M, h, w, C]`` ->
    ``[M, h / factor, w / factor, factor^2 * C]`` -> ``[M, h / factor, w / factor, D]``.

    The channels of a merged token are those of its block row by row: top left, top right, ..., bottom right, C each.
    This is the order of Qwen's mergers and of InternVL's pixel shuffle, whose projectors it equals:

    - Qwen2-VL: ``hidden: merged, norm: pre``; Qwen2.5-VL the same with ``rms: true``; Qwen3-VL as Qwen2-VL with
      ``stack_norm: post, per_level: true``;
    - InternVL: ``norm: post, eps: 1.0e-5``;
    - Idefics 3 and SmolVLM: ``layers: 1, bias: false``.

    Args:
        in_widths: C of each level.
        out_width: D.
        factor: the side of the blocks that become one token.
        layers: the number of linear layers.
        hidden: the width between them: ``out`` for D, ``merged`` for factor^2 * C, or a number.
        norm: a layer norm over C before the merge (``pre``), over factor^2 * C behind it (``post``), or ``none``.
        stack_norm: the same for every level but the first, with ``per_level``; ``None``: as ``norm``.
        eps: of the layer norm.
        per_level: see :class:`MapProjector`.
        bias: whether the linear layers have one.
        rms: whether the norm is an RMS norm, and no layer norm.

    Example:
        >>> dslight.PixelShuffleMLPProjector([16], 32, factor=2)([torch.randn(1, 4, 4, 16)]).shape
        torch.Size([1, 1, 2, 2, 32])
    """

    local = True

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        factor: int = 2,
        layers: int = 2,
        hidden: Literal["out", "merged"] | int = "out",
        norm: Norm = "none",
        stack_norm: Norm | None = None,
        eps: float = 1e-6,
        per_level: bool = False,
        bias: bool = True,
        rms: bool = False,
    ) -> None:
        self.bias, self.rms = bias, rms
        self.factor, self.layers, self.hidden, self.eps = _at_least_one(factor), layers, hidden, eps
        self.norm, self.stack_norm = norm, stack_norm or norm
        if self.stack_norm != norm and not per_level:
            raise self._unshared(f"levels with norm {norm} and stack_norm {stack_norm}")
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        width = self.in_widths[level]
        merged = width * self.factor**2
        named = {"out": self.out_width, "merged": merged}
        hidden = self.hidden if isinstance(self.hidden, int) else named[self.hidden]
        norm = self.stack_norm if level else self.norm
        parts: OrderedDict[str, nn.Module] = OrderedDict(merge=Merge(self.factor))
        if norm != "none":
            parts["norm"] = (nn.RMSNorm if self.rms else nn.LayerNorm)(width if norm == "pre" else merged, self.eps)
            parts.move_to_end("norm", last=norm == "post")
        parts["mlp"] = mlp(merged, self.out_width, self.layers, hidden, bias=self.bias)
        return nn.Sequential(parts)

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`."""
        return shrunk(grid, self.factor, "factor")


class AveragePoolProjector(MapProjector):
    """An MLP, then the mean of factor x factor neighbours: ``[M, h, w, C]`` -> ``[M, h / factor, w / factor, D]``.

    The released DeepStack code pools so, behind the projector, where it takes 144 base tokens out of 576. The weights
    are those of :class:`MLPProjector`, and go by the same names.

    Args:
        in_widths: C of each level.
        out_width: D.
        factor: the side of the blocks that become one token.
        layers: the number of linear layers.
        pool_first: the mean before the MLP, which then runs on factor^2 fewer tokens.
        per_level: see :class:`MapProjector`.

    Example:
        >>> dslight.AveragePoolProjector([16], 32, factor=2).out_grid((24, 24))
        (12, 12)
    """

    local = True

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        factor: int = 2,
        layers: int = 2,
        pool_first: bool = False,
        per_level: bool = False,
    ) -> None:
        self.factor, self.layers, self.pool_first = _at_least_one(factor), layers, pool_first
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        net = mlp(self.in_widths[level], self.out_width, self.layers)
        parts = OrderedDict([*net.named_children(), ("pool", AveragePool(self.factor))])
        parts.move_to_end("pool", last=not self.pool_first)
        return nn.Sequential(parts)

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`."""
        return shrunk(grid, self.factor, "factor")


class Merge(nn.Module):
    """``[M, h, w, C]`` -> ``[M, h / factor, w / factor, factor^2 * C]``."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        """The channels of every block, row by row."""
        return blocks(maps, self.factor).flatten(3)


class AveragePool(nn.Module):
    """``[M, h, w, C]`` -> ``[M, h / factor, w / factor, C]``."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        """The mean of every block."""
        return blocks(maps, self.factor).mean((3, 4))


def _at_least_one(factor: int) -> int:
    if factor < 1:
        raise ValueError(f"factor: blocks of at least 1 x 1 tokens become one, got {factor}")
    return factor
