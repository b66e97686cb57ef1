"""Several vision encoders at once, their features side by side: mixtures such as CLIP with DINOv2 or a ConvNeXt.

Every encoder sees the same view at its own size. Feature maps are brought to the first encoder's grid and concatenated
along the channels, so that a token still shows one place of the image, and everything behind works as with one encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.vision_encoder import Tap, VisionEncoder


class FusedEncoder(VisionEncoder):
    """Vision encoders whose features are concatenated: ``C`` is the sum of their widths.

    It has no layers of its own, so nothing can be stacked inside it (DeepStack-V).

    Args:
        encoders: the encoders; the first one's grid is the grid.
        taps: what ``final`` means for each of them; default: ``final``. A number as tap of the whole goes to all, where
            a negative one counts from each one's own end, and a fraction is of each one's own depth.
        image_size: (height, width) in pixels of one view, or one number; default: the largest of theirs. Each encoder
            gets the view resized to its own size (bicubic, antialiased).

    Example:
        >>> both = dslight.FusedEncoder([encoder, dslight.HFVisionEncoder("openai/clip-vit-large-patch14-336")])
        >>> both.width, both.grid
        (32, (4, 4))
    """

    stackable = False
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # every encoder normalises for itself

    def __init__(
        self,
        encoders: list[VisionEncoder],
        taps: list[Tap] | None = None,
        image_size: int | tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders: name at least one")
        for index, encoder in enumerate(encoders):
            if encoder.native:
                raise ValueError(
                    f"encoders.{index}: {type(encoder).__name__} takes images of any size, the others of one; use it "
                    f"alone"
                )
        self.taps: list[Tap] = taps if taps is not None else ["final"] * len(encoders)
        if len(self.taps) != len(encoders):
            raise ValueError(f"taps: {len(self.taps)} taps for {len(encoders)} encoders; give one for each")
        for index, (encoder, tap) in enumerate(zip(encoders, self.taps, strict=True)):
            try:
                encoder.resolve_tap(tap)
            except ValueError as error:
                raise ValueError(f"taps.{index}: {error}") from None
        largest = max((encoder.image_size for encoder in encoders), key=lambda size: size[0] * size[1])
        size = image_size or largest
        self.image_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.grid = encoders[0].grid
        self.width = sum(encoder.width for encoder in encoders)
        self.tappable = all(encoder.tappable for encoder in encoders)
        self.encoders = nn.ModuleList(encoders)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """None of its own: the encoders' residual streams are different ones."""
        return ()

    @property
    def shard_units(self) -> list[nn.Module]:
        """Those of all encoders."""
        return [unit for encoder in self._encoders for unit in encoder.shard_units]

    def unused(self, tap: Tap) -> list[nn.Module]:
        """What each encoder does not use at its tap."""
        return [module for encoder, one in self._at(tap) for module in encoder.unused(one)]

    def resolve_tap(self, tap: Tap) -> int:
        """The least layer index that the tap means for an encoder.

        Raises:
            ValueError: where an encoder has no such tap.
        """
        indices = []
        for index, (encoder, one) in enumerate(self._at(tap)):
            try:
                indices.append(encoder.resolve_tap(one))
            except ValueError as error:
                raise ValueError(f"{error} (encoders.{index}, {type(encoder).__name__})") from None
        return min(indices)

    def read(
        self, pixels: Tensor, taps: Sequence[Tap], stacks: Tensor | None, sites: Sequence[int]
    ) -> list[Tensor | None]:
        """Every encoder's features on the first one's grid, side by side."""
        for tap in taps:
            self.resolve_tap(tap)
        parts: list[list[Tensor]] = [[] for _ in taps]
        for index, encoder in enumerate(self._encoders):
            own = [self.taps[index] if tap == "final" else tap for tap in taps]
            for part, features in zip(parts, encoder(_resized(pixels, encoder.image_size), taps=own), strict=True):
                part.append(self._on_grid(features, encoder))
        return [torch.cat([one.to(part[0].dtype) for one in part], dim=-1) for part in parts]

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """Not for this class: see :meth:`read`."""
        raise NotImplementedError("FusedEncoder runs its encoders as wholes, in `read`")

    @property
    def _encoders(self) -> list[VisionEncoder]:
        return list(self.encoders)  # type: ignore[arg-type]  # a ModuleList forgets what it holds

    def _at(self, tap: Tap) -> list[tuple[VisionEncoder, Tap]]:
        """Every encoder, with the tap that the whole's ``tap`` means for it."""
        return list(zip(self._encoders, self.taps if tap == "final" else [tap] * len(self.taps), strict=True))

    def _on_grid(self, features: Tensor, encoder: VisionEncoder) -> Tensor:
        if encoder.grid == self.grid:
            return features
        maps = features.transpose(1, 2).unflatten(2, encoder.grid)
        return F.interpolate(maps, size=self.grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Uint8 views at another size."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return tv.resize(pixels, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)
