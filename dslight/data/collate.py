"""Samples to batches: encoded samples are padded, and each image mark becomes as many slots as its grid and size need.

Decided here: training rows are padded on the right; question rows on the left, ready to generate from. The id at a slot
is the pad id: it is a valid one that nobody reads. A row that is too long is cut at the end, but never inside the slots
of an image. Rows that teach nothing (no supervised token is left) or that would be cut inside an image follow
``on_unusable``: ``error``; ``drop``; or ``shrink``, which ends the conversation with the last whole answer that fits,
and drops it where none does. A dropped row stays in the batch as one ignored position without images, since removing it
would give ranks batches of different sizes; the loader counts what was dropped or shrunk.

A packed row holds several documents one after the other; ``segments`` tells them apart. The first position of a
document carries no label: what is before it belongs to another. So loss and count are those of the documents alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from dslight.data.conversation import IMAGE, Ids
from dslight.data.sample import BadSample
from dslight.data.templates.tile_marks import Between
from dslight.data.transport.batch_buffer import joined
from dslight.features.views import KnownImage, KnownViews
from dslight.layout import SlotLayout
from dslight.types import IGNORE, Batch, Grid, Question, Views

OnUnusable = Literal["drop", "shrink", "error"]


@dataclass(frozen=True)
class Item:
    """One row before padding.

    Attributes:
        key: the sample's key.
        ids, labels: with ``IMAGE`` for each image; a question has no labels.
        pixels: per image its views, uint8 ``[V, 3, h, w]``, in the order of :class:`~dslight.types.Views`; or a
            :class:`~dslight.features.views.KnownImage`.
        grids: per image the (rows, columns) of its crops.
        sizes: per image its own (height, width).
        question: of an evaluation row.
        pieces: per image the (rows, columns) of pieces of its base view; empty: every view is one.
        weights: float32, how much the loss of each label counts; ``None``: all alike.
        clips: how many of ``pixels``, one behind the other, are temporal patches of one clip, and how many seconds they
            are apart; empty: each is alone.
    """

    key: str
    ids: Ids
    labels: Ids | None = None
    pixels: list[Any] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    sizes: list[Grid] = field(default_factory=list)
    question: Question | None = None
    pieces: list[Grid] = field(default_factory=list)
    weights: np.ndarray | None = None
    clips: list[tuple[int, float]] = field(default_factory=list)

    def opened(self) -> Item:
        """The same with an ``IMAGE`` for each temporal patch, where there was one for each clip."""
        if not self.clips:
            return self
        ids = np.asarray(self.ids)
        marks = (ids == IMAGE).nonzero()[0]
        if len(marks) != len(self.clips):
            shown = len(self.clips)
            raise BadSample(f"{self.key}: its text has places for {len(marks)} pictures and videos, it has {shown}")
        counts = np.ones(len(ids), dtype=np.intp)
        counts[marks] = [count for count, _ in self.clips]
        labels = None if self.labels is None else np.asarray(self.labels).repeat(counts)
        weights = None if self.weights is None else np.asarray(self.weights).repeat(counts)
        return replace(self, ids=ids.repeat(counts), labels=labels, weights=weights)


Row = Item | tuple[Item, ...]
"""One item, or several that share a row."""


class _Document(NamedTuple):
    """An item with its images expanded: ``IMAGE`` in each of their slots. Of its images the first ``images`` are
    left."""

    item: Item
    ids: np.ndarray
    labels: np.ndarray | None
    images: int
    weights: np.ndarray | None = None


@dataclass(frozen=True)
class Collate:
    """Make a :class:`~dslight.types.Batch` of items; all of them train, or all of them ask.

    Attributes:
        slots: how many positions an image takes.
        pad_id: any valid id.
        max_length: longest row, visual slots included.
        on_unusable: what happens to a training document that teaches nothing or would be cut inside an image. A
            question is never cut: one that is too long is an error.
        fine: the view policy's: n x n fine crops of each view, or 0.
        encoder: the digest of the encoder whose features are kept.
        between: ids of texts between the tiles of an image; ``None``: there are none.
        once: keep the views of questions about the same images (the same tensors) once; see ``Batch.pictures``.
    """

    slots: SlotLayout
    pad_id: int
    max_length: int = 2048
    on_unusable: OnUnusable = "error"
    fine: int = 0
    encoder: str = ""
    once: bool = False
    between: Between | None = None

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Pad and pack ``rows``.

        Raises:
            BadSample: naming the key of a row that does not fit.
        """
        dropped: list[str] = []
        shrunk: list[str] = []
        packed = any(isinstance(row, tuple) for row in rows)
        made = [self._documents(row, dropped, shrunk) for row in rows]
        lengths = [sum(len(document.ids) for document in row) for row in made]
        if packed and max(lengths) > self.max_length:
            keys = ", ".join(document.item.key for document in made[lengths.index(max(lengths))])
            raise BadSample(f"{keys}: {max(lengths)} positions in one pack, data.max_length is {self.max_length}")
        documents = [document for row in made for document in row]
        asks = documents[0].item.question is not None
        shape = (len(rows), max(lengths))
        input_ids, labels = np.full(shape, self.pad_id), np.full(shape, IGNORE)
        segments = np.zeros(shape, dtype=np.int64)
        weighted = any(document.weights is not None for document in documents)
        weights = np.ones(shape, np.float32) if weighted else None
        for i, row in enumerate(made):
            start = shape[1] - lengths[i] if asks else 0
            for number, document in enumerate(row, start=1):
                end = start + len(document.ids)
                input_ids[i, start:end] = document.ids
                segments[i, start:end] = number
                if document.labels is not None:
                    labels[i, start:end] = document.labels
                if weights is not None and document.weights is not None:
                    weights[i, start:end] = document.weights
                if number > 1:
                    labels[i, start] = IGNORE
                start = end
        shown = _alike([document.item for document in documents]) if asks and self.once else []
        visual_mask = input_ids == IMAGE
        input_ids[visual_mask] = self.pad_id
        return Batch(
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy((segments > 0).astype(np.int64)),
            visual_mask=torch.from_numpy(visual_mask),
            labels=None if asks else torch.from_numpy(labels),
            views=self._views([documents[i] for i in dict.fromkeys(shown)] if shown else documents),
            pictures=shown,
            keys=[item.key for row in rows for item in (row if isinstance(row, tuple) else (row,))],
            questions=[document.item.question for document in documents if document.item.question is not None],
            segments=torch.from_numpy(segments) if packed else None,
            dropped=dropped,
            shrunk=shrunk,
            weights=None if weights is None else torch.from_numpy(weights),
        ).located()

    def _documents(self, row: Row, dropped: list[str], shrunk: list[str]) -> list[_Document]:
        """The documents of a row with their slots, without those that are dropped; never none."""
        made = []
        for item in row if isinstance(row, tuple) else (row,):
            document = self._document(item)
            if document is None:
                dropped.append(item.key)
                continue
            made.append(document)
            if document.images < len(item.pixels):
                shrunk.append(item.key)
        return made or [_Document(Item("", []), np.array([self.pad_id]), np.array([IGNORE]), 0)]

    def _views(self, documents: list[_Document]) -> Views | None:
        kept = [(document.item, range(document.images)) for document in documents]
        views = [item.pixels[i] for item, images in kept for i in images]
        if not views:
            return None
        grids = [item.grids[i] for item, images in kept for i in images]
        sizes = [item.sizes[i] for item, images in kept for i in images]
        if isinstance(views[0], KnownImage):
            return self._known(views, grids, sizes)
        pieces = [item.pieces[i] for item, images in kept for i in images if item.pieces]
        clips = [clip for item, images in kept for clip in _clips(item, len(images))]
        clips = clips if any(count > 1 for count, _ in clips) else []
        return Views(_together(views), grids, self.fine, sizes, pieces, clips)

    def _known(self, images: list[KnownImage], grids: list[Grid], sizes: list[Grid]) -> KnownViews:
        pixels = [image.pixels for image in images if image.pixels is not None]
        together = joined(pixels) if pixels else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
        return KnownViews.of(images, together, grids, self.fine, sizes, self.encoder)

    def _document(self, item: Item) -> _Document | None:
        """The item with its images expanded and its end cut. ``None``: dropped."""
        ids, labels, weights, spans = self._expand(item)
        length, images, problem = min(len(ids), self.max_length), len(spans), ""
        if item.question is not None:
            if len(ids) > self.max_length:
                name = item.question.question_id
                raise BadSample(
                    f"{item.key}: question {name} takes {len(ids)} positions, data.max_length {self.max_length}"
                )
        elif any(end > self.max_length for _, end in spans):
            problem = f"{len(ids)} positions, and max_length {self.max_length} would cut an image"
        elif not (labels[:length] != IGNORE).any():
            problem = f"no supervised token in its first {self.max_length} positions"
        if problem:
            if self.on_unusable == "error":
                raise BadSample(
                    f"{item.key}: {problem}; raise data.max_length, or set data.on_unusable to drop or shrink"
                )
            length = _last_answer(labels, self.max_length) if self.on_unusable == "shrink" else 0
            images = sum(end <= length for _, end in spans)
        if not length:
            return None
        weights = None if weights is None else weights[:length]
        return _Document(item, ids[:length], None if item.labels is None else labels[:length], images, weights)

    def _expand(self, item: Item) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, list[tuple[int, int]]]:
        """Ids, labels and weights with as many marks as each image has slots, and where (begin, end) these are."""
        ids = np.asarray(item.ids)
        labels = np.full_like(ids, IGNORE) if item.labels is None else np.asarray(item.labels)
        marks = (ids == IMAGE).nonzero()[0].tolist()
        if len(marks) != len(item.pixels):
            raise BadSample(f"{item.key}: its text has places for {len(marks)} images, it has {len(item.pixels)}")
        counts, spans, before = np.ones(len(ids), dtype=np.intp), [], 0
        pieces, texts = item.pieces or [(1, 1)] * len(marks), []
        for mark, *shape in zip(marks, item.grids, item.sizes, pieces, strict=True):
            counts[mark] = slots = self.slots(*shape)
            if self.between is not None:
                texts.append(_with_texts(self.between(shape[0]), slots))
                counts[mark] = slots = len(texts[-1])
            spans.append((mark + before, mark + before + slots))
            before += slots - 1
        weights = None if item.weights is None else np.asarray(item.weights).repeat(counts)
        ids = ids.repeat(counts)
        for (begin, end), text in zip(spans, texts, strict=False):
            ids[begin:end] = text
        return ids, labels.repeat(counts), weights, spans


