"""Fewer tokens out of neighbours: factor x factor of them become one, by concatenation or by their mean.

A token of the output shows the block of the input that it covers and nothing else, so levels stay aligned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
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
    - Idefics 3 and SmolVLM: ``layers: 1, bias: false``;
    - Granite Docling's base: ``factor: 4, norm: pre, eps: 1.0e-5, bias: false, position: hidden, hidden_norm: true,
      out_norm: true``; its stacks, of another kind (:class:`PerLevelProjector`): ``norm: post``.

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
        position: where a fixed 2-D sine-cosine code of the map's (columns, rows) is added, by which tokens of one map
            differ in place: behind the first linear layer (``hidden``), at the very end (``out``), or ``none``. It is
            of whole maps, so images cannot be taken piece by piece.
        hidden_norm: a norm behind the first linear layer and the position code, before the activation.
        out_norm: a norm behind the last linear layer.

    Example:
        >>> dslight.PixelShuffleMLPProjector([16], 32, factor=2)([torch.randn(1, 4, 4, 16)]).shape
        torch.Size([1, 1, 2, 2, 32])
    """

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
        position: Literal["none", "hidden", "out"] = "none",
        hidden_norm: bool = False,
        out_norm: bool = False,
    ) -> None:
        self.bias, self.rms = bias, rms
        self.position, self.hidden_norm, self.out_norm = position, hidden_norm, out_norm
        self.local = position == "none"
        inside = {"position": position == "hidden", "hidden_norm": hidden_norm}
        if layers < 2 and any(inside.values()):
            name = next(name for name, wanted in inside.items() if wanted)
            raise ValueError(f"{name}: stands between two linear layers, and there is {layers}; set layers: 2")
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
            parts["norm"] = self._norm(width if norm == "pre" else merged)
            parts.move_to_end("norm", last=norm == "post")
        net = mlp(merged, self.out_width, self.layers, hidden, bias=self.bias)
        parts["mlp"] = self._between(net, hidden)
        if self.out_norm:
            parts["out_norm"] = self._norm(self.out_width)
        if self.position == "out":
            parts["position"] = PositionCode(self.out_width)
        return nn.Sequential(parts)

    def _norm(self, width: int) -> nn.Module:
        return (nn.RMSNorm if self.rms else nn.LayerNorm)(width, self.eps)

    def _between(self, net: nn.Sequential, hidden: int) -> nn.Sequential:
        """The MLP with what stands behind its first layer, whose own layers keep their numbers."""
        (number, first), *others = net.named_children()
        between: list[tuple[str, nn.Module]] = []
        if self.position == "hidden":
            between.append(("position", PositionCode(hidden)))
        if self.hidden_norm:
            between.append(("norm", self._norm(hidden)))
        return nn.Sequential(OrderedDict([(number, first), *between, *others]))

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
        norm: an RMS norm over C in front of the MLP (``pre``), or ``none``. Gemma 3's: ``factor: 4, layers: 1,
            pool_first: true, norm: pre, bias: false``.
        eps: of the norm.
        bias: of the linear layers.

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
        norm: Literal["none", "pre"] = "none",
        eps: float = 1e-6,
        bias: bool = True,
    ) -> None:
        self.factor, self.layers, self.pool_first = _at_least_one(factor), layers, pool_first
        self.norm, self.eps, self.bias = norm, eps, bias
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        net = mlp(self.in_widths[level], self.out_width, self.layers, bias=self.bias)
        parts = OrderedDict([*net.named_children(), ("pool", AveragePool(self.factor))])
        if self.norm == "pre":
            parts["norm"] = nn.RMSNorm(self.in_widths[level], self.eps)
            parts.move_to_end("norm", last=False)
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


class PositionCode(nn.Module):
    """Adds a fixed 2-D sine-cosine code to maps: of the column in the first half of the channels, of the row in the
    second; each its sines, then its cosines.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"position: a 2-D sine-cosine code needs a width divisible by 4, got {width}")

    def forward(self, maps: Tensor) -> Tensor:
        """From ``[M, h, w, D]`` to the same."""
        rows, columns, width = maps.shape[1:]
        table = build_sincos2d_pos_embed([rows, columns], width, interleave_sin_cos=True, device=maps.device)
        return maps + table.roll(width // 2, -1).view(rows, columns, width).to(maps.dtype)


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
