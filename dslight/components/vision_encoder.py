"""Vision encoders (elsewhere: vision towers): from pixels to patch features at one or several depths.

A new encoder is a subclass of :class:`VisionEncoder` that sets six facts about itself and defines
:meth:`~VisionEncoder.encode`. Taps and ViT-side stacking then work without another line, because both are done from
outside, at the inputs of ``layers``. Run ``dslight.testing.VisionEncoderContract`` over it.

An encoder that is no single stack of layers says so (:attr:`~VisionEncoder.tappable`,
:attr:`~VisionEncoder.stackable`) and leaves ``layers`` empty: combinations that need layers are then refused before
any weight is read. The encoders of this library are in :mod:`dslight.components.vision_encoders`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from math import floor
from typing import ClassVar, Literal
from warnings import warn

import torch
from torch import Tensor, nn

from dslight.components.component import Component
from dslight.nn.injector import inject, record
from dslight.places import moved
from dslight.types import Grid

Tap = int | float | Literal["final"]
"""Where features are read: l = the input of layer l (Hugging Face's ``hidden_states[l]``; negative counts from the
end, so -2 is LLaVA's ``mm_vision_select_layer``), a fraction with a point = that part of the depth (0.5: half of the
layers have run; :func:`at_depth`), ``final`` = the encoder's own output, with its last norm.
"""


def at_depth(place: float, depth: int) -> int:
    """The layer at a fraction of ``depth`` layers, the nearest one (halves go up); an integer as it is.

    Raises:
        ValueError: for a fraction outside of 0.0 to 1.0.

    Example:
        >>> [at_depth(fraction, 27) for fraction in (0.33, 0.66, 1.0)]
        [9, 18, 27]
    """
    if isinstance(place, int):
        return place
    if not 0 <= place <= 1:
        raise ValueError(f"{place} is no fraction of depth: 0.0 to 1.0 are, and layers are counted without a point")
    return floor(place * depth + 0.5)


class VisionEncoder(Component, ABC):
    """A stack of transformer layers over patches.

    A subclass sets, in ``__init__``:

    Attributes:
        width: C, the width of the features.
        grid: (rows, columns) of patches of one view.
        image_size: (height, width) in pixels of one view.
        prefix_tokens: tokens before the patches in the residual stream (class token, registers).
        mean: per channel, of pixel values in 0..1.
        std: per channel.

    and, where it is no single stack of layers of one width (feature maps of a convolutional network, several encoders
    at once), says what does not work:

    Attributes:
        tappable: whether it can be read at integer taps. If not, ``final`` is all there is.
        stackable: whether stacks can be added at the inputs of its ``layers`` (DeepStack-V). If not, ``layers`` is
            empty.
        native: whether it takes views of any size. Then ``image_size`` and ``grid`` are those of a *piece*, the least
            that it takes, ``pieces`` are given to :meth:`forward`, and it defines :meth:`read`.
        depth_in_time: how many frames of a video its patches are deep; where more than 1, pixels may be ``[V, F, 3, H,
            W]``.
        tokens_per_second: positions from one second of a video to the next, for a language model whose positions have
            several axes; ``None``: its temporal patches are counted.

    Example:
        >>> class Mine(dslight.VisionEncoder):  # `net` is any module from pixels [V, 3, 16, 16] to patches [V, 16, 8]
        ...     tappable = stackable = False
        ...     layers = ()
        ...     def __init__(self, net):
        ...         super().__init__()
        ...         self.net, self.width, self.grid, self.image_size = net, 8, (4, 4), (16, 16)
        ...         self.mean = self.std = (0.5, 0.5, 0.5)
        ...     def encode(self, pixels, depth):
        ...         return self.net(pixels).flatten(2).transpose(1, 2)
        >>> model = dslight.VLM(Mine(torch.nn.Conv2d(3, 8, 4, 4)), dslight.MLPProjector, dslight.DeepStackL(), lm)
        >>> len(model.answer(["What is it?", "And this?"], ["page.png", None], max_new_tokens=3))
        2
    """

    kind: ClassVar[str] = "vision_encoder"

    width: int
    grid: Grid
    image_size: tuple[int, int]
    prefix_tokens: int = 0
    mean: Sequence[float]
    std: Sequence[float]
    tappable: bool = True
    stackable: bool = True
    native: bool = False
    depth_in_time: int = 1
    tokens_per_second: float | None = None

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's layers, in order. Each takes its hidden states ``[V, prefix + P, C]`` as first argument."""

    @abstractmethod
    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """Run the network.

        Args:
            pixels: float ``[V, 3, H, W]``, normalised.
            depth: how many layers are needed; those behind must not run. At ``len(self.layers)`` the result counts.

        Returns:
            The final features of the patches ``[V, P, C]``, last norm included; ignored unless ``depth`` is the full
            depth.
        """

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def unused(self, tap: Tap) -> list[nn.Module]:
        """The modules whose output is not used when features are read at ``tap``."""
        return [] if tap == "final" else list(self.layers)[self.resolve_tap(tap) :]

    @property
    def shard_units(self) -> list[nn.Module]:
        """One unit per layer."""
        return list(self.layers)

    def normalise(self, pixels: Tensor) -> Tensor:
        """From uint8 ``[V, 3, H, W]``, or frames deep, to the encoder's own floats."""
        reference = next(self.parameters())
        # of a dtype by name: under Lightning's `bf16-true` torch.tensor makes bfloat16, 3 digits of a mean
        mean, std = (
            moved(torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), pixels.device)
            for values in (self.mean, self.std)
        )
        # data leaves the colours of a pixel side by side in memory; one copy, and what is new stays in the caches
        floating = pixels.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return floating.div_(255).sub_(mean).div_(std).to(reference.dtype)

    def resolve_tap(self, tap: Tap) -> int:
        """The tap as a layer index in 0..depth; ``final`` counts as depth.

        Raises:
            ValueError: for a tap beyond the encoder's depth, or any number if it is not ``tappable``.
        """
        if tap == "final":
            return self.depth
        if not self.tappable:
            raise ValueError(f"{type(self).__name__} has no layers to read, so no tap {tap}; `final` is all there is")
        if isinstance(tap, float):
            try:
                return at_depth(tap, self.depth)
            except ValueError as error:
                raise ValueError(f"tap {error}") from None
        index = tap if tap >= 0 else self.depth + 1 + tap
        if not 0 <= index <= self.depth:
            raise ValueError(
                f"tap {tap} is beyond the encoder's depth: it has {self.depth} layers, so taps 0 to {self.depth}"
            )
        return index

    def forward(
        self,
        pixels: Tensor,
        taps: Sequence[Tap] = ("final",),
        stacks: Tensor | None = None,
        sites: Sequence[int] = (),
        pieces: Sequence[Grid] | None = None,
    ) -> list[Tensor]:
        """Features of the patches, prefix tokens dropped.

        Args:
            pixels: uint8 ``[V, 3, H, W]`` at ``image_size``; V may be 0.
            taps: where to read.
            stacks: ``[S, V, P, C]``: added to the patches at the inputs of the layers ``sites`` (DeepStack-V).
            sites: S layer indices.
            pieces: of a ``native`` encoder: per view the (rows, columns) of the pieces that it is made of, which stand
                in ``pixels`` one behind the other, row by row; ``None``: each is a view of its own.

        Returns:
            One ``[V, P, C]`` per tap, P = rows * columns of ``grid``, row by row.
        """
        if pieces is not None and not self.native:
            raise ValueError(
                f"{type(self).__name__} takes views of {self.image_size} pixels alone, not of {pieces} pieces"
            )
        if stacks is not None and not self.stackable:
            raise ValueError(
                f"{type(self).__name__} has no layers to add stacks to: stack in the language model instead"
            )
        if len(pixels) == 0:  # layers do not take it, and have to run all the same (see VLM.see): on a blank view
            return [feature[:0] for feature in self(pixels.new_zeros(1, *pixels.shape[1:]), taps)]
        if pieces is None:
            features = self.read(pixels, taps, stacks, sites)
        else:
            if sum(rows * columns for rows, columns in pieces) != len(pixels):
                raise ValueError(f"pieces: views of {list(pieces)} pieces, and {len(pixels)} of them")
            features = self.read(pixels, taps, stacks, sites, pieces)
        for tap, feature in zip(taps, features, strict=True):
            expected = (len(pixels), self.grid[0] * self.grid[1], self.width)
            if feature is None or feature.shape != expected:
                got = None if feature is None else tuple(feature.shape)
                raise ValueError(
                    f"{type(self).__name__}: tap {tap} gave features {got}, its grid and width promise {expected}"
                )
        return features  # type: ignore[return-value]  # None was refused above

    def needed(self, indices: Sequence[int], sites: Sequence[int]) -> int:
        """How many layers have to run to read the inputs of the layers ``indices``, with stacks added at ``sites``: the
        first always, and one whose input is added to.
        """
        return max(min(index + (index == 0 or index in sites), self.depth) for index in indices)

    def read(
        self,
        pixels: Tensor,
        taps: Sequence[Tap],
        stacks: Tensor | None,
        sites: Sequence[int],
        pieces: Sequence[Grid] | None = None,
    ) -> list[Tensor | None]:
        """:meth:`forward` without its checks, by hooks on ``layers``; for an encoder without them to redefine, and for
        one of any size, to which alone ``pieces`` are given.
        """
        indices = [self.resolve_tap(tap) for tap in taps]
        patches = self.grid[0] * self.grid[1]
        with ExitStack() as hooks:
            if stacks is not None:
                mask = torch.ones(len(pixels), self.prefix_tokens + patches, dtype=torch.bool, device=pixels.device)
                mask[:, : self.prefix_tokens] = False
                places = torch.arange(mask.numel(), device=mask.device).view_as(mask)[:, self.prefix_tokens :].flatten()
                hooks.enter_context(inject(self.layers, mask, stacks.flatten(1, 2), sites, places=places))
            inner = [index for tap, index in zip(taps, indices, strict=True) if tap != "final"]
            seen = hooks.enter_context(record(self.layers, inner))
            # a tap at the embedding or at a site is read when the layer behind it is entered, so that layer has to run
            final = self.encode(self.normalise(pixels), depth=self.needed(indices, sites))
        return [
            final if tap == "final" else seen[index][:, self.prefix_tokens :]
            for tap, index in zip(taps, indices, strict=True)
        ]


def say_unseen(image_size: tuple[int, int], patch: tuple[int, int] | None, grid: Grid, key: str) -> None:
    """Warn of rows or columns of pixels behind the last whole patch, which an encoder does not look at: in a mosaic of
    crops they are seams.
    """
    if patch is None or all(side % part == 0 for side, part in zip(image_size, patch, strict=True)):
        return
    rest = [side - count * part for side, count, part in zip(image_size, grid, patch, strict=True)]
    if max(rest) > 0:
        below, above = ([n * part for n, part in zip(counts, patch, strict=True)] for counts in (grid, _more(grid)))
        warn(
            f"{key}: {image_size[0]} x {image_size[1]} pixels are no whole patches of {patch[0]} x {patch[1]}, so the "
            f"last {rest[0]} rows and {rest[1]} columns of every view are not seen; {below[0]} x {below[1]} and "
            f"{above[0]} x {above[1]} are whole",
            stacklevel=4,
        )


def _more(grid: Grid) -> Grid:
    return grid[0] + 1, grid[1] + 1
