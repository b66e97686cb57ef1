"""The words that data and model share: views, batches, questions and visual tokens.

Shape letters, here and everywhere: ``V`` views, ``I`` images, ``K`` crops, ``M`` maps (views whose tokens stand
in the sequence), ``B`` rows of a batch, ``T`` text positions, ``N`` visual
slots of the whole batch (packed, in row-major order of ``visual_mask``), ``S`` stacks, ``P`` patches of a view, ``C``
width of the vision encoder, ``D`` width of the language model.

At native resolution a view is as large as its image and made of *pieces*, row by row: the least that an encoder takes,
such as the 2 x 2 patches that Qwen's mergers make one token of. Then ``V``, ``K`` and ``M`` count pieces, and ``P`` the
patches of one. A view of an encoder with one size is a single piece, so all else is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dslight.places import IGNORE as IGNORE
from dslight.places import Places, TokenGrid, moved
from dslight.question import Question

Grid = tuple[int, int]
"""(rows, columns)."""


@dataclass(frozen=True)
class ViewNeeds:
    """Which views of an image a stacking looks at, beside the base view: what views are made of by default.

    Attributes:
        crops: the most crops of an image; 0: none.
        grid: the (rows, columns) that they have to form; ``None``: whatever fits the image.
        fine: n, for n x n fine crops of every view; 0: none.
        padded: whether the image must keep its proportions.
        native: whether the encoder takes views of any size: then the crops are one enlarged view.
        depth: frames that a patch of the encoder is deep.
    """

    crops: int = 0
    grid: Grid | None = None
    fine: int = 0
    padded: bool = False
    native: bool = False
    depth: int = 1


@dataclass
class Views:
    """The pixels of all the images of a batch, packed: nothing is padded, so images may have different crop grids.

    Attributes:
        pixels: uint8 ``[V, 3, H, W]``, RGB, all at the encoder's resolution (from shards: ``torch.channels_last`` in
            memory). Image by image: the base (low-resolution, "global") view first, then the crops of the
            high-resolution image, row by row; then, where there are fine crops, those of the base view, row by row, and
            those of each crop.
        grids: per image the (rows, columns) of its crops; ``(0, 0)`` for an image without crops.
        fine: n: the base view and every crop are seen again, enlarged, as n x n fine crops (DeepStack-L-HD); 0: not.
        sizes: per image its own (height, width) in pixels, which tells where a crop holds padding; empty: not known.
        pieces: at native resolution, per image the (rows, columns) of pieces of its base view. ``pixels`` are these
            pieces, row by row; in place of crops stands one view of ``grids`` times as many rows and columns of them.
            Empty: every view is one piece.
        clips: where there are videos for an encoder of temporal patches, ``pixels`` are ``[V, F, 3, H, W]``, F frames
            deep, and each temporal patch counts as an image. Here is said how many of these, one behind the other, form
            a clip, and how many seconds they are apart; empty: each is alone.

    Example:
        >>> views = dslight.Views(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), grids=[(0, 0), (1, 2)])
        >>> views.base_index, views.crop_index  # two images, the second with two crops
        (tensor([0, 1]), tensor([2, 3]))
    """

    pixels: Tensor
    grids: list[Grid]
    fine: int = 0
    sizes: list[Grid] = field(default_factory=list)
    pieces: list[Grid] = field(default_factory=list)
    clips: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.clips and sum(count for count, _ in self.clips) != len(self.grids):
            raise ValueError(f"views: clips of {self.clips} temporal patches for {len(self.grids)} images")
        for name, given in (("sizes", self.sizes), ("pieces", self.pieces)):
            if given and len(given) != len(self.grids):
                raise ValueError(f"views: {len(given)} image {name} for {len(self.grids)} images")
        expected = sum(self.per_image)
        if len(self.pixels) != expected:
            fine = f" with {self.fine} x {self.fine} fine crops each" if self.fine else ""
            pieces = f" of {self.pieces} pieces" if self.pieces else ""
            raise ValueError(
                f"views: {len(self.pixels)} views, but the grids {self.grids}{pieces}{fine} need {expected}"
            )

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def base_pieces(self) -> list[Grid]:
        """Per image the (rows, columns) of pieces of its base view."""
        return self.pieces or [(1, 1)] * len(self.grids)

    @property
    def crop_pieces(self) -> list[Grid]:
        """Per image the (rows, columns) of pieces of its crops together; ``(0, 0)`` for an image without crops."""
        both = zip(self.grids, self.base_pieces, strict=True)
        return [(rows * high, cols * wide) for (rows, cols), (high, wide) in both]

    @property
    def tile_pieces(self) -> list[Grid]:
        """Of every base view and, where there is one, the view in place of its crops: image by image."""
        both = zip(self.base_pieces, self.crop_pieces, strict=True)
        return [grid for base, crops in both for grid in (base, crops) if grid != (0, 0)]

    @property
    def per_image(self) -> list[int]:
        """The number of views (pieces) of each image."""
        return [
            (1 + rows * cols) * (1 + self.fine**2) * high * wide
            for (rows, cols), (high, wide) in zip(self.grids, self.base_pieces, strict=True)
        ]

    @property
    def base_index(self) -> Tensor:
        """Where the base views are among all views, ``[I]``."""
        return self._index(lambda tiles: (0, 1))

    @property
    def crop_index(self) -> Tensor:
        """Where the crops are among all views, image by image and row by row, ``[K]``."""
        return self._index(lambda tiles: (1, tiles))

    @property
    def tile_index(self) -> Tensor:
        """Where base views and crops are among all views, ``[I + K]``: image by image, the base view first."""
        return self._index(lambda tiles: (0, tiles))

    @property
    def fine_index(self) -> Tensor:
        """Where the fine crops are among all views, ``[(I + K) * n * n]``, in the order of ``tile_index``."""
        return self._index(lambda tiles: (tiles, tiles * (1 + self.fine**2)))

    @property
    def stills(self) -> Tensor:
        """What people are shown, ``[V, 3, H, W]``: of views that are frames deep, the first frame."""
        return self.pixels[:, 0] if self.pixels.ndim == 5 else self.pixels

    def base(self) -> Tensor:
        """The base view of every image, ``[I, 3, H, W]``."""
        return self.pixels[self.base_index]

    def crops(self) -> Tensor:
        """The crops of all images, image by image and row by row, ``[K, 3, H, W]``."""
        return self.pixels[self.crop_index]

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Views:
        """The same views with their pixels on ``device``."""
        return replace(self, pixels=moved(self.pixels, device, non_blocking))

    def pin_memory(self) -> Views:
        """The same views in page-locked memory."""
        return replace(self, pixels=self.pixels.pin_memory())

    def _index(self, span: Callable[[int], tuple[int, int]]) -> Tensor:
        """The indices of a span of views of each image, given as a function of its number of tiles (base + crops)."""
        starts = accumulate(self.per_image, initial=0)
        spans = [
            (start, high * wide, *span(1 + rows * cols))
            for start, (rows, cols), (high, wide) in zip(starts, self.grids, self.base_pieces, strict=False)
        ]
        found = [start + i for start, each, first, last in spans for i in range(first * each, last * each)]
        return moved(torch.tensor(found, dtype=torch.int64), self.pixels.device)


@dataclass
class Batch:
    """One micro-batch of a rank. Make another (``dataclasses.replace``) instead of writing into its tensors: from the
    moment it moves it knows its :attr:`places`.

    Attributes:
        input_ids: int64 ``[B, T]``. Visual slots are already expanded; the id that stands there is a valid one and
            never read.
        attention_mask: int64 ``[B, T]``, 1 for real positions (text and visual).
        visual_mask: bool ``[B, T]``, true where a visual token fills the sequence. Its true entries, in row-major
            order, are the slots of ``views``' images in their order.
        labels: int64 ``[B, T]``, not shifted, ``IGNORE`` where there is no loss; ``None`` for a batch of questions.
        views: the pixels, or ``None`` when no row has an image.
        keys: the sample keys of the rows, for messages; of packed rows, those of their documents one after the other.
        questions: validation only: one per row. Such a batch is left-padded, ready to generate from.
        segments: int64 ``[B, T]`` where rows are packed: which document of its row a position belongs to, counted from
            1, or 0 for padding. No position may see another document's.
        dropped, shrunk: keys of what was left out because it taught nothing, and of what was cut at a whole turn.
        weights: float32 ``[B, T]``, how many times the loss of each label counts; ``None``: all alike.
        pictures: of questions: per row a number that it has in common with the rows that show the same images, which
            ``views`` then holds once, in the order of the first of them; empty: every row has its own.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.LowResolution(), lm)
        >>> batch = model.processor.ask("What is it?", "page.png")  # a dslight.Batch
        >>> len(batch), int(batch.visual_mask.sum()) == encoder.grid[0] * encoder.grid[1]
        (1, True)
    """

    input_ids: Tensor
    attention_mask: Tensor
    visual_mask: Tensor
    labels: Tensor | None = None
    views: Views | None = None
    keys: Sequence[str] = ()
    questions: Sequence[Question] = field(default_factory=list)
    segments: Tensor | None = None
    dropped: Sequence[str] = ()
    shrunk: Sequence[str] = ()
    weights: Tensor | None = None
    pictures: Sequence[int] = ()
    _places = None  # no field: a batch that is made of another by its fields, as FSDP does, finds its own

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> Batch:
        """The same batch on ``device`` (the protocol that Lightning moves batches by)."""
        return self._map(
            lambda x: x.to(device, non_blocking) if isinstance(x, Views) else moved(x, device, non_blocking)
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (the protocol of torch's DataLoader)."""
        return self._map(lambda x: x.pin_memory())

    @property
    def places(self) -> Places:
        """Where its visual slots and supervised positions stand."""
        return Places.of(self) if self._places is None else self._places

    @property
    def asked(self) -> Tensor | None:
        """What stands in front of the first label of its document, bool ``[B, T]``; ``None`` for questions alone."""
        if self.labels is None:
            return None
        answered = (self.labels != IGNORE).cumsum(1)
        if self.segments is None:
            return answered == 0
        begins = torch.zeros_like(self.segments, dtype=torch.bool)
        begins[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        return answered == torch.where(begins, answered, 0).cummax(1).values

    def located(self) -> Batch:
        """The batch itself, which knows its :attr:`places` from now on."""
        self._places = self.places
        return self

    def _map(self, move: Callable[[Any], Any]) -> Batch:
        there = replace(
            self,
            input_ids=move(self.input_ids),
            attention_mask=move(self.attention_mask),
            visual_mask=move(self.visual_mask),
            labels=None if self.labels is None else move(self.labels),
            views=None if self.views is None else move(self.views),
            segments=None if self.segments is None else move(self.segments),
            weights=None if self.weights is None else move(self.weights),
        )
        there._places = self.places.map(move)
        return there


@dataclass(frozen=True)
class Memory:
    """Tokens beside the sequence, which the language model attends to in front of some layers (Flamingo).

    Attributes:
        tokens: ``[n, D]``, packed image by image: not padded, so images may have different numbers of them.
        counts: how many tokens each image has.
        slots: how many positions of the sequence each image takes: tells where it begins.
        blocks: one per site, what attends there (see :class:`dslight.nn.cross_attention.GatedCrossAttention`).
        sites: the layers in front of which the blocks stand.
        latest: a position sees the last image that begins at or before it, instead of all of them.
    """

    tokens: Tensor
    counts: tuple[int, ...]
    slots: tuple[int, ...]
    blocks: Sequence[Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]]
    sites: tuple[int, ...]
    latest: bool = False


