"""Views of native resolution: as large as the image within a budget, in the image's own proportions.

Decided here: a view's sides are whole numbers of the encoder's pieces (Qwen's mergers make one token of a piece of 2 x
2 patches), rounded as the processors of the models round that are trained so: :class:`NativeViews` as Qwen2-VL to
Qwen3-VL, :class:`NaFlexViews` as SigLIP 2, :class:`PixtralViews` as Pixtral. In place of crops there is one *enlarged*
view of exactly ``up`` times as many pieces each way, which no shape of image has to be bent for: DeepStack's
high-resolution image at native resolution.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dslight.data.sample import BadSample, Pixels
from dslight.data.transport.batch_buffer import empty
from dslight.data.views.frames import Clip
from dslight.data.views.pixels import Picture, Resample, cut, moving, picture
from dslight.data.views.policy import CropsFrom, ViewPolicy
from dslight.limits import at_most
from dslight.types import Grid

MOST_STRETCHED = 200
"""Times that one side may be as long as the other (Qwen's limit, for all)."""


def check_shape(image_size: tuple[int, int]) -> None:
    """Refuse what is all length.

    Raises:
        BadSample: an image that is too long for its width.
    """
    if max(image_size) > MOST_STRETCHED * min(image_size):
        raise BadSample(
            f"image of {image_size[1]}x{image_size[0]} pixels: one side is more than {MOST_STRETCHED} times the other"
        )


def rounded(
    image_size: tuple[int, int], size: tuple[int, int], least: int, most: int, frames: int = 1, depth: int = 1
) -> Grid:
    """(rows, columns) of pieces of ``size``: sides rounded to whole pieces, scaled first where ``frames`` of them,
    rounded to whole temporal patches of ``depth``, have more or fewer pixels than the budget.
    """
    height, width = image_size
    rows, cols = round(height / size[0]), round(width / size[1])
    pixels = round(frames / depth) * depth * rows * size[0] * cols * size[1]
    if pixels > most:
        scale = math.sqrt(frames * height * width / most)
        rows, cols = (max(1, math.floor(side / scale / of)) for side, of in zip(image_size, size, strict=True))
    elif pixels < least:
        scale = math.sqrt(least / (frames * height * width))
        rows, cols = (math.ceil(side * scale / of) for side, of in zip(image_size, size, strict=True))
    return rows, cols


class AnySizeViews(ViewPolicy):
    """Base of the policies whose views have a size for each image.

    Args:
        up: how many times as many rows and columns of pieces the enlarged view has; 0: there is none.
        resample: filter of all views.
        crops_from: what the enlarged view is made of, see :class:`ViewPolicy`.

    Example:
        >>> class Half(dslight.AnySizeViews):  # half of the image's own size
        ...     def fitted(self, image_size, size):
        ...         return max(1, image_size[0] // 2 // size[0]), max(1, image_size[1] // 2 // size[1])
        >>> views, grid = Half()(np.zeros((64, 96, 3), dtype=np.uint8), size=(16, 16))
        >>> views.shape, grid  # 2 x 3 pieces
        (torch.Size([6, 3, 16, 16]), (0, 0))
    """

    native = True

    def __init__(self, up: int = 0, resample: Resample = "bicubic", crops_from: CropsFrom = "image") -> None:
        super().__init__(resample, crops_from)
        if up < 0:
            raise ValueError(f"data.views.up: {up}; 0 (no enlarged view) or more")
        self.up = up

    @abstractmethod
    def fitted(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """(rows, columns) of pieces of (height, width) ``size`` for an image of (height, width) ``image_size``."""

    @property
    def largest(self) -> tuple[int, int]:
        """(height, width) of an image whose base view is about as large as any; without a limit, 1024 x 1024."""
        return 1024, 1024

    def grids(self) -> list[Grid]:
        """See :meth:`ViewPolicy.grids`."""
        return [(self.up, self.up)]

    def choose(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.choose`."""
        return (self.up, self.up)

    def pieces(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`ViewPolicy.pieces`.

        Raises:
            BadSample: an image that is too long for its width.
        """
        check_shape(image_size)
        return self.fitted(image_size, size)

    def __call__(
        self, image: np.ndarray | Image.Image, size: tuple[int, int], pixels: Pixels = "pillow"
    ) -> tuple[Tensor, Grid]:
        """Pieces of an RGB image, uint8 ``[V, 3, h, w]`` in the order of :class:`~dslight.types.Views`, and the grid.

        Raises:
            BadSample: as :meth:`pieces`.
        """
        whole = picture(image, pixels)
        return self._cut(whole, self.pieces(whole.size, size), size), (self.up, self.up)

    def clip(self, frames: Sequence[np.ndarray], clip: Clip, size: tuple[int, int]) -> tuple[list[Tensor], Grid, Grid]:
        """Pieces of the frames of a clip.

        Args:
            frames: uint8 RGB ``[H, W, 3]``, all of one size.
            clip: that they are of.
            size: (height, width) of a piece.

        Returns:
            Of each temporal patch uint8 ``[V, F, 3, h, w]``, F frames deep; the grid; the pieces of the base view.

        Raises:
            BadSample: frames of several sizes; as :meth:`pieces`.
        """
        if len({frame.shape for frame in frames}) > 1:
            raise BadSample(f"frames of a video of several sizes: {sorted({frame.shape[:2] for frame in frames})}")
        pieces = self.clip_pieces(frames[0].shape[:2], size, clip)
        views = [self._cut(moving(frame), pieces, size) for frame in frames]
        depth = clip.asked.depth
        views += [views[-1]] * (clip.patches * depth - len(views))
        made = [torch.stack(views[first : first + depth], dim=1) for first in range(0, len(views), depth)]
        return made, (self.up, self.up), pieces

    def clip_pieces(self, image_size: tuple[int, int], size: tuple[int, int], clip: Clip) -> Grid:
        """(rows, columns) of pieces of every frame of a clip, whose frames are (height, width) ``image_size``.

        Raises:
            BadSample: as :meth:`pieces`.
        """
        asked = clip.asked
        if asked.min_pixels is None or asked.max_pixels is None:
            return self.pieces(image_size, size)
        check_shape(image_size)
        if asked.budget == "frame":
            return rounded(image_size, size, asked.min_pixels, asked.max_pixels)
        # Qwen3-VL's: it rounds the number of frames as it does the sides, which is not how it fills them up
        small = max(1.0, *(of / side for side, of in zip(image_size, size, strict=True)))
        if small > 1:
            image_size = (int(image_size[0] * small), int(image_size[1] * small))
        count = max(clip.whole, asked.depth)
        return rounded(image_size, size, asked.min_pixels, asked.max_pixels, count, asked.depth)

    def _cut(self, whole: Picture, pieces: Grid, size: tuple[int, int]) -> Tensor:
        count, shape = pieces[0] * pieces[1], (pieces[0] * size[0], pieces[1] * size[1])
        views = empty(count * (1 + self.up**2), *size)
        base = self._base(whole, shape)
        cut(base, pieces, 1, views[:count])
        if self.up:
            enlarged = (pieces[0] * self.up, pieces[1] * self.up)
            cut(self._wide(whole, base, (self.up, self.up), shape), enlarged, 1, views[count:])
        return views


class NativeViews(AnySizeViews):
    """Each side rounded to whole pieces; an image outside of the budget is scaled into it first (``smart_resize`` of
    Qwen2-VL, Qwen2.5-VL and Qwen3-VL).

    Args:
        min_pixels: least pixels of a base view. One visual token of Qwen3-VL takes 32 x 32 of them.
        max_pixels: most pixels of a base view. Defaults: Qwen2-VL's, 4 to 1280 tokens of 28 x 28 pixels.
        up: see :class:`AnySizeViews`, as of ``resample`` and ``crops_from``. The enlarged view has ``up * up`` times as
            many pixels.
        resample: see there.
        crops_from: see there.

    Example:
        >>> dslight.NativeViews(max_pixels=100_000).pieces(image_size=(480, 640), size=(32, 32))
        (8, 11)
    """

    def __init__(
        self,
        min_pixels: int = 56 * 56,
        max_pixels: int = 28 * 28 * 1280,
        up: int = 0,
        resample: Resample = "bicubic",
        crops_from: CropsFrom = "image",
    ) -> None:
        super().__init__(up, resample, crops_from)
        if not 1 <= min_pixels <= max_pixels:
            raise ValueError(f"data.views.min_pixels: {min_pixels}; from 1 to max_pixels, which is {max_pixels}")
        pixels = max_pixels * max(up, 1) ** 2
        at_most(
            "view_pixels", pixels, f"data.views.max_pixels: {max_pixels:,} (up: {up}): {pixels:,} pixels", ValueError
        )
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    @property
    def largest(self) -> tuple[int, int]:
        """See :attr:`AnySizeViews.largest`: a square."""
        side = math.isqrt(self.max_pixels)
        return side, side

    def fitted(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`AnySizeViews.fitted`."""
        return rounded(image_size, size, self.min_pixels, self.max_pixels)


class NaFlexViews(AnySizeViews):
    """As many pieces as ``max_pieces`` allows, however small the image (SigLIP 2's NaFlex).

    Args:
        max_pieces: most pieces of a base view; of an encoder whose pieces are its patches, SigLIP 2's
            ``max_num_patches``.
        up: see :class:`AnySizeViews`, as of ``resample`` and ``crops_from``.
        resample: see there.
        crops_from: see there.

    Example:
        >>> dslight.NaFlexViews(max_pieces=256).pieces(image_size=(480, 640), size=(16, 16))
        (14, 18)
    """

    def __init__(
        self, max_pieces: int = 256, up: int = 0, resample: Resample = "bilinear", crops_from: CropsFrom = "image"
    ) -> None:
        super().__init__(up, resample, crops_from)
        if max_pieces < 1:
            raise ValueError(f"data.views.max_pieces: {max_pieces}; 1 or more")
        pieces = max_pieces * max(up, 1) ** 2  # of a pixel or more
        at_most(
            "view_pixels", pieces, f"data.views.max_pieces: {max_pieces:,} (up: {up}): {pieces:,} pixels", ValueError
        )
        self.max_pieces = max_pieces

    def fitted(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`AnySizeViews.fitted`; the scale is found by SigLIP 2's bisection, to the same last digit."""

        def at(scale: float) -> Grid:
            rows, cols = (max(1, math.ceil(side * scale / of)) for side, of in zip(image_size, size, strict=True))
            return rows, cols

        least, most = 1e-6, 100.0
        while most - least >= 1e-5:
            scale = (least + most) / 2
            rows, cols = at(scale)
            least, most = (scale, most) if rows * cols <= self.max_pieces else (least, scale)
        return at(least)


class PixtralViews(AnySizeViews):
    """An image whose longer side is above a limit is scaled down to it; then each side is filled up to whole pieces
    (Pixtral, Mistral 3).

    Args:
        longest_edge: most pixels of a side before it is filled up.
        up: see :class:`AnySizeViews`, as of ``resample`` and ``crops_from``.
        resample: see there.
        crops_from: see there.

    Example:
        >>> dslight.PixtralViews(longest_edge=512).pieces(image_size=(480, 640), size=(16, 16))
        (24, 32)
    """

    def __init__(
        self, longest_edge: int = 1024, up: int = 0, resample: Resample = "bicubic", crops_from: CropsFrom = "image"
    ) -> None:
        super().__init__(up, resample, crops_from)
        if longest_edge < 1:
            raise ValueError(f"data.views.longest_edge: {longest_edge}; 1 or more")
        pixels = (longest_edge * max(up, 1)) ** 2
        at_most(
            "view_pixels",
            pixels,
            f"data.views.longest_edge: {longest_edge:,} (up: {up}): {pixels:,} pixels",
            ValueError,
        )
        self.longest_edge = longest_edge

    @property
    def largest(self) -> tuple[int, int]:
        """See :attr:`AnySizeViews.largest`: a square."""
        return self.longest_edge, self.longest_edge

    def fitted(self, image_size: tuple[int, int], size: tuple[int, int]) -> Grid:
        """See :meth:`AnySizeViews.fitted`."""
        ratio = max(image_size) / self.longest_edge
        if ratio > 1:
            image_size = math.floor(image_size[0] / ratio), math.floor(image_size[1] / ratio)
        return (max(image_size[0], 1) - 1) // size[0] + 1, (max(image_size[1], 1) - 1) // size[1] + 1
