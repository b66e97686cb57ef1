"""Gated cross-attention to the tokens that DeepStack-L would stack (Flamingo, arXiv 2204.14198, section 3.1.2).

The rival at equal budget: the same views pass the same encoder and projector and reach the language model at the same
layers, in the same context. But they are a memory beside the sequence, which every position reads for itself, instead
of a sum at the slots. It costs new parameters and their products, which ``dslight plan`` shows under ``stacking``.

Decided here: memory is read through the engine of :class:`DeepStack` as one map per crop, so the projector's axis works
as it does elsewhere (one that makes maps smaller is Flamingo's resampler). Attention knows no order, so only
``position`` tells one crop from another. Blocks start closed: at first the model is the one without them, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from dslight.components.schedulers.deepstack import DeepStack
from dslight.components.schedulers.presets import arange_sites
from dslight.components.schedulers.stack import Sites, Stack
from dslight.components.vision_encoder import Tap, VisionEncoder, at_depth
from dslight.layout import SlotLayout
from dslight.nn.cross_attention import GatedCrossAttention
from dslight.places import moved
from dslight.types import Grid, Memory, Views, VisualTokens

NAMES = {"base": "base tokens", "crops": "crop tokens", "tiles": "base and crop tokens"}


class CrossAttention(DeepStack):
    """Blocks of gated cross-attention in front of layers of the language model.

    Args:
        num_layers: how many blocks.
        start: the layer that the first one stands in front of.
        interval: layers between two of them.
        sites: the layers one by one; replaces ``num_layers``, ``start`` and ``interval``.
        source: what is attended to: the ``crops``, the ``base`` view, or both (``tiles``).
        num_crops: at least the largest number of crops of an image.
        in_context: what stands in the sequence: the ``base`` view's tokens, as with stacks, or one learned ``marker``
            per image, as in Flamingo (then the base view is seen only if ``source`` names it).
        latest: each position attends to the last image before it, as in Flamingo, instead of to all images before it.
        heads: of a block's attention.
        head_dim: width of each.
        ffn: width of a block's feed-forward half, in multiples of D; 0: there is none.
        init: of the gates, before their tanh.
        tap: where the encoder is read.
        position: see :class:`DeepStack`.

    Example:
        >>> attending = dslight.CrossAttention(num_layers=2, heads=2, head_dim=8)
        >>> dslight.VLM(encoder, dslight.MLPProjector, attending, lm).stacking.attends
        (1, 2)
    """

    arguments: Mapping[str, str] | None = {"count": "num_crops", "view": "source"}

    def __init__(
        self,
        num_layers: int = 4,
        start: int = 1,
        interval: int = 1,
        sites: Sites | None = None,
        source: Literal["crops", "base", "tiles"] = "crops",
        num_crops: int = 4,
        in_context: Literal["base", "marker"] = "base",
        latest: bool = False,
        heads: int = 8,
        head_dim: int = 64,
        ffn: int = 4,
        init: float = 0.0,
        tap: Tap = "final",
        position: float = 0.0,
    ) -> None:
        for name, value, least in (
            ("num_layers", num_layers, 1),
            ("num_crops", num_crops, 1),
            ("heads", heads, 1),
            ("head_dim", head_dim, 1),
            ("ffn", ffn, 0),
        ):
            if value < least:
                raise ValueError(f"{name}: must be at least {least}, got {value}")
        base, crops = Stack([0], "base", "identity"), Stack([0] * num_crops, "crops", "block")
        super().__init__(
            stacks={"base": [base], "crops": [crops], "tiles": [base, crops]}[source],
            base="fill" if in_context == "base" else "zero",
            tap=tap,
            position=position,
        )
        self._at = sites or arange_sites(start, interval, num_layers)
        self._settle_blocks(0)
        self.blamed = "sites" if sites else "start"
        if min(self._at) < 0:
            raise ValueError(f"sites: layers count from 0, got {min(self._at)}")
        self.source, self.num_crops = source, num_crops
        self.latest, self.init = latest, init
        self.heads, self.head_dim, self.ffn = heads, head_dim, ffn
        self.marker: nn.Parameter | None = None

    # --- what it is

    @property
    def sites(self) -> tuple[int, ...]:
        """None: nothing is added to the slots."""
        return ()

    @property
    def starts_closed(self) -> bool:
        """Unless the gates have another init."""
        return self.init == 0

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """What stands in the sequence, and where blocks stand."""
        first = "base tokens, in the sequence" if self.base == "fill" else "a marker per image, in the sequence"
        what = f"gated cross-attention to {NAMES[self.source]}"
        return [("language_model", 0, first), *(("language_model", layer, what) for layer in self.attends)]

    def beside(self, grid: Grid) -> int:
        """See :meth:`StackingScheduler.beside`."""
        return int(self.source != "crops") + (grid[0] * grid[1] if self.source != "base" else 0)

    def layout(self, tokens: Grid, native: bool = False) -> SlotLayout:
        """See :meth:`StackingScheduler.layout`; a marker takes one position."""
        return super().layout(tokens if self.base == "fill" else (1, 1), native)

    # --- what it does

    def connect(self, width: int) -> None:
        """The blocks, and the marker, which starts as embeddings do."""
        self.blocks = nn.ModuleList(
            GatedCrossAttention(width, self.heads, self.head_dim, self.ffn, self.init) for _ in self.attends
        )
        if self.base == "zero":
            self.marker = nn.Parameter(torch.randn(width) * 0.02)

    def lay_out(self, tokens: Tensor, views: Views) -> VisualTokens:
        """See :meth:`StackingScheduler.lay_out`; all levels but the sequence's go into the memory."""
        grid = (tokens.shape[2], tokens.shape[3])
        if self.marker is None:
            slots, maps = tokens[:1].flatten(1, 3), tokens[1:]
        else:
            slots, maps = self.marker.to(tokens.dtype).expand(1, len(views), -1), tokens
        maps = maps.transpose(0, 1).flatten(2, 3)  # [I, levels, h * w, D]
        zero = self._unfilled(views)
        counts = [maps.shape[1]] * len(views)
        if zero is not None:
            images = [*zip(*zero[-maps.shape[1] :], strict=True)]
            counts = [image.count(False) for image in images]
            kept = [i for i, empty in enumerate(chain.from_iterable(images)) if not empty]
            maps = maps.flatten(0, 1)[moved(torch.tensor(kept, dtype=torch.int64), maps.device)]
        layout = self.layout(grid)
        memory = Memory(
            tokens=maps.flatten(0, -2),
            counts=tuple(count * grid[0] * grid[1] for count in counts),
            slots=tuple(layout(each) for each in views.grids),
            blocks=list(self.blocks),
            sites=self.attends,
            latest=self.latest,
        )
        return VisualTokens(slots, memory=memory)

    # --- what cannot be

    def _settle_blocks(self, depth: int) -> None:
        """The layers that blocks stand in front of, in a language model of ``depth``."""
        try:
            self.attends = tuple(at_depth(site, depth) for site in self._at)
        except ValueError as error:
            raise ValueError(f"sites: {error}") from None

    def check(self, encoder: VisionEncoder, language_model_depth: int) -> None:
        """See :meth:`StackingScheduler.check`."""
        if encoder.native:
            raise ValueError(
                f"source: CrossAttention attends to maps of one size, and {type(encoder).__name__} takes each image at "
                f"its own; choose DeepStackL"
            )
        super().check(encoder, language_model_depth)
        self._settle_blocks(language_model_depth)
        needed = max(self.attends) + 1
        if needed > language_model_depth:
            layers = ", ".join(map(str, self.attends))
            raise ValueError(
                f"{self.blamed}: {len(self.attends)} blocks in front of layers {layers} need {needed} layers; the "
                f"language model has {language_model_depth}"
            )
