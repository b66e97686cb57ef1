"""Texts between the tiles of an image: where in the picture a tile lies, as Idefics 3, SmolVLM and Granite Docling say.

They are tokens of the sequence like any other, so an image becomes several runs of slots with text between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dslight.types import Grid


@dataclass(frozen=True)
class TileMarks:
    """Texts in front of the crops of an image and of its base view, which stands behind them.

    Attributes:
        crop: in front of each crop; ``{row}`` and ``{column}`` in it count from 1.
        row_end: behind the last crop of each row.
        crops_end: behind the last crop.
        base: in front of the base view.

    Example:
        >>> marks = dslight.TileMarks(crop="<row_{row}_col_{column}>", row_end="\\n", base="<global-img>")
        >>> marks.texts((1, 2)), marks.texts((0, 0))
        (['<row_1_col_1>', '<row_1_col_2>', '\\n<global-img>'], ['<global-img>'])
    """

    crop: str = ""
    row_end: str = ""
    crops_end: str = ""
    base: str = ""

    def texts(self, grid: Grid) -> list[str]:
        """What stands in front of each of an image's maps, whose crops form ``grid``."""
        made, before = [], ""
        for row in range(1, grid[0] + 1):
            for column in range(1, grid[1] + 1):
                made.append(before + self.crop.replace("{row}", str(row)).replace("{column}", str(column)))
                before = ""
            before = self.row_end
        return [*made, before + (self.crops_end if made else "") + self.base]


@dataclass(frozen=True)
class Between:
    """The ids of :class:`TileMarks` (picklable, for data workers).

    Attributes:
        marks: the texts.
        encode: of a text.
        crops: whether crops stand in the sequence; otherwise the base view is alone there.
    """

    marks: TileMarks
    encode: Callable[[str], list[int]]
    crops: bool

    known: dict[Grid, list[list[int]]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, grid: Grid) -> list[list[int]]:
        """In front of each of an image's maps in the sequence."""
        if grid not in self.known:
            self.known[grid] = [self.encode(text) for text in self.marks.texts(grid if self.crops else (0, 0))]
        return self.known[grid]
