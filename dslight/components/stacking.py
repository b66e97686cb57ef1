"""Stacking schedulers: which visual tokens enter the language model where. The subject of the paper.

A scheduler asks the vision encoder for features and arranges them into slots ``[S+1, N, C]``: slot 0 fills the
sequence, slot s is added at ``sites[s-1]``. Contract, tested: row t of every slot belongs to the same image, and with
``2d`` sampling shows the same place in it.

Four schedulers, one choice of the paper each: :class:`LowResolution` (LLaVA, the baseline), :class:`DeepStackL`
(section 3.2), :class:`DeepStackV` (section 3.3) and :class:`SequenceConcat` (all tokens in the context: "Global+Hi-Res
String" of Table 7).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dslight.components.component import Component
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.nn.sampling import SamplerName, mosaic, sample
from dslight.types import Grid, SlotLayout, Views


class StackingScheduler(Component, ABC):
    """Arranges visual features into slots.

    Args:
        tap: where the encoder is read (see :data:`~dslight.components.vision_encoder.Tap`).
        position: amplitude of a 2-D sine-cosine code that is added to the features, on the base view's grid and on the
            mosaic's. 0 (the paper): the encoder's own positions are all there is, and these start anew in every crop.
    """

    kind: ClassVar[str] = "stacking"

    def __init__(self, tap: Tap = "final", position: float = 0.0) -> None:
        super().__init__()
        self.tap: Tap = tap
        self.position = position

    @property
    def sites(self) -> tuple[int, ...]:
        """The S layers of the language model at whose inputs slots 1..S are added."""
        return ()

    @property
    def num_stacks(self) -> int:
        """S, wherever the stacks are added."""
        return len(self.sites)

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """Which group enters which layer, for people: (part, layer, group)."""
        base = ("language_model", 0, "base tokens, in the sequence")
        return [base, *(("language_model", site, f"+ stack {i}") for i, site in enumerate(self.sites, 1))]

    @property
    def uses_crops(self) -> bool:
        """Whether the high-resolution crops are looked at."""
        return False

    @abstractmethod
    def forward(self, encoder: VisionEncoder, views: Views) -> Tensor:
        """From views to slots ``[S+1, N, C]``, the N slots image by image, in each image row by row."""

    def missing(self, encoder: VisionEncoder, grids: Sequence[Grid]) -> Tensor | None:
        """Which slots no crop fills, bool ``[S+1, N]`` on the CPU; ``None``: all are filled.

        They are zero behind the projector too, as in the paper's code: its biases would make a constant out of a zero.
        """
        return None

    def slot_layout(self, encoder: VisionEncoder) -> SlotLayout:
        """How many positions of the sequence an image takes."""
        return SlotLayout(base=encoder.grid)

    def encoded_layers(self, encoder: VisionEncoder) -> dict[str, int]:
        """How many encoder layers a base view and a crop go through (for the cost of a forward pass)."""
        depth = encoder.resolve_tap(self.tap)
        return {"base": depth, "crop": depth if self.uses_crops else 0}

    def check(self, encoder: VisionEncoder, language_model_depth: int) -> None:
        """Refuse what cannot work with these parts.

        Raises:
            ValueError: starting with the argument to change.
        """
        try:
            encoder.resolve_tap(self.tap)
        except ValueError as error:
            raise ValueError(f"tap: {error}") from None
        if self.position and encoder.width % 4:
            raise ValueError(
                f"position: the 2-D sine-cosine code needs a width divisible by 4; the encoder's is {encoder.width}"
            )
        if self.sites and max(self.sites) >= language_model_depth:
            raise ValueError(
                f"start: {len(self.sites)} stacks at layers {_listed(self.sites)} need {max(self.sites) + 1} layers; "
                f"the language model has {language_model_depth}"
            )

    def check_grids(self, grids: Sequence[Grid]) -> None:
        """Refuse crop grids (all that the data may produce) that this scheduler cannot place.

        Raises:
            ValueError: starting with the argument to change.
        """
        if self.uses_crops and all(grid == (0, 0) for grid in grids):
            raise ValueError(
                f"{type(self).__name__} looks at high-resolution crops, but the views have none: "
                f"choose views with a grid"
            )

    # --- shared by the schedulers

    def _placed(self, tokens: Tensor) -> Tensor:
        """Add the position code of its own grid to a token map ``[..., height, width, C]``."""
        if not self.position:
            return tokens
        from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

        height, width, channels = tokens.shape[-3:]
        code = build_sincos2d_pos_embed([height, width], channels, device=tokens.device)
        return tokens + self.position * code.view(height, width, channels).to(tokens.dtype)

    def _base(self, encoder: VisionEncoder, features: Tensor) -> Tensor:
        """Base features ``[I, P, C]`` with their positions."""
        return self._placed(features.unflatten(1, encoder.grid)).flatten(1, 2)

    def _groups(
        self, encoder: VisionEncoder, crops: Tensor, grids: Sequence[Grid], count: int, sampler: SamplerName
    ) -> Tensor:
        """Sample the crops' features into stacks.

        Args:
            encoder: for its grid.
            crops: ``[K, P, C]``, all crops of all images.
            grids: per image.
            count: S. Images with fewer crops leave the last stacks zero, as the paper's code does.
            sampler: how.

        Returns:
            ``[S, I, P, C]``.
        """
        groups = crops.new_zeros(count, len(grids), crops.shape[1], crops.shape[2])
        tokens = crops.unflatten(1, encoder.grid)
        sizes = [rows * cols for rows, cols in grids]
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        for grid in {g for g in grids if g != (0, 0)}:
            size = grid[0] * grid[1]
            images = [i for i, g in enumerate(grids) if g == grid]
            if len(images) == len(grids):  # the usual case costs no copy
                return _pad(sample(self._placed(mosaic(tokens.unflatten(0, (-1, size)), grid)), grid, sampler), count)
            chosen = torch.stack([tokens[offsets[i] : offsets[i] + size] for i in images])
            where = torch.tensor(images, device=crops.device)
            sampled = sample(self._placed(mosaic(chosen, grid)), grid, sampler)
            groups = groups.index_copy(1, where, _pad(sampled, count))
        return groups


def _pad(groups: Tensor, count: int) -> Tensor:
    """Zero stacks behind ``groups`` ``[s, ...]`` up to ``count``."""
    missing = count - len(groups)
    return groups if missing == 0 else torch.cat([groups, groups.new_zeros(missing, *groups.shape[1:])])


def _listed(sites: Sequence[int]) -> str:
    return ", ".join(str(site) for site in sites)


def _arange_sites(start: int, interval: int, num_stacks: int) -> tuple[int, ...]:
    for name, value, least in (("start", start, 0), ("interval", interval, 1), ("num_stacks", num_stacks, 1)):
        if value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    return tuple(start + interval * index for index in range(num_stacks))


class LowResolution(StackingScheduler):
    """No stacking: the base view's tokens fill the sequence, as in LLaVA-1.5. The baseline of every table."""

    def forward(self, encoder: VisionEncoder, views: Views) -> Tensor:
        """Slots ``[1, N, C]``."""
        (features,) = encoder(views.base(), taps=[self.tap])
        return self._base(encoder, features).flatten(0, 1)[None]


