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
from dslight.data.conversation import Encoded, Ids, Template
from dslight.data.native import AnySizeViews
from dslight.data.sample import IMAGE_TOKEN, Alpha, BadSample, Exif, Pixels, Sample, Turn, decode_image, to_rgb
from dslight.data.views.frames import Clip
from dslight.data.views.policy import ViewPolicy
from dslight.errors import UserError
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
        return Item(sample.key, encoded.ids, encoded.labels, **seen, weights=encoded.weights).opened()

    def ask(
        self,
        sample: Sample,
        question: Question,
        valid: bool,
        suffix: str = "",
        images: Sequence[np.ndarray | Clip] | None = None,
    ) -> Item:
        """A question's row.

        Args:
            sample: whose images it is about.
            question: what is asked.
            valid: see :class:`~dslight.types.Question`.
            suffix: what its benchmark puts behind every question that has none of its own.
            images: in place of the sample's, uint8 RGB ``[H, W, 3]``, or clips of these.
        """
        shown = sample.images if images is None else images
        made = Item(sample.key, self.prompt(sample, question, suffix, len(shown)), None, **self.seen(shown))
        return replace(made, question=replace(question, valid=valid)).opened()

    def prompt(self, sample: Sample, question: Question, suffix: str, images: int) -> Ids:
        """Ids of a question, with one ``IMAGE`` for each of ``images`` pictures and clips."""
        end = suffix if question.suffix is None else question.suffix
        return self.template.prompt(sample.about(question.text + end), images, self.tokenizer)

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

    def seen(self, images: Iterable[bytes | np.ndarray | Clip]) -> dict[str, Any]:
        """Of each image, encoded or not, its views or what is known of them, their grid, its own size, and at native
        resolution the pieces of its base view; of a clip, those of each of its temporal patches.
        """
        shown = list(images)
        views = self.views.among(len(shown))
        seen, pieces, clips = list[Any](), list[Grid](), list[tuple[int, float]]()
        for image in shown:
            if isinstance(image, Clip):
                found, shape = self._watched(image, views)
                seen += found
                pieces += [shape] * len(found)
                clips.append((len(found), image.seconds))
                continue
            seen.append(self._looked_at(image, views))
            clips.append((1, 0.0))
            if self.views.native:
                pieces.append(self.views.pieces(seen[-1][2], self.image_size))
        return {
            "pixels": [views for views, _, _ in seen],
            "grids": [grid for _, grid, _ in seen],
            "sizes": [size for _, _, size in seen],
            "pieces": pieces,
            "clips": clips if any(count > 1 for count, _ in clips) else [],
        }

    def _watched(self, clip: Clip, views: ViewPolicy) -> tuple[list[tuple[Tensor, Grid, Grid]], Grid]:
        """The temporal patches of a clip, as :meth:`_looked_at` has pictures, and their pieces."""
        if self.known is not None:
            raise UserError("data.keep_features: features of videos with temporal patches cannot be kept; leave it out")
        if not isinstance(views, AnySizeViews):
            raise UserError(
                f"data.views: {type(views).__name__} makes no views of clips; choose NativeViews, or data.video: "
                f"{{depth: 1}}, which makes pictures of frames"
            )
        frames = [self.decode(frame) if isinstance(frame, bytes) else frame for frame in clip.frames]
        cuts, grid, pieces = views.clip(frames, clip, self.image_size)
        size = (frames[0].shape[0], frames[0].shape[1])
        return [(each, grid, size) for each in cuts], pieces

    def _looked_at(self, image: bytes | np.ndarray, views: ViewPolicy) -> tuple[Any, Grid, Grid]:
        def cut() -> tuple[Tensor, Grid, Grid]:
            decoded = self.decode(image) if isinstance(image, bytes) else image
            return *views(decoded, self.image_size, self.pixels), (decoded.shape[0], decoded.shape[1])

        if self.known is None:
            return cut()
        data = image if isinstance(image, bytes) else None
        return self.known.image(data, cut, "" if views is self.views else "one of several")
