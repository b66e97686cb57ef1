"""How a record becomes a row of a batch: decoded, cut into views, tokenized.

Apart from the data module, because it travels to the data workers: one that is spawned imports what it is given, and
Lightning takes several times as long to import as all that a row needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from dslight.data.collate import Item
from dslight.data.conversation import Encoded, Template
from dslight.data.images import ViewPolicy
from dslight.data.sample import Alpha, Exif, Pixels, Sample, decode_image
from dslight.types import Question


@dataclass(frozen=True)
class RowMaker:
    """A sample to a row: decode, cut into views, tokenize. Travels to the data workers."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    views: ViewPolicy
    image_size: tuple[int, int]
    pixels: Pixels = "fast"
    exif: Exif = "apply"
    alpha: Alpha = "white"

    def train(self, sample: Sample, kept: Encoded | None = None) -> Item:
        """A training row; ``kept``: its tokens, where they are known."""
        encoded = kept or self.template.encode(sample.turns, self.tokenizer, len(sample.images))
        return self._with_views(Item(sample.key, encoded.ids, encoded.labels), sample)

    def ask(self, sample: Sample, question: Question, valid: bool, suffix: str = "") -> Item:
        """A question's row; ``suffix`` is what its benchmark puts behind every question that has none of its own."""
        end = suffix if question.suffix is None else question.suffix
        ids = self.template.prompt(question.text + end, len(sample.images), self.tokenizer)
        return self._with_views(Item(sample.key, ids, question=replace(question, valid=valid)), sample)

    def decode(self, data: bytes) -> np.ndarray:
        """An encoded image as views are made of it, uint8 RGB ``[H, W, 3]``."""
        return decode_image(data, exif=self.exif, alpha=self.alpha, pixels=self.pixels)

    def _with_views(self, item: Item, sample: Sample) -> Item:
        images = [self.decode(data) for data in sample.images]
        views = [self.views(image, self.image_size, self.pixels) for image in images]
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return replace(item, pixels=[pixels for pixels, _ in views], grids=[grid for _, grid in views], sizes=sizes)
