"""How a record becomes a row of a batch: decoded, cut into views, tokenized.

Apart from the data module, because it travels to the data workers: one that is spawned imports what it is given, and
Lightning takes several times as long to import as all that a row needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dslight.data.caches.features import FeatureReader
from dslight.data.collate import Item
from dslight.data.conversation import Encoded, Template
from dslight.data.sample import IMAGE_TOKEN, Alpha, BadSample, Exif, Pixels, Sample, Turn, decode_image, to_rgb
from dslight.data.views.policy import ViewPolicy
from dslight.types import Grid, Question


@dataclass(frozen=True)
class RowMaker:
    """A sample to a row: decode, cut into views, tokenize. Travels to the data workers.

    Attributes:
        known: reads what is kept of the features of a picture; ``None``: pictures are decoded.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    views: ViewPolicy
    image_size: tuple[int, int]
    pixels: Pixels = "fast"
    exif: Exif = "apply"
    alpha: Alpha = "white"
    known: FeatureReader | None = None

    def text(self, sample: Sample) -> Encoded:
        """What the text of a conversation becomes."""
        return self.template.encode(sample.turns, self.tokenizer, len(sample.images))

    def train(self, sample: Sample, text: Encoded | None = None) -> Item:
        """A training row; ``text``: what its text becomes, where that is known."""
        encoded = text or self.text(sample)
        seen = self.seen(sample.images)
        return Item(sample.key, encoded.ids, encoded.labels, **seen, weights=encoded.weights)

    def ask(
        self,
        sample: Sample,
        question: Question,
        valid: bool,
        suffix: str = "",
        images: Sequence[np.ndarray] | None = None,
    ) -> Item:
        """A question's row.

        Args:
            sample: whose images it is about.
            question: what is asked.
            valid: see :class:`~dslight.types.Question`.
            suffix: what its benchmark puts behind every question that has none of its own.
            images: in place of the sample's, uint8 RGB ``[H, W, 3]``.
        """
        end = suffix if question.suffix is None else question.suffix
        shown = sample.images if images is None else images
        ids = self.template.prompt(question.text + end, len(shown), self.tokenizer)
        return Item(sample.key, ids, None, **self.seen(shown), question=replace(question, valid=valid))

    def taught(self, text: str, answer: str, images: Sequence[np.ndarray]) -> Item:
        """A question's row with an answer to learn, the images (uint8 RGB ``[H, W, 3]``) put first."""
        marks = "" if IMAGE_TOKEN in text else f"{IMAGE_TOKEN}\n" * len(images)
        turns = [Turn("human", marks + text), Turn("gpt", answer)]
        encoded = self.template.encode(turns, self.tokenizer, len(images))
        return Item("question", encoded.ids, encoded.labels, **self.seen(images))

    def decode(self, data: bytes) -> np.ndarray:
        """An encoded image as views are made of it, uint8 RGB ``[H, W, 3]``."""
        return decode_image(data, exif=self.exif, alpha=self.alpha, pixels=self.pixels)

    def read(self, image: Any) -> np.ndarray:
        """Anything that shows an image as uint8 RGB ``[H, W, 3]``: a picture of PIL, a file, its bytes, an array.

        Raises:
            ValueError: saying what it is instead.
        """
        if not isinstance(image, str | Path):
            return self.decode(image) if isinstance(image, bytes) else to_rgb(image, self.exif, self.alpha)
        if not Path(image).is_file():
            raise ValueError(f"there is no file {image}")
        try:
            return self.decode(Path(image).read_bytes())
        except BadSample as error:
            raise BadSample(f"{image}: {error}", error.reason) from None

    def seen(self, images: Iterable[bytes | np.ndarray]) -> dict[str, Any]:
        """Of each image, encoded or not, its views or what is known of them, their grid, its own size, and at native
        resolution the pieces of its base view.
        """
        shown = list(images)
        views = self.views.among(len(shown))
        seen = [self._looked_at(image, views) for image in shown]
        sizes = [size for _, _, size in seen]
        pieces = [self.views.pieces(size, self.image_size) for size in sizes] if self.views.native else []
        return {
            "pixels": [views for views, _, _ in seen],
            "grids": [grid for _, grid, _ in seen],
            "sizes": sizes,
            "pieces": pieces,
        }

    def _looked_at(self, image: bytes | np.ndarray, views: ViewPolicy) -> tuple[Any, Grid, Grid]:
        def cut() -> tuple[Tensor, Grid, Grid]:
            decoded = self.decode(image) if isinstance(image, bytes) else image
            return *views(decoded, self.image_size, self.pixels), (decoded.shape[0], decoded.shape[1])

        if self.known is None:
            return cut()
        data = image if isinstance(image, bytes) else None
        return self.known.image(data, cut, "" if views is self.views else "one of several")
