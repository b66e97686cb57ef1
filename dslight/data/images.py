"""Views of an image: the base (low-resolution) view and the crops of the high-resolution one (DeepStack, section 3.2).

A policy decides how many crops and where; the resolution is the vision encoder's and comes with the call. Views stay
uint8: the normalisation belongs to the encoder. Decided here: resizing is antialiased. ``fit`` is ``squash`` where the
released DeepStack code squashes, so that the base view and the crops show the same area and a crop's cell lies where
the base view's cell lies; ``pad`` keeps the image's shape, as LLaVA and LLaVA-NeXT do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from dslight.data.arena import empty
from dslight.data.pixels import BLACK, Color, Picture, Resample, cut, expand, picture, scale_and_pad
from dslight.data.sample import Pixels
from dslight.types import Grid, ViewNeeds
from dslight.written import Written

CropsFrom = Literal["image", "base"]
"""``base`` cuts the crops from the enlarged base view: as many tokens, no new information (the control of the paper's
Table 4)."""

Fit = Literal["squash", "pad"]
"""``pad`` scales without distortion and fills up with colour on two sides."""


class ViewPolicy(ABC, Written):
    """How one image becomes views. Instances are small and picklable, since data workers get a copy.

    Args:
        resample: filter of all views.
        crops_from: what the crops are cut from; ``base`` enlarges bicubically.
        fit: how the high-resolution image gets the shape of its grid. The base view is squashed either way, so crops
            of a padded image do not lie where the base view's cells lie (the paper's Table 5, "consistent": no).
        pad_color: of the padding.

    Attributes:
        fine: n: every view is followed, behind the crops, by n x n fine crops of it; 0: none.
        native: whether views have a size for each image (:mod:`dslight.data.native`).

    Example:
        >>> class Portrait(dslight.ViewPolicy):  # one crop above the other
        ...     def grids(self):
        ...         return [(2, 1)]
        ...     def choose(self, image_size, size):
        ...         return (2, 1)
        >>> views, grid = Portrait()(np.zeros((20, 30, 3), dtype=np.uint8), size=(16, 16))
        >>> views.shape, grid  # the base view and two crops
        (torch.Size([3, 3, 16, 16]), (2, 1))
    """

    fine: int = 0
    native: bool = False

    def __init__(
        self,
        resample: Resample = "bicubic",
        crops_from: CropsFrom = "image",
        fit: Fit = "squash",
        pad_color: Color = BLACK,
    ) -> None:
        if len(pad_color) != 3 or not all(0 <= value <= 255 for value in pad_color):
            raise ValueError(f"data.views.pad_color: {list(pad_color)}; three numbers from 0 to 255")
        if (fit, crops_from) == ("pad", "base"):
            raise ValueError("data.views.fit: pad with crops_from base; the base view is squashed, set fit to squash")
        self.resample: Resample = resample
        self.crops_from: CropsFrom = crops_from
        self.fit: Fit = fit
        self.pad_color: Color = pad_color

    @abstractmethod
    def grids(self) -> list[Grid]:
        """Every (rows, columns) of crops that the policy can choose; ``(0, 0)`` is no crops."""

    @abstractmethod
    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """The grid for an image of (height, width) ``image_size`` and views of (height, width) ``size``."""

    def pieces(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """(rows, columns) of the pieces of (height, width) ``size`` that the base view of an image of (height, width)
        ``image_size`` is made of: at one size for all, one.
        """
        return (1, 1)

    def __call__(
        self, image: np.ndarray | Image.Image, size: tuple[int, int], pixels: Pixels = "pillow"
    ) -> tuple[Tensor, Grid]:
        """Views of an RGB image, uint8 ``[V, 3, h, w]`` in the order of :class:`~dslight.types.Views`, and its grid.

        Raises:
            BadSample: an image that cannot be padded.
        """
        whole = picture(image, pixels)
        grid = self.choose(whole.size, size)
        count, fine = 1 + grid[0] * grid[1], self.fine
        views = empty(count * (1 + fine**2), *size)
        base = self._base(whole, size, views[:1] if count > 1 or fine else views)
        if count > 1:
            cut(self._wide(whole, base, grid, size), grid, 1, views[1:count])
        if fine:
            enlarged, (of_base, of_crops) = (size[0] * fine, size[1] * fine), views[count:].tensor_split([fine**2])
            cut(self._base(whole, enlarged), (1, 1), fine, of_base)
            cut(self._wide(whole, base, grid, enlarged), grid, fine, of_crops)
        return views, grid

    def _base(self, whole: Picture, size: tuple[int, int], into: Tensor | None = None) -> Picture:
        return whole.squash(size, self.resample, into)

    def _wide(self, whole: Picture, base: Picture, grid: Grid, size: tuple[int, int]) -> Picture:
        """The high-resolution image: as large as ``grid`` of crops of ``size``."""
        large = (grid[0] * size[0], grid[1] * size[1])
        if self.crops_from == "base":
            return base.squash(large, "bicubic")
        if self.fit == "squash":
            return whole.squash(large, self.resample)
        return scale_and_pad(whole, large, self.resample, self.pad_color)


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
    ) -> None:
        super().__init__(resample, fit=fit, pad_color=pad_color)
        self._grids: list[Grid] = [(rows, cols) for rows, cols in grids]
        if not self._grids or any(rows < 1 or cols < 1 for rows, cols in self._grids):
            raise ValueError(f"data.views.grids: {self._grids}; one grid or more, each of 1 row and 1 column or more")

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return list(self._grids)

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
        from dslight.data.native import NativeViews

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
