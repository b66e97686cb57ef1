"""What views are made of: a picture resized, padded and cut into tiles.

Decided here: every rounding is that of LLaVA's and LLaVA-NeXT's code, and there are two ways to the pixels. ``pillow``
is what that code calls, so its pixels are theirs, bit for bit. ``fast`` is the same filters from torch in a quarter of
the time, at most 2 levels of 255 from those of the Pillow that is installed: they are resized side after side in its
order, which is not the same in all its versions (in between, values are rounded and clipped).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dslight.data.sample import MAX_PIXELS, BadSample, Pixels
from dslight.types import Grid
from dslight.upstream.torch import INTERPOLATE

Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's filters. ``box`` at half size is the 2x2 mean."""

Color = tuple[int, int, int]
"""Red, green, blue from 0 to 255. Black is ``[0, 0, 0]``, the mean of CLIP's pixels ``[122, 116, 104]``."""

BLACK: Color = (0, 0, 0)


class Picture(ABC):
    """An RGB image that can be resized, antialiased, and laid on a larger one.

    Attributes:
        size: (height, width).
    """

    size: tuple[int, int]

    @abstractmethod
    def squash(self, size: tuple[int, int], resample: Resample, into: Tensor | None = None) -> Picture:
        """Resize to (height, width) ``size``, whatever the proportions; the result is also in ``into``, uint8 ``[1, 3,
        h, w]`` in whose memory the colours of a pixel lie side by side, if there is one."""

    @abstractmethod
    def center(self, size: tuple[int, int], color: Color) -> Picture:
        """In the middle of a larger picture of one colour."""

    @abstractmethod
    def tensor(self) -> Tensor:
        """uint8 ``[3, h, w]``."""


