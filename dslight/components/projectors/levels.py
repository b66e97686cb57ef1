"""Levels that differ: a projector of another kind for each, or one for all with a low-rank difference for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.projector import MapProjector, Projector
from dslight.types import Grid


class PerLevelProjector(Projector):
    """A projector of another kind for each level (Granite Docling, whose base tokens pass another net than its stacks).

    Args:
        in_widths: C of each level.
        out_width: D.
        kinds: one for each level, the base tokens' first; the last takes all levels that are left, and shares a net
            among them or not as it says itself. Of fewer levels than kinds the last kinds are not made. All of them
            have to make maps of the same size.

    Example:
        >>> from functools import partial
        >>> kinds = [dslight.MLPProjector, partial(dslight.MLPProjector, layers=1, per_level=True)]
        >>> projector = dslight.PerLevelProjector([16] * 3, 32, kinds)
        >>> len(projector.kinds[1].nets), projector([torch.randn(1, 4, 4, 16)] * 3).shape
        (2, torch.Size([3, 1, 4, 4, 32]))
    """

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        kinds: list[Callable[[list[int], int], Projector]],
    ) -> None:
        super().__init__(in_widths, out_width)
        if not kinds:
            raise ValueError("kinds: empty; name a projector for the first level at least")
        made: list[Projector] = []
        for number, kind in enumerate(kinds[: self.levels]):
            last = number == len(kinds) - 1
            widths = list(self.in_widths[number:] if last else self.in_widths[number : number + 1])
            try:
                made.append(kind(widths, out_width))
            except ValueError as error:
                raise ValueError(f"kinds.{number}.{error}") from None
        self.kinds = nn.ModuleList(made)
        self.aligned = all(projector.aligned for projector in made)
        self.local = all(projector.local for projector in made)

    @property
    def _kinds(self) -> list[Projector]:
        return list(self.kinds)  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    @property
    def shard_units(self) -> list[nn.Module]:
        """Those of every kind."""
        return [unit for projector in self._kinds for unit in projector.shard_units]

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`; refuses kinds that disagree."""
        found: list[Grid] = []
        for number, projector in enumerate(self._kinds):
            try:
                found.append(projector.out_grid(grid))
            except ValueError as error:
                raise ValueError(f"kinds.{number}.{error}") from None
        for number, other in enumerate(found):
            if other != found[0]:
                raise ValueError(
                    f"kinds.{number}: makes {other[0]} x {other[1]} tokens of a map of {grid[0]} x {grid[1]}, and "
                    f"kinds.0 {found[0][0]} x {found[0][1]}; the levels of a place have to meet"
                )
        return found[0]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See :meth:`Projector.forward`.

        Raises:
            ValueError: for another number of levels, and as :meth:`out_grid`.
        """
        if len(maps) != self.levels:
            raise ValueError(f"maps: {len(maps)} levels; the projector was made for {self.levels}")
        for level in maps:
            self.out_grid((level.shape[1], level.shape[2]))
        projected, start = [], 0
        for projector in self._kinds:
            projected.append(projector(maps[start : start + projector.levels]))
            start += projector.levels
        return torch.cat(projected)

    def diagnostics(self) -> Mapping[str, float | Tensor]:
        """Of every kind, by its number."""
        return {
            f"kind_{number}_{name}": value
            for number, projector in enumerate(self._kinds)
            for name, value in projector.diagnostics().items()
        }


class LevelLoRAProjector(Projector):
    """One projector for all levels, and for each level a low-rank difference to its linear layers (the adaptive
    multi-projection of Cross-Layer Injection, arXiv 2601.10710).

    A level's layer is ``W + up_l down_l * alpha / rank``; ``up`` starts at zero, so all levels begin with the shared
    net. Not to be confused with training a part by LoRA (``stage.train.projector.lora``): here the shared net trains,
    too, and the differences are part of the model.

    Args:
        in_widths: C of each level; one and the same.
        out_width: D.
        projector: what is shared.
        rank: of the differences.
        alpha: they are scaled by alpha / rank.

    Example:
        >>> projector = dslight.LevelLoRAProjector([16] * 3, 32, dslight.MLPProjector, rank=4)
        >>> projector.shared.net[0].down.shape, projector.shared.net[0].up.shape
        (torch.Size([3, 4, 16]), torch.Size([3, 32, 4]))
    """

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        projector: Callable[[list[int], int], Projector],
        rank: int = 16,
        alpha: float = 32.0,
    ) -> None:
        super().__init__(in_widths, out_width)
        if rank < 1:
            raise ValueError(f"rank: must be at least 1, got {rank}")
        if not alpha > 0:
            raise ValueError(f"alpha: must be above 0, got {alpha}")
        if len(set(self.in_widths)) > 1:
            raise ValueError(f"projector: levels of widths {', '.join(map(str, self.in_widths))} cannot share one net")
        try:
            shared = projector(list(self.in_widths), out_width)
        except ValueError as error:
            raise ValueError(f"projector.{error}") from None
        if not isinstance(shared, MapProjector) or shared.per_level:
            raise ValueError(
                f"projector: {type(shared).__name__} has no net that the levels share; set per_level: false"
            )
        self.shared, self.rank, self.alpha = shared, rank, alpha
        self.aligned, self.local = shared.aligned, shared.local
        inside = {id(m.out_proj) for m in shared.modules() if isinstance(m, nn.MultiheadAttention)}
        found = [
            (module, name, child)
            for module in shared.modules()
            for name, child in module.named_children()
            if isinstance(child, nn.Linear) and id(child) not in inside
        ]
        if not found:
            raise ValueError(f"projector: {type(shared).__name__} has no linear layer for a level to differ in")
        for module, name, child in found:
            setattr(module, name, LevelLinear(child, self.levels, rank, alpha / rank))

    @property
    def shard_units(self) -> list[nn.Module]:
        """Those of the shared net."""
        return self.shared.shard_units

    def out_grid(self, grid: Grid) -> Grid:
        """See :meth:`Projector.out_grid`."""
        try:
            return self.shared.out_grid(grid)
        except ValueError as error:
            raise ValueError(f"projector.{error}") from None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See :meth:`MapProjector.forward`."""
        return self.shared(maps)

    def diagnostics(self) -> Mapping[str, float | Tensor]:
        """Of the shared net."""
        return self.shared.diagnostics()


class LevelLinear(nn.Module):
    """A linear layer with a low-rank difference for each level. A :class:`MapProjector` that shares its net lays the
    levels one behind the other along the first axis, so a token's level is where it stands.

    Args:
        linear: the shared layer; its parameters go on under their names.
        levels: L.
        rank: of the differences.
        scale: of the differences.
    """

    def __init__(self, linear: nn.Linear, levels: int, rank: int, scale: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.levels, self.scale = levels, scale
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        down = torch.empty(levels, rank, linear.in_features, **like)
        self.down = nn.Parameter(nn.init.normal_(down, std=linear.in_features**-0.5))
        self.up = nn.Parameter(torch.zeros(levels, linear.out_features, rank, **like))

    def forward(self, tokens: Tensor) -> Tensor:
        """From ``[L * n, ..., in_features]`` to ``[L * n, ..., out_features]``."""
        by_level = tokens.reshape(self.levels, -1, tokens.shape[-1])
        change = by_level @ self.down.transpose(1, 2) @ self.up.transpose(1, 2)
        shared = F.linear(tokens, self.weight, self.bias)
        return shared + self.scale * change.view_as(shared)
