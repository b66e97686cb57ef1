"""Views of an image: the base (low-resolution) view and the crops of the high-resolution one (DeepStack, section 3.2).

A policy decides how many crops and where; the resolution is the vision encoder's and comes with the call. Views stay
uint8: the normalisation belongs to the encoder. Decided here: resizing is Pillow's, antialiased, and squashes (no
padding), as the authors' code does, so that the base view and the crops show the same area and a crop's cell lies where
the base view's cell lies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dslight.types import Grid

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's filters. ``box`` at half size is the 2x2 mean."""

CropsFrom = Literal["image", "base"]
"""``base`` cuts the crops from the enlarged base view: as many tokens, no new information (the control of the paper's
Table 4)."""


class ViewPolicy(ABC):
    """How one image becomes views. Instances are small and picklable, since data workers get a copy.

    Args:
        resample: filter of the base view and of the crops.
        crops_from: what the crops are cut from; ``base`` enlarges bicubically.

    Attributes:
        fine: n: every view is followed, behind the crops, by n x n fine crops of it; 0: none.
    """

    fine: int = 0

    def __init__(self, resample: Resample = "bicubic", crops_from: CropsFrom = "image") -> None:
        self.resample: Resample = resample
        self.crops_from: CropsFrom = crops_from

    @abstractmethod
    def grids(self) -> list[Grid]:
        """Every (rows, columns) of crops that the policy can choose; ``(0, 0)`` is no crops."""

    @abstractmethod
    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """The grid for an image of (height, width) ``image_size`` and views of (height, width) ``size``."""

    def __call__(self, image: np.ndarray | Image.Image, size: tuple[int, int]) -> tuple[Tensor, Grid]:
        """Views of an RGB image, uint8 ``[1 + rows * cols, 3, h, w]``, and (rows, cols)."""
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")
        rows, cols = grid = self.choose((picture.height, picture.width), size)
        height, width = size
        base = _resize(picture, (height, width), self.resample)
        if rows * cols == 0:
            return _to_tensor(base)[None], grid
        large = (rows * height, cols * width)
        wide = _resize(picture, large, self.resample) if self.crops_from == "image" else _resize(base, large, "bicubic")
        crops = _to_tensor(wide).reshape(3, rows, height, cols, width).permute(1, 3, 0, 2, 4)
        return torch.cat([_to_tensor(base)[None], crops.reshape(rows * cols, 3, height, width)]), grid


class SingleView(ViewPolicy):
    """Only the base view, the image squashed to the encoder's resolution."""

    def __init__(self, resample: Resample = "bicubic") -> None:
        super().__init__(resample)

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [(0, 0)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return (0, 0)


class GridViews(ViewPolicy):
    """The base view and a fixed grid of crops."""

    def __init__(
        self, rows: int = 2, cols: int = 2, resample: Resample = "bicubic", crops_from: CropsFrom = "image"
    ) -> None:
        super().__init__(resample, crops_from)
        if rows < 1 or cols < 1:
            raise ValueError(f"data.views: a grid of {rows} x {cols} crops; both must be 1 or more")
        self.rows, self.cols = rows, cols

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [(self.rows, self.cols)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return (self.rows, self.cols)


class AspectGridViews(ViewPolicy):
    """The base view and the grid that fits the image's shape best, of all grids of 2 to ``max_crops`` crops (seven for
    4).

    LLaVA-NeXT's rule: the grid that keeps most of the image's own pixels when it is scaled into it without distortion;
    among equals the one that leaves least of the grid empty; then the narrowest.
    """

    def __init__(self, max_crops: int = 4, resample: Resample = "bicubic", crops_from: CropsFrom = "image") -> None:
        super().__init__(resample, crops_from)
        if max_crops < 2:
            raise ValueError(f"data.views.max_crops: {max_crops}; 2 or more (SingleView has no crops)")
        self.max_crops = max_crops

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        sides = range(1, self.max_crops + 1)
        return [(rows, cols) for cols in sides for rows in sides if 1 < rows * cols <= self.max_crops]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        height, width = image_size

        def fit(grid: Grid) -> tuple[int, int]:
            large_h, large_w = grid[0] * size[0], grid[1] * size[1]
            scale = min(large_w / width, large_h / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - large_h * large_w

        return max(self.grids(), key=fit)  # the first of equals


def _resize(image: Image.Image, size: tuple[int, int], resample: Resample) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling[resample.upper()])


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
