"""Projectors (elsewhere: connectors, mergers): from the vision encoder's width C to the language model's width D.

A projector takes *maps*, not token lists, so that it may also make the maps smaller (token compression) and still every
row of every level shows the same place. The stacking scheduler lays the projected maps into the sequence afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dslight.components.component import Component
from dslight.types import Grid


class Projector(Component, ABC):
    """Projects all levels at once. A level is one set of maps: those of the base tokens, then those of each stack.

    Args:
        in_widths: the width C of each level, what the stacking scheduler hands over; S + 1 of them, or S where no base
            tokens fill the sequence.
        out_width: D, the language model's width.
    """

    kind: ClassVar[str] = "projector"

    def __init__(self, in_widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        self.in_widths, self.out_width = tuple(in_widths), out_width

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.in_widths)

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From one ``[M, height, width, C]`` per level to ``[levels, M, *out_grid((height, width)), D]``."""

    def out_grid(self, grid: Grid) -> Grid:
        """(rows, columns) of the tokens that a map of ``grid`` becomes; data and plan ask for it.

        Raises:
            ValueError: starting with the argument to change, for a map that the projector cannot take.
        """
        return grid


def mlp(in_width: int, out_width: int, layers: int) -> nn.Sequential:
    """Linear layers with exact GELUs between them, all but the first at the output width (LLaVA's ``mlpNx_gelu``)."""
    if layers < 1:
        raise ValueError(f"layers: a projector needs at least 1 layer, got {layers}")
    modules: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(layers - 1):
        modules += [nn.GELU(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*modules)


class MLPProjector(Projector):
    """One MLP shared by the base tokens and every stack, as in the paper (two layers: LLaVA-1.5's ``mlp2x_gelu``; one:
    LLaVA's linear).

    Args:
        in_widths: C of each level; one and the same.
        out_width: D.
        layers: the number of linear layers.
    """

    def __init__(self, in_widths: Sequence[int], out_width: int, layers: int = 2) -> None:
        super().__init__(in_widths, out_width)
        self.net = mlp(in_widths[0], out_width, layers)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See :meth:`Projector.forward`."""
        return self.net(torch.stack(list(maps)))


class PerLevelMLPProjector(Projector):
    """An MLP of its own for the base tokens and for every stack (as in Qwen3-VL and SliMM, whose stacks differ in
    kind).

    Args:
        in_widths: C of each level.
        out_width: D.
        layers: the number of linear layers of each.
    """

    def __init__(self, in_widths: Sequence[int], out_width: int, layers: int = 2) -> None:
        super().__init__(in_widths, out_width)
        self.nets = nn.ModuleList(mlp(width, out_width, layers) for width in in_widths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See :meth:`Projector.forward`."""
        return torch.stack([net(level) for net, level in zip(self.nets, maps, strict=True)])
