"""How a record becomes a row of a batch: decoded, cut into views, tokenized.

Apart from the data module, because it travels to the data workers: one that is spawned imports what it is given, and
Lightning takes several times as long to import as all that a row needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dslight.data.collate import Item
from dslight.data.conversation import Encoded, Template
from dslight.data.images import ViewPolicy
from dslight.data.sample import Alpha, Exif, Pixels, Sample, decode_image
from dslight.types import Grid, Question


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

    def text(self, sample: Sample) -> Encoded:
        """What the text of a conversation becomes."""
        return self.template.encode(sample.turns, self.tokenizer, len(sample.images))

    def train(self, sample: Sample, text: Encoded | None = None) -> Item:
        """A training row; ``text``: what its text becomes, where that is known."""
        encoded = text or self.text(sample)
        return Item(sample.key, encoded.ids, encoded.labels, *self._views(sample))

    def ask(self, sample: Sample, question: Question, valid: bool, suffix: str = "") -> Item:
        """A question's row; ``suffix`` is what its benchmark puts behind every question that has none of its own."""
        end = suffix if question.suffix is None else question.suffix
        ids = self.template.prompt(question.text + end, len(sample.images), self.tokenizer)
        return Item(sample.key, ids, None, *self._views(sample), question=replace(question, valid=valid))

    def decode(self, data: bytes) -> np.ndarray:
        """An encoded image as views are made of it, uint8 RGB ``[H, W, 3]``."""
        return decode_image(data, exif=self.exif, alpha=self.alpha, pixels=self.pixels)

    def _views(self, sample: Sample) -> tuple[list[Tensor], list[Grid], list[Grid]]:
        """Of each image its views, their grid, and its own size."""
        images = [self.decode(data) for data in sample.images]
        views = [self.views(image, self.image_size, self.pixels) for image in images]
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        return [pixels for pixels, _ in views], [grid for _, grid in views], sizes
