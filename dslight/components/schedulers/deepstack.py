"""DeepStack: the engine. Every way in which the field stacks visual tokens is a point on its axes.

    source (view x tap) x sampler x target (language model | vision encoder) x sites x base policy x operation

What it does in one forward pass: the views whose tokens stand in the sequence, and the views that stacks are made of,
pass the vision encoder and are read at their taps (twice only where stacks enter the encoder itself, because these come
from an earlier layer). Samplers make groups of the length of the base map. Behind the projector, groups that no crop
fills are zeroed and the maps are read into the sequence.

Decided here: stacks that an image has too few crops for are zero *behind* the projector, whose biases would make a
constant out of a zero; two groups at one site sum; sites count layers from 0 and mean their inputs, before the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.operation import Operation
from dslight.components.schedulers.checks import check_arguments, check_parts, check_views
from dslight.components.schedulers.groups import make_groups, placed, unfilled
from dslight.components.schedulers.stack import InSequence, Stack, tap_of
from dslight.components.stacking import CROPS, EncoderPass, StackingScheduler
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.layout import NEWLINE, SlotLayout
from dslight.nn.sampling import ONE_GROUP, SamplerName, sample_pieces
from dslight.places import moved
from dslight.types import Grid, ViewNeeds, Views, VisualTokens


class DeepStack(StackingScheduler):
    """Stacks of any source into the language model, the vision encoder, or both.

    Args:
        stacks: into the language model.
        encoder_stacks: into the vision encoder; their views leave it at their tap and only the views of the sequence
            go on.
        sequence: whose tokens stand in the sequence: the ``base`` view's, the ``crops``', or both (``tiles``).
        base: ``fill`` the slots with the tokens of these views, or leave them ``zero`` for the stacks alone to write on
            (Granite 4 Vision; the paper's Figure 3a).
        tap: where the encoder is read for the sequence; several taps are concatenated along the channels.
        order: how the crops' tokens stand in the sequence: ``block`` is crop by crop, ``2d`` and ``1d`` are group by
            group of that sampler.
        newline: the crops stand as one mosaic with a learned newline token at the end of each row (LLaVA-NeXT).
        newline_in_stacks: each stack adds the newline token at the newline slots again (DeepStack-L-HD's code).
        unpad: leave out rows or columns of the mosaic that only show padding (LLaVA-NeXT).
        fill_to: maps of zeros behind the crops of images that have fewer (the released code's strings).
        most: shrink a mosaic of clearly more tokens than that many maps have to about as many, bilinearly and behind
            the projector (LLaVA-OneVision's ``anyres_max_9``); 0: none.
        thumbnail: whether the base view's tokens stand before the crops' (``first``) or behind them (``last``:
            InternVL, Idefics 3).
        operation: what a stack does to the residual stream, called with (D, S); default: it is added.
        position: amplitude of a 2-D sine-cosine code that is added to the features, on the base view's grid and on the
            mosaic's. 0 (the paper): the encoder's own positions are all there is, and these start anew in every crop.

    Example:
        >>> stacks = [dslight.Stack([1, 2]), dslight.Stack([3], view="base", sampler="identity", tap=1)]
        >>> dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStack(stacks), lm).stacking.sites
        (1, 2, 3)
    """

    arguments: Mapping[str, str] | None = None
    """For messages, of a subclass that takes no ``stacks``: attribute of its stacks -> argument that sets it, where the
    names differ; ``count`` is the number of sites.
    """

    def __init__(
        self,
        stacks: list[Stack] | None = None,
        encoder_stacks: list[Stack] | None = None,
        sequence: InSequence = "base",
        base: Literal["fill", "zero"] = "fill",
        tap: Tap | list[Tap] = "final",
        order: SamplerName = "block",
        newline: bool = False,
        newline_in_stacks: bool = True,
        unpad: bool = False,
        fill_to: int = 0,
        operation: Callable[[int, int], Operation] | None = None,
        position: float = 0.0,
        most: int = 0,
        thumbnail: Literal["first", "last"] = "first",
    ) -> None:
        super().__init__()
        self.stacks, self.encoder_stacks = list(stacks or []), list(encoder_stacks or [])
        self.sequence: InSequence = sequence
        self.base = base
        taps: list[Tap] = tap if isinstance(tap, list) else [tap]
        self.base_taps: list[Tap] = [counted(one) for one in taps]
        self.order: SamplerName = order
        self.has_newline, self.newline_in_stacks, self.unpad, self.fill_to = newline, newline_in_stacks, unpad, fill_to
        self.make_operation = operation
        self.position = position
        self.most = most
        self.thumbnail: Literal["first", "last"] = thumbnail
        check_arguments(self)
        self._asked = [replace(s, tap=self.base_taps[0] if s.tap is None else counted(s.tap)) for s in self.stacks]
        self._asked_inside = [s if s.tap is None else replace(s, tap=counted(s.tap)) for s in self.encoder_stacks]
        self._layers: dict[Tap, int] = {}  # of taps that are fractions, for people
        self._settle(0, 0)

    # --- what it is

    @property
    def sites(self) -> tuple[int, ...]:
        """Of all stacks into the language model, in their order."""
        return tuple(site for stack in self.stacks for site in stack.at)

    @property
    def encoder_sites(self) -> tuple[int, ...]:
        """Of all stacks into the vision encoder, in their order."""
        return tuple(site for stack in self.encoder_stacks for site in stack.at)

    @property
    def num_stacks(self) -> int:
        """S, of both sides."""
        return len(self.sites) + len(self.encoder_sites)

    @property
    def placements(self) -> list[tuple[str, int, str]]:
        """Which group enters which layer, the encoder first, layer by layer."""
        what = {"base": "base tokens", "crops": "crop tokens", "tiles": "base and crop tokens"}[self.sequence]
        base = f"{what}, in the sequence" if self.base == "fill" else "zeros, in the sequence"
        taps = " and ".join(f"{tap}{self._layer(tap)}" for tap in self.base_taps)
        placed = [("language_model", 0, base + (f" (tap {taps})" if self.base == "fill" else ""))]
        number = 0
        for part, stacks in (("vision_encoder", self.encoder_stacks), ("language_model", self.stacks)):
            for stack in stacks:
                for site in stack.at:
                    number += 1
                    placed.append((part, site, f"+ stack {number} ({stack}{self._layer(tap_of(stack))})"))
        return sorted(placed, key=lambda one: (one[0] == "language_model", one[1]))

    @property
    def fine(self) -> int:
        """The n that the samplers of fine crops ask for."""
        return max((stack.up for _, stack in self.all_stacks() if stack.view == "fine"), default=0)

    @property
    def smallest_grid(self) -> Grid:
        """One crop, or as many as ``patch_merge`` needs."""
        needed = [max(s.up, 1) for _, s in self.all_stacks() if s.view == "crops"]
        side = max([*needed, int(self.sequence != "base")], default=0)
        return (side, side)

    @property
    def needs(self) -> ViewNeeds:
        """As many crops as there are stacks for them."""
        crops = [stack for _, stack in self.all_stacks() if stack.view == "crops"]
        counts = [len(stack.sites) for stack in crops if stack.sampler not in ONE_GROUP]
        merged = [(stack.merge, stack.merge) for stack in crops if stack.sampler == "patch_merge"]
        most = min(counts, default=self.fill_to or CROPS) if self.uses_crops else 0
        return ViewNeeds(most, merged[0] if merged else None, self.fine, self.unpad)

    def taps(self) -> list[Tap]:
        """Of the sequence and of the stacks."""
        own = self.base_taps if self.base == "fill" or not self.stacks else []
        return _distinct([*own, *(tap_of(s) for _, s in self.all_stacks())])

    def widths(self, encoder: VisionEncoder) -> list[int]:
        """C; times the number of taps for the base, times ``merge**2`` behind a ``patch_merge``."""
        base = [encoder.width * len(self.base_taps)] if self.base == "fill" else []
        return base + [
            encoder.width * (s.merge**2 if s.sampler == "patch_merge" else 1) for s in self.stacks for _ in s.sites
        ]

    def map_grid(self, encoder: VisionEncoder) -> Grid:
        """The encoder's grid; where only stacks write, that of their groups."""
        grids = [encoder.grid] if self.base == "fill" else []
        grids += [_group_grid(s, encoder.grid) for s in self.stacks]
        return grids[0]

    def layout(self, tokens: Grid, native: bool = False) -> SlotLayout:
        """See :meth:`StackingScheduler.layout`."""
        return SlotLayout(
            tokens=tokens,
            native=native,
            base=self.sequence != "crops",
            crops=self.sequence != "base",
            newline=self.has_newline,
            unpad=self.unpad,
            fill_to=self.fill_to,
            most=self.most,
            thumbnail=self.thumbnail,
        )

    def passes(self, grid: Grid) -> list[EncoderPass]:
        """One, or two where the views of the stacks leave the encoder elsewhere than those of the sequence."""
        count = {"base": 1, "crops": grid[0] * grid[1], "tiles": 1 + grid[0] * grid[1]}
        count["fine"] = count[self.sequence] * self.fine**2
        return [
            EncoderPass(sum(count[view] for view in views), tuple(taps))
            for views, taps in self._passes()
            if any(count[view] for view in views)
        ]

    # --- what it does

    def connect(self, width: int) -> None:
        """The newline token starts at zero, as in the released code."""
        if self.has_newline:
            self.newline = nn.Parameter(torch.zeros(width))
        if self.make_operation is not None:
            self.operation = self.make_operation(width, len(self.sites))

    def forward(self, encoder: VisionEncoder, views: Views) -> list[Tensor]:
        """See :meth:`StackingScheduler.forward`."""
        index = {"base": views.base_index, "crops": views.crop_index, "tiles": views.tile_index}
        sequence = index[self.sequence]
        if self.fine:
            index["fine"] = views.fine_index
        seen: dict[tuple[str, Tap], Tensor] = {}
        for names, taps in self._passes():
            entering = names[0] == self.sequence and bool(self.encoder_stacks)
            stacks = self._encoder_groups(seen, encoder, views) if entering else None
            features = encoder(
                views.pixels.index_select(0, torch.cat([index[name] for name in names])),
                taps=taps,
                stacks=stacks,
                sites=self.encoder_sites if entering else (),
                **pieces_of(encoder, views, names),
            )
            sizes = [len(index[name]) for name in names]
            for tap, feature in zip(taps, features, strict=True):
                for name, part in zip(names, feature.unflatten(1, encoder.grid).split(sizes), strict=True):
                    seen[name, tap] = part
        levels = [self._sequence(seen, self.base_taps, views)] if self.base == "fill" else []
        for stack in self.stacks:
            groups = self._groups(stack, seen, views, len(sequence))
            levels += groups.expand(len(stack.sites), *groups.shape[1:]).unbind(0)
        return levels

    def lay_out(self, tokens: Tensor, views: Views) -> VisualTokens:
        """See :meth:`StackingScheduler.lay_out`."""
        zero = self._unfilled(views)
        if zero is not None:
            tokens = tokens.masked_fill(moved(torch.tensor(zero), tokens.device)[:, :, None, None, None], 0)
        if self.base == "zero":
            tokens = torch.cat([torch.zeros_like(tokens[:1]), tokens])
        return VisualTokens(self.read(tokens, views), self.sites, self.operation)

    def read(self, tokens: Tensor, views: Views) -> Tensor:
        """Maps ``[levels, M, height, width, D]`` as they are read into the sequence: ``[levels, N, D]``."""
        layout = self.layout((tokens.shape[2], tokens.shape[3]), bool(views.pieces))
        slots, laid = tokens.flatten(1, 3), self.has_newline or self.unpad or self.fill_to
        if laid or self.thumbnail == "last" or (views.pieces and layout.tokens != (1, 1)):
            shrunk = self._shrunk(layout, slots, views)
            order = moved(self._order(layout, views), slots.device)
            slots = torch.cat([slots, self._extra(slots), *shrunk], dim=1)[:, order]
        return slots

    # --- steps of the two

    def all_stacks(self) -> Iterator[tuple[str, Stack]]:
        """Every stack, and what messages call it."""
        for name, stacks in (("stacks", self.stacks), ("encoder_stacks", self.encoder_stacks)):
            for i, stack in enumerate(stacks):
                yield f"{name}.{i}", stack

    def _passes(self) -> Sequence[tuple[Sequence[str], Sequence[Tap]]]:
        """Which views pass the encoder together, and where they are read. The views of the sequence go last."""
        base: list[Tap] = self.base_taps if self.base == "fill" else []
        inner: list[Tap] = [tap_of(s) for s in self.stacks if s.view == "base"]
        own = _distinct(base + inner)
        others = [s for _, s in self.all_stacks() if s.view != "base"]
        views: list[str] = list(dict.fromkeys(s.view for s in others))
        taps = _distinct([tap_of(s) for s in others])
        sequence: list[str] = [self.sequence]
        if not views:
            return [(sequence, own)]
        if not self.encoder_stacks and (own == taps or not own):
            return [(sequence + views if own else views, taps)]
        return [(views, taps), (sequence, own or taps[:1])]

    def _sequence(self, seen: dict[tuple[str, Tap], Tensor], taps: Sequence[Tap], views: Views) -> Tensor:
        """The maps of the sequence's views in their order, ``[M, height, width, C]``, with their positions."""
        maps = torch.cat([seen[self.sequence, tap] for tap in taps], dim=-1)
        if self.sequence == "base":
            return placed(maps, self.position)
        if self.order == "block" and not self.position:
            return maps
        counts = [rows * cols for rows, cols in views.grids]
        first = int(self.sequence == "tiles")
        images = maps.split([first + count for count in counts])
        crops = torch.cat([image[first:] for image in images])
        groups = make_groups(crops, views.grids, max(counts), self.order, self.position)
        return torch.cat(
            [
                torch.cat([placed(image[:first], self.position), groups[:count, i]])
                for i, (image, count) in enumerate(zip(images, counts, strict=True))
            ]
        )

    def _groups(self, stack: Stack, seen: dict[tuple[str, Tap], Tensor], views: Views, maps: int) -> Tensor:
        """The groups of one source, ``[len(sites) or 1, M, height, width, C]``."""
        if stack.view == "base":
            tokens = self._sequence(seen, [tap_of(stack)], views)
            if stack.sampler == "identity":
                return tokens[None]
            return make_groups(tokens, [(1, 1)] * maps, len(stack.sites), stack.sampler, 0.0, stack.merge)
        grids = views.grids if stack.view == "crops" else [(self.fine, self.fine)] * maps
        count = 1 if stack.sampler in ONE_GROUP else len(stack.sites)
        if views.pieces:
            return sample_pieces(seen[stack.view, tap_of(stack)], views.base_pieces, grids, count, stack.sampler)
        return make_groups(seen[stack.view, tap_of(stack)], grids, count, stack.sampler, self.position)

    def _encoder_groups(self, seen: dict[tuple[str, Tap], Tensor], encoder: VisionEncoder, views: Views) -> Tensor:
        """The stacks into the encoder, ``[S, M, P, C]``."""
        maps = len(views.tile_index if self.sequence == "tiles" else views.base_index)
        made = [(stack, self._groups(stack, seen, views, maps)) for stack in self.encoder_stacks]
        return torch.cat([groups.expand(len(s.sites), *groups.shape[1:]) for s, groups in made]).flatten(2, 3)

    def _unfilled(self, views: Views) -> list[list[bool]] | None:
        """Which maps of which level no crop fills, ``[levels][M]``; ``None``: all are filled."""
        if not any(stack.view == "crops" for stack in self.stacks):
            return None
        none = [False] * len(views.base_index)
        levels = [none] if self.base == "fill" else []
        for s in self.stacks:
            count = len(s.sites)
            levels += unfilled(views, count, s.sampler) if s.view == "crops" else [none] * count
        return levels if any(map(any, levels)) else None

    def _extra(self, slots: Tensor) -> Tensor:
        """The newline token and the token of zeros, behind all others: ``[S+1, 2, D]``."""
        extra = torch.zeros_like(slots[:, :1]).expand(-1, 2, -1)
        if self.newline is None:
            return extra
        laid = [level == 0 if self.base == "fill" else False for level in range(len(slots))]
        laid = [here or (self.newline_in_stacks and level > 0) for level, here in enumerate(laid)]
        newline = moved(torch.tensor(laid), slots.device).to(slots.dtype)[:, None] * self.newline.to(slots.dtype)
        return torch.stack([newline, extra[:, 0]], dim=1)

    def _shrunk(self, layout: SlotLayout, slots: Tensor, views: Views) -> Iterator[Tensor]:
        """The mosaics of images whose mosaic is shrunk, ``[S+1, n, D]`` each."""
        area, whole, start = layout.tokens[0] * layout.tokens[1], replace(layout, base=False, most=0), 0
        for grid, size in zip(views.grids, views.sizes or [None] * len(views), strict=True):
            first, start = start + layout.base * area, start + layout.maps(grid) * area
            if less := layout.shrunk(grid, size):
                order = torch.tensor([first + one for one in whole.order(grid, size) if one != NEWLINE])
                mosaic = slots[:, moved(order, slots.device)].unflatten(1, layout.mosaic(grid, size))
                small = F.interpolate(mosaic.permute(0, 3, 1, 2), less, mode="bilinear")
                yield small.permute(0, 2, 3, 1).flatten(1, 2)

    def _order(self, layout: SlotLayout, views: Views) -> Tensor:
        """Which token fills each slot of the batch: an index into all maps' tokens, with two more behind them, and then
        those of shrunk mosaics.
        """
        area = layout.tokens[0] * layout.tokens[1]
        maps = [layout.maps(*both) for both in zip(views.grids, views.base_pieces, strict=True)]
        total = sum(maps) * area
        orders, start, behind = [], 0, total + 2
        for i, grid in enumerate(views.grids):
            shape = (grid, views.sizes[i] if views.sizes else None, views.base_pieces[i])
            order = torch.tensor(layout.order(*shape), dtype=torch.int64)
            extra = torch.where(order == NEWLINE, total, total + 1)
            found = torch.where(order < 0, extra, order + start)
            if less := layout.shrunk(*shape[:2]):
                count = less[0] * less[1]
                found[order >= layout.base * area] = torch.arange(behind, behind + count)
                behind += count
            orders.append(found)
            start += maps[i] * area
        return torch.cat(orders)

    # --- what cannot be

    def check(self, encoder: VisionEncoder, language_model_depth: int) -> None:
        """See :meth:`StackingScheduler.check`. Here fractions of depth become layers."""
        self._settle(encoder.depth, language_model_depth)
        check_parts(self, encoder, language_model_depth)
        fractions = [tap for tap in [*self.base_taps, *self.taps()] if isinstance(tap, float)]
        self._layers = {tap: encoder.resolve_tap(tap) for tap in fractions}

    def _layer(self, tap: Tap) -> str:
        """Of a tap that is a fraction, which layer it is."""
        return f" = {self._layers[tap]}" if tap in self._layers else ""

    def _settle(self, encoder_depth: int, language_model_depth: int) -> None:
        """The sites of all stacks as layers of parts of these depths."""
        self.stacks = [stack.within(language_model_depth) for stack in self._asked]
        inside = [stack.within(encoder_depth) for stack in self._asked_inside]
        self.encoder_stacks = [replace(s, tap=s.at[0]) if s.tap is None else s for s in inside]

    def check_views(self, grids: Sequence[Grid], fine: int = 0, padded: bool = True) -> None:
        """See :meth:`StackingScheduler.check_views`."""
        check_views(self, grids, fine, padded)

    def argument(self, stack: str, attribute: str = "sites") -> str:
        """The argument that sets an attribute of one stack (``stacks.0``) or of all (``stacks``), for messages."""
        name = "sites" if attribute == "count" else attribute
        if self.arguments is not None:
            return self.arguments.get(attribute, name)
        return f"{stack}.{name}" if "." in stack else stack


def pieces_of(encoder: VisionEncoder, views: Views, names: Sequence[str]) -> dict[str, list[Grid]]:
    """What an encoder of any size is told of the views that it takes, beside their pixels.

    Raises:
        ValueError: for views of any size and an encoder of one.
    """
    if not views.pieces:
        return {}
    if not encoder.native:
        raise ValueError(f"{type(encoder).__name__} takes views of one size, and these have a size for each image")
    of = {"base": views.base_pieces, "crops": views.crop_pieces, "tiles": views.tile_pieces}
    return {"pieces": [grid for name in names for grid in of[name] if grid != (0, 0)]}


def counted(tap: Tap) -> Tap:
    """The two ends of the depth as the integers that they are: as keys, 1.0 and 1 are one number, and other taps."""
    return {0.0: 0, 1.0: -1}.get(tap, tap) if isinstance(tap, float) else tap


def _group_grid(stack: Stack, grid: Grid) -> Grid:
    return (grid[0] // stack.merge, grid[1] // stack.merge) if stack.sampler == "corner" else grid


def _distinct(items: Iterable[Tap]) -> list[Tap]:
    return list(dict.fromkeys(items))
