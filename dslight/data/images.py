"""Views of an image: the base (low-resolution) view and the crops of the high-resolution one (DeepStack, section 3.2).

All views have one size here; those of :mod:`dslight.data.native` have one for each image. Decided here: resizing is
antialiased. ``fit`` is ``squash`` where the released DeepStack code squashes, so that the base view and the crops show
the same area and a crop's cell lies where the base view's cell lies; ``pad`` keeps the image's shape, as LLaVA and
LLaVA-NeXT do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from dslight.data.native import AnySizeViews as AnySizeViews
from dslight.data.native import NaFlexViews as NaFlexViews
from dslight.data.native import NativeViews
from dslight.data.native import PixtralViews as PixtralViews
from dslight.data.views.pixels import BLACK, Color, Picture, Resample, expand
from dslight.data.views.policy import CropsFrom, Fit, ViewPolicy
from dslight.data.views.tiles import DynamicTileViews as DynamicTileViews
from dslight.data.views.tiles import SplitViews as SplitViews
from dslight.types import Grid, ViewNeeds


class SingleView(ViewPolicy):
    """Only the base view. ``fit: squash`` gives the image the encoder's shape; ``pad`` expands it to that shape before
    it is resized (LLaVA-1.5's ``image_aspect_ratio: pad``, whose colour is the mean of the encoder's pixels).

    Example:
        >>> dslight.Data(train=["data/mine"], views=dslight.SingleView(fit="pad")).views.grids()
        [(0, 0)]
    """

    def __init__(self, resample: Resample = "bicubic", fit: Fit = "squash", pad_color: Color = BLACK) -> None:
        super().__init__(resample, fit=fit, pad_color=pad_color)

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [(0, 0)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return (0, 0)

    def _base(self, whole: Picture, size: tuple[int, int], into: Tensor | None = None) -> Picture:
        padded = expand(whole, size, self.pad_color) if self.fit == "pad" else whole
        return padded.squash(size, self.resample, into)


class GridViews(ViewPolicy):
    """The base view and a fixed grid of crops.

    Example:
        >>> dslight.Data(train=["data/mine"], views=dslight.GridViews(rows=2, cols=3)).views.grids()
        [(2, 3)]
    """

    def __init__(
        self,
        rows: int = 2,
        cols: int = 2,
        resample: Resample = "bicubic",
        crops_from: CropsFrom = "image",
        fit: Fit = "squash",
        pad_color: Color = BLACK,
    ) -> None:
        super().__init__(resample, crops_from, fit, pad_color)
        for name, value in (("rows", rows), ("cols", cols)):
            if value < 1:
                raise ValueError(f"data.views.{name}: {value}; 1 or more (SingleView has no crops)")
        self.rows, self.cols = rows, cols

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [(self.rows, self.cols)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return (self.rows, self.cols)


class AnyResViews(ViewPolicy):
    """The base view and the one of ``grids`` that fits the image's shape best (LLaVA-NeXT's any-resolution tiles).

    LLaVA-NeXT's rule: the grid that keeps most of the image's own pixels when it is scaled into it without distortion;
    among equals the one that leaves least of the grid empty; then the first.

    Args:
        grids: (rows, columns) of crops to choose from. The default are LLaVA-NeXT's, in transformers' order: an image
            smaller than a view gets the first one (the original code reads them as (columns, rows), so there it gets
            ``[2, 1]``).
        resample: see :class:`ViewPolicy`, as of ``fit`` and ``pad_color``.
        fit: see there.
        pad_color: see there.
        several_color: the images of a conversation that shows several are not cut: each is one view, padded with this
            colour (LLaVA-OneVision); ``None``: all are cut.

    Example:
        >>> dslight.AnyResViews(grids=[(1, 2), (2, 1)]).choose(image_size=(300, 500), size=(336, 336))
        (1, 2)
    """

    def __init__(
        self,
        grids: Sequence[Grid] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
        resample: Resample = "bicubic",
        fit: Fit = "pad",
        pad_color: Color = BLACK,
        several_color: Color | None = None,
    ) -> None:
        super().__init__(resample, fit=fit, pad_color=pad_color)
        self._alone = None if several_color is None else SingleView(resample, "pad", several_color)
        self._grids: list[Grid] = [(rows, cols) for rows, cols in grids]
        if not self._grids or any(rows < 1 or cols < 1 for rows, cols in self._grids):
            raise ValueError(f"data.views.grids: {self._grids}; one grid or more, each of 1 row and 1 column or more")

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [*self._grids, *([] if self._alone is None else [(0, 0)])]

    def among(self, count: int) -> ViewPolicy:
        """See :meth:`ViewPolicy.among`."""
        return self if self._alone is None or count < 2 else self._alone

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return _best(self._grids, image_size, size)


class AspectGridViews(ViewPolicy):
    """The base view and the grid that fits the image's shape best, of all grids of 2 to ``max_crops`` crops (seven for
    4; the narrowest of equals): DeepStack-L. The rule is that of :class:`AnyResViews`.

    Example:
        >>> dslight.AspectGridViews(max_crops=4).choose(image_size=(300, 900), size=(336, 336))
        (1, 3)
    """

    def __init__(
        self,
        max_crops: int = 4,
        resample: Resample = "bicubic",
        crops_from: CropsFrom = "image",
        fit: Fit = "squash",
        pad_color: Color = BLACK,
    ) -> None:
        super().__init__(resample, crops_from, fit, pad_color)
        if max_crops < 2:
            raise ValueError(f"data.views.max_crops: {max_crops}; 2 or more (SingleView has no crops)")
        self.max_crops = max_crops

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        sides = range(1, self.max_crops + 1)
        return [(rows, cols) for cols in sides for rows in sides if 1 < rows * cols <= self.max_crops]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return _best(self.grids(), image_size, size)


class HDViews(AspectGridViews):
    """The views of :class:`AspectGridViews`, and the base view and every crop once more, cut from the ``up`` times
    enlarged image as ``up`` x ``up`` fine crops each: DeepStack-L-HD.

    Example:
        >>> views, grid = dslight.HDViews(max_crops=2, up=2)(np.zeros((20, 40, 3), dtype=np.uint8), size=(16, 16))
        >>> len(views), grid  # base view and two crops, and four fine crops of each
        (15, (1, 2))
    """

    def __init__(self, max_crops: int = 4, up: int = 2, resample: Resample = "bicubic") -> None:
        super().__init__(max_crops, resample)
        if up < 2:
            raise ValueError(f"data.views.up: {up}; 2 or more (AspectGridViews has no fine crops)")
        self.fine = up


def views_for(needs: ViewNeeds) -> ViewPolicy:
    """The views that a stacking looks at, and no more.

    Example:
        >>> views_for(ViewNeeds(crops=4)).grids()
        [(2, 1), (3, 1), (4, 1), (1, 2), (2, 2), (1, 3), (1, 4)]
    """
    if needs.native:
        return NativeViews(up=_up(needs))
    if needs.fine:
        return HDViews(max(needs.crops, 2), needs.fine)
    if needs.padded:
        return AnyResViews()
    if needs.grid or needs.crops == 1:
        return GridViews(*(needs.grid or (1, 1)))
    return AspectGridViews(needs.crops) if needs.crops else SingleView()


def _up(needs: ViewNeeds) -> int:
    """How many times larger the enlarged view is.

    Raises:
        ValueError: for what one such view cannot be.
    """
    if needs.fine or needs.padded:
        raise ValueError("stacking: fine crops and padding belong to views of one size; the encoder takes any size")
    up = needs.grid[0] if needs.grid else math.isqrt(needs.crops)
    if up * up != (needs.grid[0] * needs.grid[1] if needs.grid else needs.crops):
        raise ValueError(
            f"stacking: {needs.crops} stacks cannot take the n x n groups of an enlarged view; set 4 or 9, or name "
            f"data.views"
        )
    return up


def _best(grids: list[Grid], image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
    height, width = image_size

    def fit(grid: Grid) -> tuple[int, int]:
        large_h, large_w = grid[0] * size[0], grid[1] * size[1]
        scale = min(large_w / width, large_h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - large_h * large_w

    return max(grids, key=fit)  # the first of equals