def _with_texts(texts: list[list[int]], slots: int) -> list[int]:
    """An image's slots in as many runs as there are texts, each behind its text."""
    return [one for text in texts for one in (*text, *[IMAGE] * (slots // len(texts)))]


def _clips(item: Item, images: int) -> list[tuple[int, float]]:
    """Of the first ``images`` temporal patches of an item, how many belong to each clip."""
    kept, left = [], images
    for count, seconds in item.clips or [(1, 0.0)] * images:
        if left > 0:
            kept.append((min(count, left), seconds))
        left -= count
    return kept


def _together(views: list[torch.Tensor]) -> torch.Tensor:
    """All views behind one another; beside those of temporal patches, pictures are clips that stand still."""
    depth = max((view.shape[1] for view in views if view.ndim == 5), default=0)
    if not depth:
        return joined(views)
    return torch.cat([view if view.ndim == 5 else view[:, None].expand(-1, depth, -1, -1, -1) for view in views])


def _last_answer(labels: np.ndarray, limit: int) -> int:
    """Where the last answer ends that is whole within ``limit`` positions; 0 if none is."""
    last = min(limit, len(labels))
    ends = (i + 1 for i in range(last) if labels[i] != IGNORE and (i + 1 == len(labels) or labels[i + 1] == IGNORE))
    return max(ends, default=0)


def _alike(items: list[Item]) -> list[int]:
    """Of each item, the number of the first that shows the same images; nothing if each shows its own."""
    seen: dict[tuple[int, ...], int] = {}
    first = [seen.setdefault(tuple(map(id, item.pixels)) or (-1 - i,), i) for i, item in enumerate(items)]
    return first if len(seen) < len(items) else []
