"""What views are made of: an image resized, padded and cut into tiles. Pillow's resizing, antialiased.

Decided here: every rounding is that of LLaVA's and LLaVA-NeXT's code, so that the pixels are theirs.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dslight.data.sample import MAX_PIXELS, BadSample
from dslight.types import Grid

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's filters. ``box`` at half size is the 2x2 mean."""

Color = tuple[int, int, int]
"""Red, green, blue from 0 to 255. Black is ``[0, 0, 0]``, the mean of CLIP's pixels ``[122, 116, 104]``."""

BLACK: Color = (0, 0, 0)


def squash(image: Image.Image, size: tuple[int, int], resample: Resample) -> Image.Image:
    """Resize to (height, width) ``size``, whatever the proportions."""
    return image.resize((size[1], size[0]), Image.Resampling[resample.upper()])


def scale_and_pad(image: Image.Image, size: tuple[int, int], resample: Resample, color: Color) -> Image.Image:
    """Scale into (height, width) ``size`` without distortion, then fill up with colour around it.

    Rounded up, as in LLaVA-NeXT's code, so no side vanishes.
    """
    by_height, by_width = size[0] / image.height, size[1] / image.width
    if by_width < by_height:
        inner = (min(math.ceil(image.height * by_width), size[0]), size[1])
    else:
        inner = (size[0], min(math.ceil(image.width * by_height), size[1]))
    return _center(squash(image, inner, resample), size, color)


def expand(image: Image.Image, shape: tuple[int, int], color: Color) -> Image.Image:
    """Fill up to the proportions of ``shape`` (height, width) without scaling; a square: LLaVA's ``expand2square``.

    Raises:
        BadSample: the result would be above the cap on pixels.
    """
    height = max(image.height, round(image.width * shape[0] / shape[1]))
    width = max(image.width, round(image.height * shape[1] / shape[0]))
    if height * width > MAX_PIXELS:  # a thin strip of few pixels becomes a huge square
        raise BadSample(f"image of {image.width}x{image.height} pixels is above the cap of {MAX_PIXELS} when padded")
    return _center(image, (height, width), color)


def _center(image: Image.Image, size: tuple[int, int], color: Color) -> Image.Image:
    canvas = Image.new("RGB", (size[1], size[0]), tuple(color))
    canvas.paste(image, ((size[1] - image.width) // 2, (size[0] - image.height) // 2))
    return canvas


def cut(image: Image.Image, grid: Grid, fine: int = 1) -> Tensor:
    """The tiles of an image row by row, each cut into ``fine`` x ``fine``: uint8 ``[rows * cols * fine * fine, 3, h,
    w]``."""
    rows, cols = grid
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    tiles = pixels.reshape(3, rows, fine, image.height // (rows * fine), cols, fine, image.width // (cols * fine))
    return tiles.permute(1, 4, 2, 5, 0, 3, 6).flatten(0, 3)
