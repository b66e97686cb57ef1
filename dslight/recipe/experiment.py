"""An experiment: a recipe with everything that it names, and what follows from all of it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.model_helpers import is_overridden

from dslight.components import Component
from dslight.components.stacking import EncoderPass
from dslight.data.datamodule import ShardData
from dslight.data.dense import DenseLabelData
from dslight.data.images import SingleView, views_for
from dslight.diagnostics.settings import Diagnostics
from dslight.layout import SlotLayout
from dslight.recipe.schema import Parsed, Section
from dslight.types import Grid
from dslight.vlm import VLM


@dataclass
class Experiment:
    """A recipe with everything it names.

    Attributes:
        recipe: as composed.
        model: what the Trainer drives: a VLM, or a component that is fitted alone.
        data: its data module.
        trainer: the section that makes the Trainer.
        diagnostics: what is measured behind validations, if anything is.
        image: (height, width) of the image that costs are of, where its size matters; default: the largest.
        files: part -> the file that all of its weights were read from; ``None``: the one that the part itself names.
            Of others it is not known that they are in one.
        parsed: the recipe's sections; ``None`` where the objects were made in Python.
    """

    recipe: Mapping[str, Any]
    model: VLM | Component
    data: Any
    trainer: Section
    diagnostics: Diagnostics | None = None
    image: tuple[int, int] | None = None
    files: Mapping[str, str | None] = field(default_factory=dict)
    parsed: Parsed | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, VLM) and isinstance(self.data, ShardData):
            self.data.views = self.data.views or views_for(self.model.needs)

    @property
    def of_shards(self) -> bool:
        """Whether the data are this library's, which know their views, batches and sources; a stranger's may be any
        data module of Lightning.
        """
        return isinstance(self.data, ShardData | DenseLabelData)

    @property
    def validates(self) -> bool:
        """Whether there is something to validate on."""
        return bool(self.data.val_sources) if self.of_shards else is_overridden("val_dataloader", self.data)

    @property
    def encoder(self) -> Any:
        """The vision encoder, wherever it is."""
        return self.model.vision_encoder if isinstance(self.model, VLM) else self.model

    @property
    def views(self) -> Any:
        """How images become views; a stranger's data are taken to make those that the model looks at."""
        if (named := getattr(self.data, "views", None)) is not None:
            return named
        return views_for(self.model.needs) if isinstance(self.model, VLM) else SingleView()

    @property
    def grids(self) -> list[Grid]:
        """Every crop grid that the data may produce."""
        return list(self.views.grids())

    @property
    def fine(self) -> int:
        """n of the n x n fine crops of every view that the data makes; 0: none."""
        return int(getattr(self.views, "fine", 0))

    @property
    def largest_grid(self) -> Grid:
        """The grid of most crops; of several, the squarest."""
        return max(self.grids, key=lambda grid: (grid[0] * grid[1], -abs(grid[0] - grid[1])))

    @property
    def pieces(self) -> Grid:
        """(rows, columns) of the pieces of the base view of ``image``: one, unless images have sizes of their own."""
        views = self.views
        if not getattr(views, "native", False):
            return (1, 1)
        return views.pieces(self.image or views.largest, self.encoder.image_size)

    def views_of(self, run: EncoderPass) -> list[Grid]:
        """Of each view that passes the encoder in one of its runs over that image, its (rows, columns) of pieces."""
        (rows, cols), (up, _) = self.pieces, self.largest_grid
        if not self.encoder.native:
            return [(1, 1)] * run.views
        base, enlarged = [(rows, cols)], [(rows * up, cols * up)]
        return {1: base, up * up: enlarged if up > 1 else base}.get(run.views, base + enlarged)

    @property
    def slots(self) -> SlotLayout | None:
        """How many positions of the sequence an image takes; ``None`` for a component alone."""
        if not isinstance(self.model, VLM):
            return None
        return self.model.stacking.slot_layout(self.model.vision_encoder, self.model.projector)

    @property
    def context(self) -> tuple[int, ...]:
        """What stands at the visual positions of the sequence (see :meth:`SlotLayout.order`), for an image that is cut
        into the largest grid; empty for a component alone.
        """
        grid, (height, width) = self.largest_grid, self.encoder.image_size
        size = (grid[0] * height, grid[1] * width)
        return self.slots.order(grid, size, self.pieces) if self.slots else ()
