"""Where the tokens of an image stand in the text sequence: how many slots it takes, and which token fills which.

One pure function, shared by the data (which makes room) and the stacking scheduler (which fills it), so the two cannot
disagree. An image has maps of tokens: one of its base view, one of each crop, all of one size. Decided here, after the
codes of LLaVA and LLaVA-NeXT:

- maps stand one after the other, each read row by row; or, with ``newline``, the base map is followed by the *mosaic*
  of the crops, read row by row with a newline token at the end of every row ("anyres"; DeepStack-L-HD); behind an image
  without crops stands one newline token;
- ``unpad`` leaves out the rows or columns of the mosaic that show only padding (LLaVA-NeXT's ``spatial_unpad``);
- ``most`` shrinks a mosaic of clearly more maps than that to about as many tokens as so many maps have
  (LLaVA-OneVision's ``anyres_max``);
- ``thumbnail: last`` lets the base map stand behind the crops (InternVL, Idefics 3);
- ``fill_to`` lays maps of zeros behind the crops of images that have fewer (the released DeepStack code's strings).

At native resolution an image's map has as many tokens as its size gives: a mosaic of those of its pieces
(:class:`~dslight.types.Views`), read row by row; and so has the enlarged view that stands in place of crops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dslight.types import Grid

NEWLINE = -1
"""Stands in an order for the newline token."""
ZERO = -2
"""Stands in an order for a token of zeros."""


@dataclass(frozen=True)
class SlotLayout:
    """The slots of an image as a function of its crop grid and its size (picklable, for data workers).

    Attributes:
        tokens: (rows, columns) of the tokens of one map; at native resolution, of one piece.
        base: whether the base view's map stands in the sequence.
        crops: whether the crops' maps do; otherwise crops are stacked or unused, and take no room in the context.
        newline: see the module's docstring.
        unpad: see the module's docstring.
        fill_to: the least number of crop maps.
        native: whether images have sizes of their own.
        most: see the module's docstring; 0: nothing is shrunk.
        thumbnail: where the base map stands, beside crops.
    """

    tokens: Grid
    base: bool = True
    crops: bool = False
    newline: bool = False
    unpad: bool = False
    fill_to: int = 0
    native: bool = False
    most: int = 0
    thumbnail: Literal["first", "last"] = "first"

    def __call__(self, grid: Grid, size: Grid | None = None, pieces: Grid = (1, 1)) -> int:
        """The number of slots of an image.

        Args:
            grid: (rows, columns) of its crops.
            size: its own (height, width) in pixels; needed with ``unpad``.
            pieces: (rows, columns) of the pieces of its base view.
        """
        if not self.crops:
            return self.maps(grid, pieces) * self.tokens[0] * self.tokens[1]
        return len(self.order(grid, size, pieces))

    def grid(self, pieces: Grid = (1, 1)) -> Grid:
        """(rows, columns) of the tokens of the base map of an image."""
        return pieces[0] * self.tokens[0], pieces[1] * self.tokens[1]

    def maps(self, grid: Grid, pieces: Grid = (1, 1)) -> int:
        """The number of maps (pieces) of an image that stand in the sequence."""
        return (self.base + (grid[0] * grid[1] if self.crops else 0)) * pieces[0] * pieces[1]

    def mosaic(self, grid: Grid, size: Grid | None = None) -> Grid:
        """(rows, columns) of the tokens of the crops' mosaic, without the padding that is left out."""
        rows, cols = range(grid[0] * self.tokens[0]), range(grid[1] * self.tokens[1])
        if self.unpad and size is not None and rows and cols:
            rows, cols = _unpadded(rows, cols, size)
        return len(rows), len(cols)

    def shrunk(self, grid: Grid, size: Grid | None = None) -> Grid | None:
        """(rows, columns) that the mosaic is shrunk to; ``None``: it is not. Rounded as LLaVA-OneVision's code."""
        rows, cols = self.mosaic(grid, size)
        if not self.most or not self.crops or not rows * cols:
            return None
        ratio = math.sqrt(rows * cols / (self.most * self.tokens[0] * self.tokens[1]))
        return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else None

    def order(self, grid: Grid, size: Grid | None = None, pieces: Grid = (1, 1)) -> tuple[int, ...]:
        """Which token fills each slot: an index into the tokens of the image's maps in the sequence (base, then crops,
        map by map, each row by row), or ``NEWLINE``, or ``ZERO``. In a mosaic that is shrunk it is the token that lies
        in the middle of what a slot shows.

        Raises:
            ValueError: with ``unpad`` and no size.
        """
        return _order(self, grid, size if self.unpad else None, pieces)


@lru_cache(maxsize=256)  # an order is some thousand numbers, and with unpad every image size has its own
def _order(layout: SlotLayout, grid: Grid, size: Grid | None, pieces: Grid) -> tuple[int, ...]:
    if layout.unpad and size is None:
        raise ValueError("layout: unpad needs the size of every image, and these views have none")
    area = layout.tokens[0] * layout.tokens[1]
    base, order = list(_mosaic(layout, pieces)) if layout.base else [], list[int]()
    first, count = len(base), grid[0] * grid[1]  # where the crops' tokens begin, how many crops
    crops = (grid[0] * pieces[0], grid[1] * pieces[1])
    if layout.crops and layout.newline:
        order += _mosaic(layout, crops, size, first, NEWLINE) if count else [NEWLINE]
    elif layout.crops and layout.native:
        order += _mosaic(layout, crops, None, first)
    elif layout.crops:
        order += range(first, first + count * area)
        order += [ZERO] * (max(layout.fill_to - count, 0) * area)
    return tuple(order + base if layout.thumbnail == "last" else base + order)


def _mosaic(
    layout: SlotLayout, grid: Grid, size: Grid | None = None, first: int = 0, end: int | None = None
) -> Iterator[int]:
    """The tokens of ``grid`` of maps, of which the first begins at ``first``, row by row; ``end`` behind each row."""
    height, width = layout.tokens
    rows, cols = range(grid[0] * height), range(grid[1] * width)
    if size is not None and rows and cols:
        rows, cols = _unpadded(rows, cols, size)
    if end is not None and (less := layout.shrunk(grid, size)):
        rows, cols = (
            [side[int((i + 0.5) * len(side) / n)] for i in range(n)] for side, n in zip((rows, cols), less, strict=True)
        )
    for y in rows:
        for x in cols:
            tile = (y // height) * grid[1] + x // width
            yield first + (tile * height + y % height) * width + x % width
        if end is not None:
            yield end


def _unpadded(rows: range, cols: range, size: Grid) -> tuple[range, range]:
    """The part of a mosaic that shows the image, when it was padded on two sides to fit the mosaic's shape.

    Rounded as in transformers' ``unpad_image``, which LLaVA-NeXT's checkpoints were converted with.
    """
    (height, width), (large_h, large_w) = size, (len(rows), len(cols))
    if width / height > large_w / large_h:
        edge = (large_h - int(round(height * (large_w / width), 7))) // 2
        return rows[edge : large_h - edge], cols
    edge = (large_w - int(round(width * (large_h / height), 7))) // 2
    return rows, cols[edge : large_w - edge]