class DeepStackL(StackingScheduler):
    """LLM-side DeepStack (Algorithm 1): the base view fills the sequence, stack s is added at the input of layer start
    + s * interval.

    Args:
        num_stacks: S; at least the largest number of crops of an image.
        start: the first site. 1 in the paper's code: the base tokens pass layer 0 alone.
        interval: layers between two sites.
        sampler: how the crops' mosaic becomes stacks (Table 5).
        source: ``crops``, or ``base`` for the no-information control that repeats the base tokens ("Dummy", Table 6).
        tap: where the encoder is read.
        position: see :class:`StackingScheduler`.
    """

    def __init__(
        self,
        num_stacks: int = 4,
        start: int = 1,
        interval: int = 1,
        sampler: SamplerName = "2d",
        source: Literal["crops", "base"] = "crops",
        tap: Tap = "final",
        position: float = 0.0,
    ) -> None:
        super().__init__(tap, position)
        self._sites = _arange_sites(start, interval, num_stacks)
        self.sampler: SamplerName = sampler
        self.source = source

    @property
    def sites(self) -> tuple[int, ...]:
        """Start, start + interval, ..."""
        return self._sites

    @property
    def uses_crops(self) -> bool:
        """Unless the base tokens are repeated."""
        return self.source == "crops"

    def forward(self, encoder: VisionEncoder, views: Views) -> Tensor:
        """Slots ``[S+1, N, C]``."""
        if not self.uses_crops:
            (features,) = encoder(views.base(), taps=[self.tap])
            base = self._base(encoder, features).flatten(0, 1)
            return base.expand(len(self.sites) + 1, *base.shape)
        (features,) = encoder(torch.cat([views.base(), views.crops()]), taps=[self.tap])  # one pass for all views
        base = self._base(encoder, features[: len(views)])
        stacks = self._groups(encoder, features[len(views) :], views.grids, len(self.sites), self.sampler)
        return torch.cat([base[None], stacks]).flatten(1, 2)

    def missing(self, encoder: VisionEncoder, grids: Sequence[Grid]) -> Tensor | None:
        """The last stacks of the images that have fewer than S crops."""
        sizes = [rows * cols for rows, cols in grids]
        if not self.uses_crops or min(sizes) >= len(self.sites):
            return None
        lacking = [[stack > size for size in sizes] for stack in range(len(self.sites) + 1)]  # slot 0 never lacks
        return torch.tensor(lacking).repeat_interleave(encoder.grid[0] * encoder.grid[1], dim=1)

    def check_grids(self, grids: Sequence[Grid]) -> None:
        """As for every scheduler; and each crop needs a stack."""
        super().check_grids(grids)
        _check_num_stacks(len(self.sites), grids if self.uses_crops else [])


