"""The paper's names for points on DeepStack's axes, each with the few arguments that it is varied by.

:class:`LowResolution` is LLaVA, the baseline. :class:`DeepStackL` is section 3.2, :class:`DeepStackV` section 3.3,
:class:`DeepStackHD` the any-resolution model of Table 1. :class:`DeepStackTaps` stacks layers of the encoder instead of
crops, as Qwen3-VL does. :class:`SequenceConcat` and :class:`ChannelConcat` are the rivals of Table 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal
from warnings import warn

import torch
from torch import Tensor

from dslight.components.operation import Operation
from dslight.components.schedulers.deepstack import DeepStack
from dslight.components.schedulers.stack import Sites, Stack
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.nn.sampling import ONE_GROUP, SamplerName
from dslight.types import Views, VisualTokens

ARANGED = {"sites": "start", "count": "crops"}
"""Arguments that set the sites of stacks, for messages."""


class LowResolution(DeepStack):
    """No stacking: the base view's tokens fill the sequence, as in LLaVA-1.5. The baseline of every table.

    Args:
        tap: where the encoder is read; several taps are concatenated along the channels.
        position: see :class:`DeepStack`.

    Example:
        >>> dslight.VLM(encoder, dslight.MLPProjector, dslight.LowResolution(tap=-2), lm).stacking.sites
        ()
    """

    def __init__(self, tap: Tap | list[Tap] = "final", position: float = 0.0) -> None:
        super().__init__(tap=tap, position=position)


class DeepStackL(DeepStack):
    """LLM-side DeepStack (Algorithm 1): the base view fills the sequence, stack s is added at the input of layer start
    + s * interval.

    Args:
        crops: S, a stack for each; the most crops of an image.
        start: the first site. 1 in the paper's code: the base tokens pass layer 0 alone.
        interval: layers between two sites.
        sampler: how the crops' mosaic becomes stacks (Table 5).
        source: ``crops``, or ``base`` for the no-information control that repeats the base tokens ("Dummy", Table 6).
        tap: where the encoder is read.
        position: see :class:`DeepStack`.
        sites: the layers one by one; replaces ``crops``, ``start`` and ``interval``.
        operation: see :class:`DeepStack`.
        num_stacks: the old name of ``crops``.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=2, start=1, interval=2), lm)
        >>> model.stacking.sites
        (1, 3)
    """

    def __init__(
        self,
        crops: int = 4,
        start: int = 1,
        interval: int = 1,
        sampler: SamplerName = "2d",
        source: Literal["crops", "base"] = "crops",
        tap: Tap = "final",
        position: float = 0.0,
        sites: Sites | None = None,
        operation: Callable[[int, int], Operation] | None = None,
        num_stacks: int | None = None,
    ) -> None:
        self.arguments = {"view": "source"} if sites else {"view": "source", **ARANGED}
        at = sites or arange_sites(start, interval, _crops(type(self), crops, num_stacks))
        stack = Stack(at, source, sampler if source == "crops" else "identity")
        super().__init__(stacks=[stack], tap=tap, position=position, operation=operation)


class DeepStackV(DeepStack):
    """ViT-side DeepStack: crops pass the first ``start`` encoder layers, then their tokens are stacked onto the base
    view inside the encoder.

    From layer ``start`` on only the base view is encoded, so the vision encoder should train (the paper's section 4.3).

    Args:
        crops: S, a stack for each; the most crops of an image.
        start: N, the number of encoder layers that the crops pass and the first site (0 = right after the patch
            embedding).
        interval: encoder layers between two sites.
        sampler: how the crops' mosaic becomes stacks.
        tap: where the encoder is read in the end.
        num_stacks: the old name of ``crops``.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackV(crops=2, start=1), lm)
        >>> model.stacking.encoder_sites
        (1, 2)
    """

    arguments: Mapping[str, str] | None = ARANGED

    def __init__(
        self,
        crops: int = 4,
        start: int = 20,
        interval: int = 1,
        sampler: SamplerName = "2d",
        tap: Tap = "final",
        num_stacks: int | None = None,
    ) -> None:
        stack = Stack(arange_sites(start, interval, _crops(type(self), crops, num_stacks)), "crops", sampler)
        super().__init__(encoder_stacks=[stack], tap=tap)


class DeepStackHD(DeepStack):
    """DeepStack-L-HD: base view and crops stand in the sequence as LLaVA-NeXT lays them, and each of them is stacked
    with its own n x n fine crops (Table 1, 14,400 tokens in a context of 2,880 and the newlines).

    Args:
        up: n; n * n stacks. The views must be ``HDViews(up=n)``.
        start: the first site.
        interval: layers between two sites.
        sampler: how the fine crops' mosaic becomes stacks.
        tap: where the encoder is read.
        newline: a learned token at the end of each row of the crops' mosaic.
        unpad: see :class:`DeepStack`; the released model squashes, so nothing is padded.

    Example:
        >>> stacking = dslight.DeepStackHD(up=2)
        >>> stacking.sites, stacking.needs
        ((1, 2, 3, 4), ViewNeeds(crops=4, grid=None, fine=2, padded=False, native=False, depth=1))
    """

    arguments: Mapping[str, str] | None = {"sites": "start", "count": "up", "merge": "up"}

    def __init__(
        self,
        up: int = 2,
        start: int = 1,
        interval: int = 1,
        sampler: SamplerName = "2d",
        tap: Tap = "final",
        newline: bool = True,
        unpad: bool = False,
    ) -> None:
        if up < 2:
            raise ValueError(f"up: must be at least 2, got {up}")
        stack = Stack(arange_sites(start, interval, up * up), "fine", sampler, merge=up)
        super().__init__(stacks=[stack], sequence="tiles", tap=tap, newline=newline, unpad=unpad)


class DeepStackTaps(DeepStack):
    """Layers of the encoder as stacks, shallow to deep: no crops, no more tokens (Qwen3-VL; SliMM's "mid-layers").

    Args:
        taps: where the encoder is read for each stack. Qwen3-VL's "after block i" is tap i + 1.
        sites: the layer at whose input each is added; default: 1, 2, 3, ... (Qwen3-VL's "after layer 0, 1, 2").
        tap: where the encoder is read for the base tokens.
        base: ``zero`` lets the stacks write alone (Granite 4 Vision).
        operation: see :class:`DeepStack`.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackTaps(taps=[1, 2]), lm)
        >>> model.stacking.taps(), model.stacking.sites
        (['final', 1, 2], (1, 2))
    """

    arguments: Mapping[str, str] | None = {"tap": "taps"}

    def __init__(
        self,
        taps: list[Tap],
        sites: Sites | None = None,
        tap: Tap = "final",
        base: Literal["fill", "zero"] = "fill",
        operation: Callable[[int, int], Operation] | None = None,
    ) -> None:
        if not taps:
            raise ValueError("taps: empty; name at least one")
        at = sites or [*range(1, len(taps) + 1)]
        if len(at) != len(taps):
            raise ValueError(f"sites: {len(at)} for {len(taps)} taps; name one for each")
        stacks = [Stack([site], "base", "identity", level) for level, site in zip(taps, at, strict=True)]
        super().__init__(stacks=stacks, base=base, tap=tap, operation=operation)


class SequenceConcat(DeepStack):
    """The full-length rival: the crops' tokens stand in the sequence too ("Global+Hi-Res String", Table 7; with
    newlines LLaVA-NeXT).

    Args:
        sampler: the order of the crops' tokens: group by group of this sampler; ``block`` is crop by crop.
        tap: where the encoder is read.
        position: see :class:`DeepStack`.
        base: whether the base view stands in front of them (without it: "Hi-Res String").
        newline: see :class:`DeepStack`.
        unpad: see :class:`DeepStack`.
        fill_to: see :class:`DeepStack`; as ``most`` and ``thumbnail``.
        most: see there.
        thumbnail: see there.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.SequenceConcat(), lm)
        >>> int(model.processor.ask("What is it?", "page.png").visual_mask.sum())  # of base view and 2 x 2 crops
        80
    """

    arguments: Mapping[str, str] | None = {"order": "sampler"}

    def __init__(
        self,
        sampler: SamplerName = "block",
        tap: Tap = "final",
        position: float = 0.0,
        base: bool = True,
        newline: bool = False,
        unpad: bool = False,
        fill_to: int = 0,
        most: int = 0,
        thumbnail: Literal["first", "last"] = "first",
    ) -> None:
        if newline and not base:
            raise ValueError("newline: the mosaic stands behind the base view; set base: true")
        super().__init__(
            sequence="tiles" if base else "crops",
            tap=tap,
            order=sampler,
            newline=newline,
            unpad=unpad,
            fill_to=fill_to,
            position=position,
            most=most,
            thumbnail=thumbnail,
        )


class ChannelConcat(DeepStack):
    """The rival of one wide token: base and crops' groups side by side along the channels, one projector over all
    ("Dimension Concat", Table 7; Equation 7).

    Args:
        num_crops: the number of groups; images with fewer crops have zeros there. A sampler that makes one group only
            makes one.
        sampler: how the crops' mosaic becomes groups.
        tap: where the encoder is read.
        position: see :class:`DeepStack`.

    Example:
        >>> dslight.VLM(encoder, dslight.MLPProjector, dslight.ChannelConcat(num_crops=2), lm).projector.in_widths
        (48,)
    """

    arguments: Mapping[str, str] | None = {"count": "num_crops"}

    def __init__(
        self, num_crops: int = 4, sampler: SamplerName = "2d", tap: Tap = "final", position: float = 0.0
    ) -> None:
        if num_crops < 1:
            raise ValueError(f"num_crops: must be at least 1, got {num_crops}")
        groups = 1 if sampler in ONE_GROUP else num_crops
        super().__init__(stacks=[Stack([0] * groups, "crops", sampler)], tap=tap, position=position)

    @property
    def sites(self) -> tuple[int, ...]:
        """None: everything is in the sequence."""
        return ()

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """All in one token."""
        return [("language_model", 0, "base and crop tokens side by side, in the sequence")]

    def widths(self, encoder: VisionEncoder) -> list[int]:
        """One level, (1 + crops) * C."""
        return [sum(super().widths(encoder))]

    def forward(self, encoder: VisionEncoder, views: Views) -> list[Tensor]:
        """One level ``[I, height, width, (1 + crops) * C]``."""
        return [torch.cat(super().forward(encoder, views), dim=-1)]

    def lay_out(self, tokens: Tensor, views: Views) -> VisualTokens:
        """Every map as it is; a missing crop was zero before the projector."""
        return VisualTokens(self.read(tokens, views))


def _crops(kind: type, crops: int, num_stacks: int | None) -> int:
    """The argument, also under its old name."""
    if num_stacks is None:
        return crops
    warn(f"{kind.__name__}: num_stacks is called crops now", FutureWarning, stacklevel=3)
    return num_stacks


def arange_sites(start: int, interval: int, crops: int) -> Sites:
    """``crops`` layers, every ``interval`` from ``start`` on.

    Raises:
        ValueError: for a number that is too small.
    """
    for name, value, least in (("start", start, 0), ("interval", interval, 1), ("crops", crops, 1)):
        if value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    return [start + interval * index for index in range(crops)]