class PillowPicture(Picture):
    """Pillow's resizing."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.size = image, (image.height, image.width)

    def squash(self, size: tuple[int, int], resample: Resample, into: Tensor | None = None) -> PillowPicture:
        """See :meth:`Picture.squash`."""
        resized = PillowPicture(self.image.resize((size[1], size[0]), Image.Resampling[resample.upper()]))
        if into is not None:
            into[0] = resized.tensor()
        return resized

    def center(self, size: tuple[int, int], color: Color) -> PillowPicture:
        """See :meth:`Picture.center`."""
        canvas = Image.new("RGB", (size[1], size[0]), tuple(color))
        canvas.paste(self.image, ((size[1] - self.size[1]) // 2, (size[0] - self.size[0]) // 2))
        return PillowPicture(canvas)

    def tensor(self) -> Tensor:
        """See :meth:`Picture.tensor`."""
        return torch.from_numpy(np.array(self.image)).permute(2, 0, 1)


class TorchPicture(Picture):
    """torch's resizing of uint8; its filters are ``bilinear`` and ``bicubic``, all others are Pillow's here too.

    Args:
        pixels: uint8 RGB ``[1, 3, h, w]``, fastest with the strides by which torch knows that the colours of a pixel
            lie side by side.
        as_pillow: resize the sides in the order of the Pillow that is installed.
    """

    def __init__(self, pixels: Tensor, as_pillow: bool = True) -> None:
        _, _, height, width = pixels.shape
        self._pixels, self.size, self._as_pillow = pixels, (height, width), as_pillow

    def squash(self, size: tuple[int, int], resample: Resample, into: Tensor | None = None) -> TorchPicture:
        """See :meth:`Picture.squash`."""
        if resample not in ("bilinear", "bicubic"):
            image = Image.fromarray(self._pixels[0].permute(1, 2, 0).contiguous().numpy())
            return TorchPicture(PillowPicture(image).squash(size, resample, into).tensor()[None])
        pixels = self._pixels
        if self._as_pillow and height_first(self.size, size):
            pixels = F.interpolate(pixels, size=(size[0], self.size[1]), mode=resample, antialias=True)
        if into is None:
            pixels = F.interpolate(pixels, size=size, mode=resample, antialias=True)
        else:
            # F.interpolate has no `out`, without which a view would be written twice
            pixels = INTERPOLATE[resample](pixels, size, False, out=into)
        return TorchPicture(pixels, self._as_pillow)

    def center(self, size: tuple[int, int], color: Color) -> TorchPicture:
        """See :meth:`Picture.center`."""
        canvas = torch.empty((1, *size, 3), dtype=torch.uint8)
        canvas[:] = torch.tensor(color, dtype=torch.uint8)
        canvas = canvas.permute(0, 3, 1, 2)
        top, left = (size[0] - self.size[0]) // 2, (size[1] - self.size[1]) // 2
        canvas[:, :, top : top + self.size[0], left : left + self.size[1]] = self._pixels
        return TorchPicture(canvas)

    def tensor(self) -> Tensor:
        """See :meth:`Picture.tensor`."""
        return self._pixels[0]


_PILLOW = int(PIL.__version__.split(".")[0])


def height_first(size: tuple[int, int], to: tuple[int, int], pillow: int = _PILLOW) -> bool:
    """Whether this version of Pillow resizes the height before the width, given (height, width) before and after.

    Since 13 it does where the height loses more than twice the pixels that the width loses (``ImagingResampleInner`` in
    its Resample.c), for instance from 640 x 480 to 336 x 336; torch and earlier versions begin with the width.
    """
    lost = size[0] - to[0]
    return pillow >= 13 and lost > max(0, 2 * (size[1] - to[1]))


def picture(image: np.ndarray | Image.Image, pixels: Pixels) -> Picture:
    """An image, or uint8 RGB ``[H, W, 3]``, to be resized the way of ``pixels``."""
    if pixels == "pillow":
        return PillowPicture(Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB"))
    return TorchPicture(_for_torch(image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))))


def moving(frame: np.ndarray) -> Picture:
    """A frame of a video, uint8 RGB ``[H, W, 3]``, to be resized by torch alone, as video processors do it."""
    return TorchPicture(_for_torch(frame), as_pillow=False)


def _for_torch(array: np.ndarray) -> Tensor:
    if not (array.flags.writeable and array.flags.c_contiguous):  # torch wants it writable
        array = array.copy()
    height, width, _ = array.shape
    return torch.from_numpy(array).as_strided((1, 3, height, width), (height * width * 3, 1, width * 3, 3))


def scale_and_pad(image: Picture, size: tuple[int, int], resample: Resample, color: Color) -> Picture:
    """Scale into (height, width) ``size`` without distortion, then fill up with colour around it.

    Rounded up, as in LLaVA-NeXT's code, so no side vanishes.
    """
    height, width = image.size
    by_height, by_width = size[0] / height, size[1] / width
    if by_width < by_height:
        inner = (min(math.ceil(height * by_width), size[0]), size[1])
    else:
        inner = (size[0], min(math.ceil(width * by_height), size[1]))
    return image.squash(inner, resample).center(size, color)


def expand(image: Picture, shape: tuple[int, int], color: Color) -> Picture:
    """Fill up to the proportions of ``shape`` (height, width) without scaling; a square: LLaVA's ``expand2square``.

    Raises:
        BadSample: the result would be above the cap on pixels.
    """
    height = max(image.size[0], round(image.size[1] * shape[0] / shape[1]))
    width = max(image.size[1], round(image.size[0] * shape[1] / shape[0]))
    if height * width > MAX_PIXELS:  # a thin strip of few pixels becomes a huge square
        strip = f"{image.size[1]}x{image.size[0]}"
        raise BadSample(f"image of {strip} pixels is above the cap of {MAX_PIXELS} when padded")
    return image.center((height, width), color)


def cut(image: Picture, grid: Grid, fine: int, out: Tensor) -> None:
    """Write the tiles of an image row by row, each cut into ``fine`` x ``fine``, into ``out``, uint8 ``[rows * cols *
    fine * fine, 3, h, w]``, in whose memory the colours of a pixel lie side by side."""
    (rows, cols), (height, width) = grid, out.shape[2:]
    tiles = image.tensor().permute(1, 2, 0).reshape(rows, fine, height, cols, fine, width * 3)
    out.permute(0, 2, 3, 1).view(rows, cols, fine, fine, height, width * 3).copy_(tiles.permute(0, 3, 1, 4, 2, 5))