def _check_num_stacks(num_stacks: int, grids: Sequence[Grid]) -> None:
    most = max((rows * cols for rows, cols in grids), default=0)
    if most > num_stacks:
        raise ValueError(f"num_stacks: {num_stacks} stacks cannot take the {most} crops that the views may cut")


class DeepStackV(StackingScheduler):
    """ViT-side DeepStack: crops pass the first ``start`` encoder layers, then their tokens are stacked onto the base
    view inside the encoder.

    From layer ``start`` on only the base view is encoded, so the vision encoder should train (the paper's section 4.3).

    Args:
        num_stacks: S; at least the largest number of crops of an image.
        start: N, the number of encoder layers that the crops pass and the first site (0 = right after the patch
            embedding).
        interval: encoder layers between two sites.
        sampler: how the crops' mosaic becomes stacks.
        tap: where the encoder is read in the end.
    """

    def __init__(
        self, num_stacks: int = 4, start: int = 20, interval: int = 1, sampler: SamplerName = "2d", tap: Tap = "final"
    ) -> None:
        super().__init__(tap)
        self.encoder_sites = _arange_sites(start, interval, num_stacks)
        self.sampler: SamplerName = sampler

    @property
    def num_stacks(self) -> int:
        """S; the language model gets none of them."""
        return len(self.encoder_sites)

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """The stacks enter the vision encoder."""
        stacks = [("vision_encoder", site, f"+ stack {i}") for i, site in enumerate(self.encoder_sites, 1)]
        return [*stacks, *super().placements]

    @property
    def uses_crops(self) -> bool:
        """Always."""
        return True

    def forward(self, encoder: VisionEncoder, views: Views) -> Tensor:
        """Slots ``[1, N, C]``."""
        (early,) = encoder(views.crops(), taps=[self.encoder_sites[0]])
        stacks = self._groups(encoder, early, views.grids, len(self.encoder_sites), self.sampler)
        (features,) = encoder(views.base(), taps=[self.tap], stacks=stacks, sites=self.encoder_sites)
        return features.flatten(0, 1)[None]

    def encoded_layers(self, encoder: VisionEncoder) -> dict[str, int]:
        """Crops stop where stacking begins; the first layer always runs (the embedding is read at its input)."""
        return {"base": encoder.resolve_tap(self.tap), "crop": max(self.encoder_sites[0], 1)}

    def check(self, encoder: VisionEncoder, language_model_depth: int) -> None:
        """As for every scheduler; and the encoder needs a layer for every site."""
        super().check(encoder, language_model_depth)
        last, reached = max(self.encoder_sites), encoder.resolve_tap(self.tap)
        if last >= encoder.depth:
            raise ValueError(
                f"start: {len(self.encoder_sites)} stacks at layers {_listed(self.encoder_sites)} need {last + 1} "
                f"layers; the vision encoder has {encoder.depth}"
            )
        if last > reached:
            raise ValueError(
                f"tap: features are read at layer {reached}, before the last stack is added at layer {last}"
            )

    def check_grids(self, grids: Sequence[Grid]) -> None:
        """As for every scheduler; and each crop needs a stack."""
        super().check_grids(grids)
        _check_num_stacks(len(self.encoder_sites), grids)


class SequenceConcat(StackingScheduler):
    """The full-length rival: the base tokens and then all the crops' tokens stand in the sequence ("Global+Hi-Res
    String", Table 7).

    Args:
        sampler: the order of the crops' tokens: group by group of this sampler; ``block`` is crop by crop.
        tap: where the encoder is read.
        position: see :class:`StackingScheduler`.
    """

    def __init__(self, sampler: SamplerName = "block", tap: Tap = "final", position: float = 0.0) -> None:
        super().__init__(tap, position)
        self.sampler: SamplerName = sampler

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """All tokens are in the sequence."""
        return [("language_model", 0, "base and crop tokens, in the sequence")]

    @property
    def uses_crops(self) -> bool:
        """Always."""
        return True

    def slot_layout(self, encoder: VisionEncoder) -> SlotLayout:
        """Base and crops all take room in the context."""
        return SlotLayout(base=encoder.grid, crop=encoder.grid)

    def forward(self, encoder: VisionEncoder, views: Views) -> Tensor:
        """Slots ``[1, N, C]``."""
        (features,) = encoder(torch.cat([views.base(), views.crops()]), taps=[self.tap])
        base = self._base(encoder, features[: len(views)])
        count = max(rows * cols for rows, cols in views.grids)
        groups = self._groups(encoder, features[len(views) :], views.grids, count, self.sampler)
        images = [
            torch.cat([base[i], groups[: rows * cols, i].flatten(0, 1)]) for i, (rows, cols) in enumerate(views.grids)
        ]
        return torch.cat(images)[None]
