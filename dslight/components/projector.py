"""Projectors (elsewhere: connectors, mergers): from the vision encoder's width C to the language model's width D."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from dslight.components.component import Component


class Projector(Component, ABC):
    """Maps all slots at once: the base tokens (slot 0) and the stacks (slots 1..S).

    Args:
        in_width: C, what the stacking scheduler hands over.
        out_width: D, the language model's width.
        levels: S + 1, the number of slots.
    """

    kind: ClassVar[str] = "projector"

    def __init__(self, in_width: int, out_width: int, levels: int) -> None:
        super().__init__()
        self.in_width, self.out_width, self.levels = in_width, out_width, levels

    @abstractmethod
    def forward(self, slots: Tensor) -> Tensor:
        """From ``[S+1, N, C]`` to ``[S+1, N, D]``."""


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
        in_width: C.
        out_width: D.
        levels: S + 1.
        layers: the number of linear layers.
    """

    def __init__(self, in_width: int, out_width: int, levels: int, layers: int = 2) -> None:
        super().__init__(in_width, out_width, levels)
        self.net = mlp(in_width, out_width, layers)

    def forward(self, slots: Tensor) -> Tensor:
        """From ``[S+1, N, C]`` to ``[S+1, N, D]``."""
        return self.net(slots)


class PerLevelMLPProjector(Projector):
    """An MLP of its own for the base tokens and for every stack (as in Qwen3-VL and SliMM, whose stacks differ in
    kind).

    Args:
        in_width: C.
        out_width: D.
        levels: S + 1.
        layers: the number of linear layers of each.
    """

    def __init__(self, in_width: int, out_width: int, levels: int, layers: int = 2) -> None:
        super().__init__(in_width, out_width, levels)
        self.nets = nn.ModuleList(mlp(in_width, out_width, layers) for _ in range(levels))

    def forward(self, slots: Tensor) -> Tensor:
        """From ``[S+1, N, C]`` to ``[S+1, N, D]``."""
        return torch.stack([net(level) for net, level in zip(self.nets, slots, strict=True)])
