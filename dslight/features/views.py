"""Views some of which are known by their features: what a batch holds where features are kept.

A stacking hands pixels from :class:`~dslight.types.Views` to the encoder and never looks at them. So it is given the
*numbers* of the views in their place (:meth:`KnownViews.numbered`), and something in the encoder's place that takes
them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dslight.places import moved
from dslight.types import Grid, Views

Tap = Any
"""See :data:`dslight.components.vision_encoder.Tap`."""


@dataclass
class KnownImage:
    """The views of one image.

    Attributes:
        keys: of each view, :func:`view_key`.
        features: of a view at a tap ``[P, C]``, by (number of the view, tap).
        pixels: uint8 ``[n, 3, H, W]`` of those views of which something is to be computed.
        rows: their numbers.
    """

    keys: list[str]
    features: dict[tuple[int, Tap], Tensor] = field(default_factory=dict)
    pixels: Tensor | None = None
    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class KnownViews(Views):
    """The views of a batch.

    Attributes:
        pixels: uint8 ``[n, 3, H, W]``, of the views ``rows`` alone.
        rows: their numbers among all ``V`` views.
        keys: of each view; empty where it is nobody's.
        features: by tap, ``[K, P, C]``.
        known: by tap, which views these are.
        encoder: the encoder's digest.
    """

    rows: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    features: dict[Tap, Tensor] = field(default_factory=dict)
    known: dict[Tap, list[int]] = field(default_factory=dict)
    encoder: str = ""

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.rows):
            raise ValueError(f"views: pixels of {len(self.pixels)} views for the {len(self.rows)} that lack features")
        if len(self.keys) != sum(self.per_image):
            raise ValueError(f"views: {len(self.keys)} views, but the grids {self.grids} need {sum(self.per_image)}")

    @classmethod
    def of(
        cls,
        images: Sequence[KnownImage],
        pixels: Tensor,
        grids: list[Grid],
        fine: int,
        sizes: list[Grid],
        encoder: str,
    ) -> KnownViews:
        """Those of ``images``, one behind the other; ``pixels``: all of theirs."""
        starts = [sum(map(len, images[:i])) for i in range(len(images))]
        found: dict[Tap, dict[int, Tensor]] = {}
        for start, image in zip(starts, images, strict=True):
            for (view, tap), feature in image.features.items():
                found.setdefault(tap, {})[start + view] = feature
        return cls(
            pixels, grids, fine, sizes,
            rows=[start + row for start, image in zip(starts, images, strict=True) for row in image.rows],
            keys=[key for image in images for key in image.keys],
            features={tap: torch.stack(list(features.values())) for tap, features in found.items()},
            known={tap: list(features) for tap, features in found.items()},
            encoder=encoder,
        )  # fmt: skip

    def numbered(self) -> Views:
        """The same views with their numbers, int64 ``[V, 1, 1, 1]`` on the CPU, where their pixels should be."""
        return Views(torch.arange(len(self.keys)).view(-1, 1, 1, 1), self.grids, self.fine, self.sizes)

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> KnownViews:
        """The same views, with pixels and features on ``device``."""
        there = {tap: moved(feature, device, non_blocking) for tap, feature in self.features.items()}
        return replace(self, pixels=moved(self.pixels, device, non_blocking), features=there)

    def pin_memory(self) -> KnownViews:
        """The same views in page-locked memory."""
        there = {tap: feature.pin_memory() for tap, feature in self.features.items()}
        return replace(self, pixels=self.pixels.pin_memory(), features=there)


def view_key(pixels: Tensor) -> str:
    """What tells a view from every other: a digest of what the encoder is given, uint8 ``[3, H, W]``."""
    plain = pixels.permute(1, 2, 0).contiguous()  # how they lie in memory as a rule, so nothing is copied
    return digest(str(tuple(pixels.shape)).encode(), plain.numpy().data)


def digest(*parts: Any) -> str:
    """Of bytes, 32 hexadecimal digits."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(part)
    return made.hexdigest()