@dataclass(frozen=True)
class VisualTokens:
    """What the language model takes in: the one equation of the method.

    Attributes:
        slots: ``[S+1, N, D]``. Slot 0 fills the visual positions of the sequence; slot s is added to the residual
            stream there.
        sites: the S layers at whose inputs slots 1..S are added.
        operation: what is added instead of the stack itself, given (index of the stack, residual stream at the slots
            ``[n, D]``, the stack there ``[n, D]``): a gate, for instance.
        memory: what stands beside the sequence, if anything does.
        grids: of the N tokens in their order, for a language model whose positions have several axes; empty: not told,
            and they count as text.
    """

    slots: Tensor
    sites: tuple[int, ...] = ()
    operation: Callable[[int, Tensor, Tensor], Tensor] | None = None
    memory: Memory | None = None
    grids: tuple[TokenGrid, ...] = ()

    @property
    def base(self) -> Tensor:
        """Slot 0, ``[N, D]``."""
        return self.slots[0]

    @property
    def stacks(self) -> Tensor:
        """Slots 1..S, ``[S, N, D]``."""
        return self.slots[1:]

    def none(self) -> VisualTokens:
        """The same without a token, of no image; whatever made the tokens stays in the graph."""
        memory = self.memory and replace(self.memory, tokens=self.memory.tokens[:0], counts=(), slots=())
        return replace(self, slots=self.slots[:, :0], memory=memory, grids=())


@dataclass
class DenseBatch:
    """A batch for fitting a vision encoder alone: views and a class for each of their patches.

    Attributes:
        views: the pixels.
        targets: int64 ``[V, P]``, the class of each patch, row by row; views in the order of ``views.pixels``.
        keys: the sample keys of the images, for messages.
        valid: bool ``[I]``, false for a repeat that pads a rank's share of validation.
    """

    views: Views
    targets: Tensor
    keys: Sequence[str]
    valid: Tensor

    def __len__(self) -> int:
        return len(self.views)

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> DenseBatch:
        """The same batch on ``device``."""
        targets, valid = (moved(x, device, non_blocking) for x in (self.targets, self.valid))
        return DenseBatch(self.views.to(device, non_blocking), targets, self.keys, valid)

    def pin_memory(self) -> DenseBatch:
        """The same batch in page-locked memory (the protocol of torch's DataLoader)."""
        return DenseBatch(self.views.pin_memory(), self.targets.pin_memory(), self.keys, self.valid.pin_memory())
