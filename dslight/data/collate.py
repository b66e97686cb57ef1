"""Samples to batches: encoded samples are padded, and each image mark becomes as many slots as its grid and size need.

Decided here: training rows are padded on the right; question rows on the left, ready to generate from. The id at a slot
is the pad id: it is a valid one that nobody reads. A row that is too long is cut at the end, but never inside the slots
of an image. Rows that teach nothing (no supervised token is left) or that would be cut inside an image follow
``on_unusable``: ``error``, or ``drop``. A dropped row stays in the batch as one ignored position without images, since
removing it would give ranks batches of different sizes; the loader counts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from dslight.data.conversation import IMAGE
from dslight.data.sample import BadSample
from dslight.layout import SlotLayout
from dslight.types import IGNORE, Batch, Grid, Question, Views

OnUnusable = Literal["drop", "error"]


@dataclass(frozen=True)
class Item:
    """One row before padding.

    Attributes:
        key: the sample's key.
        ids, labels: with ``IMAGE`` for each image; a question has no labels.
        pixels: per image its views, uint8 ``[V, 3, h, w]``, in the order of :class:`~dslight.types.Views`.
        grids: per image the (rows, columns) of its crops.
        sizes: per image its own (height, width).
        question: of an evaluation row.
    """

    key: str
    ids: list[int]
    labels: list[int] | None = None
    pixels: list[Tensor] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    sizes: list[Grid] = field(default_factory=list)
    question: Question | None = None


@dataclass(frozen=True)
class Collate:
    """Make a :class:`~dslight.types.Batch` of items; all of them train, or all of them ask.

    Attributes:
        slots: how many positions an image takes.
        pad_id: any valid id.
        max_length: longest row, visual slots included.
        on_unusable: what happens to a training row that teaches nothing or would be cut inside an image. A question is
            never cut: one that is too long is an error.
        fine: the view policy's: n x n fine crops of each view, or 0.
    """

    slots: SlotLayout
    pad_id: int
    max_length: int = 2048
    on_unusable: OnUnusable = "error"
    fine: int = 0

    def __call__(self, items: Sequence[Item]) -> Batch:
        """Pad and pack ``items``.

        Raises:
            BadSample: naming the key of a row that does not fit.
        """
        rows = [self._row(item) for item in items]
        length = max(len(row.ids) for row in rows)
        asks = rows[0].question is not None
        input_ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        labels = torch.full((len(rows), length), IGNORE, dtype=torch.int64)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.int64)
        visual_mask = torch.zeros((len(rows), length), dtype=torch.bool)
        for i, row in enumerate(rows):
            span = slice(length - len(row.ids), length) if asks else slice(0, len(row.ids))
            ids = torch.tensor(row.ids)
            visual_mask[i, span] = ids == IMAGE
            input_ids[i, span] = torch.where(ids == IMAGE, self.pad_id, ids)
            attention_mask[i, span] = 1
            if row.labels is not None:
                labels[i, span] = torch.tensor(row.labels)
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            visual_mask=visual_mask,
            labels=None if asks else labels,
            views=self._views(rows),
            keys=[row.key for row in rows],
            questions=[row.question for row in rows if row.question is not None],
        )

    def _views(self, rows: list[Item]) -> Views | None:
        pixels = [image for row in rows for image in row.pixels]
        if not pixels:
            return None
        grids = [grid for row in rows for grid in row.grids]
        sizes = [size for row in rows for size in row.sizes]
        return Views(torch.cat(pixels), grids, self.fine, sizes)

    def _row(self, item: Item) -> Item:
        """The item with its images expanded and its end cut; slots stay marked with ``IMAGE``."""
        marks = item.ids.count(IMAGE)
        if marks != len(item.pixels):
            raise BadSample(f"{item.key}: its text has places for {marks} images, it has {len(item.pixels)}")
        ids, labels, spans = self._expand(item)
        problem = ""
        if len(ids) > self.max_length:
            if item.question is not None:
                name = item.question.question_id
                raise BadSample(
                    f"{item.key}: question {name} takes {len(ids)} positions, data.max_length {self.max_length}"
                )
            if any(end > self.max_length for _, end in spans):
                problem = f"{len(ids)} positions, and max_length {self.max_length} would cut an image"
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        if item.question is None and all(label == IGNORE for label in labels):
            problem = problem or f"no supervised token in its first {self.max_length} positions"
        if not problem:
            return replace(item, ids=ids, labels=None if item.labels is None else labels)
        if self.on_unusable == "error":
            raise BadSample(f"{item.key}: {problem}; raise data.max_length, or set data.on_unusable to drop")
        return Item(item.key, [self.pad_id], [IGNORE])

    def _expand(self, item: Item) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        source = item.labels if item.labels is not None else [IGNORE] * len(item.ids)
        ids: list[int] = []
        labels: list[int] = []
        spans: list[tuple[int, int]] = []
        images = zip(item.grids, item.sizes, strict=True)
        for token, label in zip(item.ids, source, strict=True):
            count = self.slots(*next(images)) if token == IMAGE else 1
            if token == IMAGE:
                spans.append((len(ids), len(ids) + count))
            ids += [token] * count
            labels += [label] * count
        return ids, labels, spans
