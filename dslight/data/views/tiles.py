"""Tiles as released models cut them: the whole image bent into a grid of views, and the base view beside it.

Decided here: every rounding, and which of two grids is taken, is that of the model's own processor, so that an image
gets the same grid at any size.
"""

from __future__ import annotations

import math

from dslight.data.views.pixels import Picture, Resample
from dslight.data.views.policy import ViewPolicy
from dslight.types import Grid


class DynamicTileViews(ViewPolicy):
    """The base view and the grid of tiles whose proportions are nearest to the image's; of equally near ones the larger
    while the image fills more than half of it. One tile is the base view alone (InternVL's dynamic high resolution).

    Args:
        most: the most tiles.
        least: the fewest.
        resample: filter of all views.

    Example:
        >>> views = dslight.DynamicTileViews(most=6)
        >>> views.choose((300, 620), (448, 448)), views.choose((300, 310), (448, 448))
        ((1, 2), (0, 0))
    """

    def __init__(self, most: int = 12, least: int = 1, resample: Resample = "bicubic") -> None:
        super().__init__(resample)
        if not 1 <= least <= most:
            raise ValueError(f"data.views.most: {most} tiles, at least {least}; 1 or more, and no fewer than `least`")
        self.most, self.least = most, least

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [(0, 0) if grid == (1, 1) else grid for grid in self._candidates()]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        (height, width), best, nearest = image_size, (1, 1), math.inf
        for rows, cols in self._candidates():
            off = abs(width / height - cols / rows)
            fills = height * width > 0.5 * size[0] * size[1] * rows * cols
            if off < nearest or (off == nearest and fills):
                best, nearest = (rows, cols), off
        return (0, 0) if best == (1, 1) else best

    def _candidates(self) -> list[Grid]:
        """By their number of tiles, narrow ones first."""
        sides = range(1, self.most + 1)
        found = [(rows, cols) for cols in sides for rows in sides if self.least <= rows * cols <= self.most]
        return sorted(found, key=lambda grid: grid[0] * grid[1])


class SplitViews(ViewPolicy):
    """The image with its longer side brought to ``side`` views, its shorter side to whole views, cut into these; the
    base view is made of that. One view is the base view alone (Idefics 3's and SmolVLM's image splitting).

    Args:
        side: views along the longer side.
        resample: filter of all views.

    Example:
        >>> views = dslight.SplitViews(side=4)
        >>> views.choose((300, 620), (512, 512)), views.choose((30, 500), (512, 512))
        ((2, 4), (1, 4))
    """

    def __init__(self, side: int = 4, resample: Resample = "lanczos") -> None:
        super().__init__(resample)
        if side < 1:
            raise ValueError(f"data.views.side: {side}; 1 view or more")
        self.side = side

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        sides = range(1, self.side + 1)
        return sorted({grid for n in sides for grid in ((self.side, n), (n, self.side))}) if self.side > 1 else [(0, 0)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        height, width = self._enlarged(image_size, size)
        grid = (height // size[0], width // size[1])
        return (0, 0) if grid == (1, 1) else grid

    def prepared(self, whole: Picture, size: tuple[int, int]) -> Picture:
        """See :meth:`ViewPolicy.prepared`."""
        first = whole.squash(self._longest(whole.size, size), self.resample)
        return first.squash(self._enlarged(whole.size, size), self.resample)

    def _longest(self, image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the image with its longer side as long as ``side`` views, the other even."""
        (height, width), longest = image_size, self.side * max(size)
        ratio = width / height
        if width >= height:
            short = int(longest / ratio)
            return max(short + short % 2, 1), longest
        short = int(longest * ratio)
        return longest, max(short + short % 2, 1)

    def _enlarged(self, image_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in whole views."""
        height, width = self._longest(image_size, size)
        ratio = width / height
        if width >= height:
            width = math.ceil(width / size[1]) * size[1]
            return math.ceil(int(width / ratio) / size[0]) * size[0], width
        height = math.ceil(height / size[0]) * size[0]
        return height, math.ceil(int(height * ratio) / size[1]) * size[1]
