"""Stacking schedulers: which visual tokens enter the language model where. The subject of the paper.

A scheduler works on both sides of the projector. Before it, :meth:`~StackingScheduler.forward` asks the vision encoder
for features and arranges them into *levels* of maps: the base tokens, then one level per stack. Behind it,
:meth:`~StackingScheduler.lay_out` reads the projected maps into slots ``[S+1, N, D]``: slot 0 fills the sequence, slot
s is added at ``sites[s-1]``. Contract, tested: row t of every slot belongs to the same image, and with an aligned
sampler shows the same place in it.

Every scheduler of the library is a point on the axes of :class:`~dslight.components.schedulers.deepstack.DeepStack`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from dslight.components.component import Component, whole
from dslight.components.operation import Operation
from dslight.components.projector import Projector
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.layout import SlotLayout
from dslight.types import Grid, ViewNeeds, Views, VisualTokens

CROPS = 4
"""Of an image, where a stacking takes any number of them: the paper's."""


@dataclass(frozen=True)
class EncoderPass:
    """One run of the vision encoder over the views of an image (for the cost of a forward pass).

    Attributes:
        views: how many.
        taps: where it is read; layers behind the deepest tap do not run.
    """

    views: int
    taps: tuple[Tap, ...]


class StackingScheduler(Component, ABC):
    """Arranges visual features into slots.

    Attributes:
        operation: what a stack does to the residual stream; ``None``: it is added.
        newline: the newline token ``[D]``, ``None`` where none is laid.
        blocks: what attends to tokens beside the sequence, in front of layers of the language model.

    Example:
        >>> scheduler: dslight.StackingScheduler = dslight.DeepStackL(crops=4)
        >>> scheduler.placements[1]
        ('language_model', 1, '+ stack 1 (crops, 2d, tap final)')
    """

    kind: ClassVar[str] = "stacking"

    def __init__(self) -> None:
        super().__init__()
        self.operation: Operation | None = None
        self.newline: nn.Parameter | None = None
        self.blocks: nn.ModuleList = nn.ModuleList()

    @property
    def shard_units(self) -> list[nn.Module]:
        """One unit per block."""
        return list(self.blocks)

    # --- what it is, for the parts around it

    @property
    def sites(self) -> tuple[int, ...]:
        """The S layers of the language model at whose inputs slots 1..S are added."""
        return ()

    @property
    def num_stacks(self) -> int:
        """S, wherever the stacks are added."""
        return len(self.sites)

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """Which group enters which layer, for people: (part, layer, group)."""
        base = ("language_model", 0, "base tokens, in the sequence")
        return [base, *(("language_model", site, f"+ stack {i}") for i, site in enumerate(self.sites, 1))]

    @property
    def starts_closed(self) -> bool:
        """Whether nothing is added until this part has learned something: then it has to train."""
        return self.operation is not None and self.operation.starts_closed

    def beside(self, grid: Grid) -> int:
        """The maps of an image whose crops form ``grid`` that the language model attends to beside its sequence."""
        return 0

    @property
    def fine(self) -> int:
        """n, when fine crops are looked at: n x n for the base view and for every crop; otherwise 0."""
        return 0

    @property
    def smallest_grid(self) -> Grid:
        """The smallest (rows, columns) of crops that exercises every module; of the blank image that a batch without
        images looks at.
        """
        return (0, 0)

    @property
    def uses_crops(self) -> bool:
        """Whether the high-resolution crops are looked at."""
        return self.smallest_grid != (0, 0)

    @property
    def needs(self) -> ViewNeeds:
        """The views that are made where nobody names others."""
        return ViewNeeds(crops=CROPS if self.uses_crops else 0, fine=self.fine)

    @abstractmethod
    def taps(self) -> list[Tap]:
        """Wherever the encoder is read. Behind the deepest of them no layer trains."""

    @abstractmethod
    def widths(self, encoder: VisionEncoder) -> list[int]:
        """The width C of each level, what the projector takes in."""

    @abstractmethod
    def map_grid(self, encoder: VisionEncoder) -> Grid:
        """(rows, columns) of the tokens of every map."""

    @abstractmethod
    def layout(self, tokens: Grid, native: bool = False) -> SlotLayout:
        """How many positions of the sequence an image takes, and what stands there, when each of its maps becomes
        ``tokens`` behind the projector.

        Args:
            tokens: (rows, columns) of a map; at native resolution, of a piece.
            native: whether images have sizes of their own.
        """

    @abstractmethod
    def passes(self, grid: Grid) -> list[EncoderPass]:
        """The encoder's runs over an image whose crops form ``grid``."""

    def slot_layout(self, encoder: VisionEncoder, projector: Projector) -> SlotLayout:
        """:meth:`layout` with these parts."""
        tokens = projector.out_grid(self.map_grid(encoder))
        return self.layout(tokens, True) if encoder.native else self.layout(tokens)

    # --- what it does

    @abstractmethod
    def forward(self, encoder: VisionEncoder, views: Views) -> list[Tensor]:
        """From views to levels of maps, each ``[M, height, width, C]``; the M maps image by image."""

    @abstractmethod
    def lay_out(self, tokens: Tensor, views: Views) -> VisualTokens:
        """From projected maps ``[levels, M, height, width, D]`` to slots, the N slots image by image."""

    def diagnostics(self) -> Mapping[str, float | Tensor]:
        """What the operation says of itself; the gates of the blocks, before their tanh; the newline token's norm."""
        found: dict[str, float | Tensor] = dict(self.operation.diagnostics()) if self.operation is not None else {}
        for number, block in enumerate(self.blocks, start=1):
            gates = {name: gate for name, gate in block.named_parameters() if name.endswith("gate")}
            found |= {f"block_{number}_{name}": whole(gate).squeeze() for name, gate in gates.items()}
        if self.newline is not None:
            found["newline_norm"] = whole(self.newline).float().norm()
        return found

    def connect(self, width: int) -> None:
        """Make what needs the language model's width D: the newline token, the operation, the blocks."""

    # --- what cannot be

    def check(self, encoder: VisionEncoder, language_model_depth: int) -> None:
        """Refuse what cannot work with these parts.

        Raises:
            ValueError: starting with the argument to change.
        """

    def check_views(self, grids: Sequence[Grid], fine: int = 0, padded: bool = True) -> None:
        """Refuse views (all that the data may produce) that this scheduler cannot place.

        Args:
            grids: the crop grids.
            fine: n of the fine crops.
            padded: whether crops may hold padding; otherwise they are squashed to fit.

        Raises:
            ValueError: starting with the argument to change.
        """
