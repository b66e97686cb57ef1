"""Projectors (elsewhere: connectors, mergers): from the vision encoder's width C to the language model's width D.

A projector takes *maps*, not token lists, so that it may also make the maps smaller (token compression) and still every
row of every level shows the same place. The stacking scheduler lays the projected maps into the sequence afterwards.

Decided here: whether the levels share one net (the paper) or have one each (Qwen3-VL, SliMM, Granite 4 Vision) is a
switch of every projector, ``per_level``, and is dealt with once, in :class:`MapProjector`; a kind of projector is a
small class that makes the net for one level.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import gcd
from typing import ClassVar

import torch
from torch import Tensor, nn

from dslight.components.component import Component, whole
from dslight.types import Grid


class Projector(Component, ABC):
    """Projects all levels at once. A level is one set of maps: those of the base tokens, then those of each stack.

    Args:
        in_widths: the width C of each level, what the stacking scheduler hands over; S + 1 of them, or S where no base
            tokens fill the sequence.
        out_width: D, the language model's width.

    Attributes:
        aligned: whether the token at a place of the output shows that place of the input. A projector whose tokens are
            answers to learned questions is not: stacks still meet the base token of the same question.
        local: whether a token depends on its own part of the map alone. Only then can a map be taken piece by piece, as
            images of any size are.

    Example:
        >>> class First(dslight.Projector):  # the base tokens' net, and zeros for every stack
        ...     def __init__(self, in_widths, out_width):
        ...         super().__init__(in_widths, out_width)
        ...         self.net = torch.nn.Linear(in_widths[0], out_width)
        ...     def forward(self, maps):
        ...         base = self.net(maps[0])
        ...         return torch.stack([base, *(torch.zeros_like(base) for _ in maps[1:])])
        >>> First([16, 16], 32)([torch.randn(3, 4, 4, 16)] * 2).shape
        torch.Size([2, 3, 4, 4, 32])
    """

    kind: ClassVar[str] = "projector"
    aligned: bool = True
    local: bool = False

    def __init__(self, in_widths: Sequence[int], out_width: int) -> None:
        super().__init__()
        self.in_widths, self.out_width = tuple(in_widths), out_width

    @property
    def levels(self) -> int:
        """The number of levels."""
        return len(self.in_widths)

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """From one ``[M, height, width, C]`` per level (M >= 1) to ``[levels, M, *out_grid((height, width)), D]``."""

    def out_grid(self, grid: Grid) -> Grid:
        """(rows, columns) of the tokens that a map of ``grid`` becomes; data and plan ask for it.

        Raises:
            ValueError: starting with the argument to change, for a map that the projector cannot take.
        """
        return grid


class MapProjector(Projector):
    """A projector of nets that see one level at a time: one net for all levels, or one for each.

    A subclass sets what :meth:`make` reads, then calls ``super().__init__``, which makes the nets.

    Args:
        in_widths: C of each level; one and the same, where they share a net.
        out_width: D.
        per_level: whether each level has a net of its own.

    Attributes:
        net: the net of all levels, where they share one.
        nets: the nets of the levels, where each has its own.

    Example:
        >>> class Mine(dslight.MapProjector):  # any net from C to D channels, last in its maps
        ...     def make(self, level):
        ...         return torch.nn.Linear(self.in_widths[level], self.out_width)
        >>> dslight.VLM(encoder, Mine, dslight.LowResolution(), lm).projector.net
        Linear(in_features=16, out_features=32, bias=True)
    """

    def __init__(self, in_widths: Sequence[int], out_width: int, per_level: bool = False) -> None:
        super().__init__(in_widths, out_width)
        self.per_level = per_level
        if per_level:
            self.nets = nn.ModuleList(self.make(level) for level in range(self.levels))
            return
        if len(set(self.in_widths)) > 1:
            raise self._unshared(f"levels of widths {', '.join(map(str, self.in_widths))}")
        self.net = self.make(0)

    @abstractmethod
    def make(self, level: int) -> nn.Module:
        """The net of a level (of all, where they share one), from ``[M, height, width, in_widths[level]]`` to
        ``[M, *out_grid((height, width)), D]``.
        """

    def units(self, net: nn.Module) -> Iterable[nn.Module]:
        """The modules of a net that are worth sharding one by one; none, where it is shallow."""
        return ()

    @property
    def shard_units(self) -> list[nn.Module]:
        """The :meth:`units` of every net."""
        return [unit for net in (self.nets if self.per_level else [self.net]) for unit in self.units(net)]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See :meth:`Projector.forward`.

        Raises:
            ValueError: for another number of levels, and as :meth:`out_grid`.
        """
        if len(maps) != self.levels:
            raise ValueError(f"maps: {len(maps)} levels; the projector was made for {self.levels}")
        for level in maps:
            self.out_grid((level.shape[1], level.shape[2]))
        own = next(self.parameters(), None)  # the encoder may be of another dtype
        maps = [level if own is None else level.to(own.dtype) for level in maps]
        if self.per_level:
            return torch.stack([net(level) for net, level in zip(self.nets, maps, strict=True)])
        return self.net(torch.cat(maps)).unflatten(0, (self.levels, len(maps[0])))

    def diagnostics(self) -> Mapping[str, Tensor]:
        """The norm of all weights of each net."""
        nets = self.nets if self.per_level else [self.net]
        norms = [[whole(p).float().norm() for p in net.parameters()] for net in nets]
        names = [f"norm_{level}" for level in range(self.levels)] if self.per_level else ["norm"]
        return {name: torch.stack(each).norm() for name, each in zip(names, norms, strict=True) if each}

    @staticmethod
    def _unshared(what: str) -> ValueError:
        return ValueError(f"per_level: {what} cannot share one net; set per_level: true")


def shrunk(grid: Grid, by: int, argument: str) -> Grid:
    """``grid`` with both sides divided by ``by``.

    Raises:
        ValueError: naming ``argument`` and the values that would do, if a side does not divide.
    """
    if grid[0] % by or grid[1] % by:
        fit = [n for n in range(1, gcd(*grid) + 1) if gcd(*grid) % n == 0]
        raise ValueError(
            f"{argument}: a map of {grid[0]} x {grid[1]} tokens does not divide by {by}; "
            f"it does by {', '.join(map(str, fit))}"
        )
    return grid[0] // by, grid[1] // by


def blocks(maps: Tensor, side: int) -> Tensor:
    """``[M, h, w, C]`` in its blocks of ``side x side`` neighbours, ``[M, h / side, w / side, side, side, C]``."""
    return maps.unflatten(1, (-1, side)).unflatten(3, (-1, side)).transpose(2, 3)
