"""How one image becomes views: the base of all policies.

A policy decides how many crops and where; the resolution is the vision encoder's and comes with the call. Views stay
uint8: the normalisation belongs to the encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from dslight.data.sample import Pixels
from dslight.data.transport.batch_buffer import empty
from dslight.data.views.pixels import BLACK, Color, Picture, Resample, cut, picture, scale_and_pad
from dslight.types import Grid
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

    def among(self, count: int) -> ViewPolicy:
        """The policy for an image that is one of ``count`` in its conversation: most make no difference."""
        return self

    def pieces(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """(rows, columns) of the pieces of (height, width) ``size`` that the base view of an image of (height, width)
        ``image_size`` is made of: at one size for all, one.
        """
        return (1, 1)

    def prepared(self, whole: Picture, size: tuple[int, int]) -> Picture:
        """What views of (height, width) ``size`` are made of: mostly the image as it is."""
        return whole

    def __call__(
        self, image: np.ndarray | Image.Image, size: tuple[int, int], pixels: Pixels = "pillow"
    ) -> tuple[Tensor, Grid]:
        """Views of an RGB image, uint8 ``[V, 3, h, w]`` in the order of :class:`~dslight.types.Views`, and its grid.

        Raises:
            BadSample: an image that cannot be padded.
        """
        whole = picture(image, pixels)
        grid = self.choose(whole.size, size)
        whole = self.prepared(whole, size)
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
