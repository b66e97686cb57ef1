"""Questions and pictures to a batch: what a model is asked through (transformers calls it a processor).

It knows the tokenizer, the template and the views, and nothing of the model but where its visual tokens stand. The data
of a training have one, and the model that they train takes it over, so that it is asked as it was trained; a model that
no data were shown to makes its own (:attr:`dslight.vlm.VLM.processor`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dslight.data.collate import Collate, OnUnusable
from dslight.data.conversation import TEMPLATES, Marked, default_template, template
from dslight.data.given import VIDEO_TOKEN, ordered, videos_of, watched
from dslight.data.images import views_for
from dslight.data.rows import RowMaker
from dslight.data.sample import IMAGE_TOKEN, BadSample, Sample
from dslight.data.views.frames import AS_USUAL, Frames
from dslight.layout import SlotLayout
from dslight.types import Batch, Question, ViewNeeds
from dslight.written import written


@dataclass(frozen=True)
class Processor:
    """Makes batches of questions.

    Attributes:
        rows: makes a row of a question and its images: tokenizer, template, views.
        slots: how many positions an image takes in the sequence.
        max_length: longest row, visual slots included.
        on_unusable: of conversations, see :class:`~dslight.data.collate.Collate`.
        frames: how videos are looked at.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4), lm)
        >>> batch = model.processor.ask(["What is it?", "And this?"], ["page.png", None])
        >>> batch.views.grids, batch.attention_mask.shape == batch.input_ids.shape
        ([(2, 2)], True)
    """

    rows: RowMaker
    slots: SlotLayout
    max_length: int = 2048
    on_unusable: OnUnusable = "error"
    frames: Frames = AS_USUAL

    @classmethod
    def of(
        cls, tokenizer: Any, needs: ViewNeeds, image_size: tuple[int, int], slots: SlotLayout, max_length: int
    ) -> Processor:
        """One that nobody has said anything else of: the views that are looked at, the tokenizer's template."""
        chosen = template(default_template(tokenizer))
        rows = RowMaker(chosen, tokenizer, views_for(needs), image_size)
        return cls(rows, slots, max_length, frames=AS_USUAL.seen_by(needs.depth))

    def to_recipe(self) -> dict[str, Any]:
        """Its settings as the section ``data`` of a recipe."""
        rows = self.rows
        marked = rows.template if isinstance(rows.template, Marked) else None
        plain, thinking = marked.inner if marked else rows.template, getattr(rows.template, "thinking", None)
        name = "tokenizer" if thinking is not None else next((n for n, t in TEMPLATES.items() if t == plain), None)
        made = {"views": written(rows.views), "template": name or written(plain)}
        made |= {} if thinking is None else {"thinking": thinking}
        made |= {} if marked is None else {"image_marks": [marked.before, marked.after]}
        made |= {"video": video} if (video := self.frames.to_recipe()) else {}
        made |= {} if marked is None or marked.tiles is None else {"tile_marks": asdict(marked.tiles)}
        return made | {"max_length": self.max_length, "pixels": rows.pixels, "exif": rows.exif, "alpha": rows.alpha}

    @property
    def stop_ids(self) -> list[int]:
        """Token ids that end an answer in this template, for ``generate(eos_token_id=...)``."""
        return self.rows.template.stop_ids(self.rows.tokenizer)

    @property
    def collate(self) -> Collate:
        """Rows to a padded batch."""
        tokenizer: Any = self.rows.tokenizer
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        between = self.rows.template.tile_texts(tokenizer, self.slots)
        return Collate(self.slots, pad, self.max_length, self.on_unusable, self.rows.views.fine, between=between)

    def ask(self, question: str | Sequence[str], images: Any = None, videos: Any = None) -> Batch:
        """A left-padded batch, ready to generate from, a row per question.

        Args:
            question: one, or several.
            images: what it is about: an image (a picture of PIL, a file, its bytes, or uint8 ``[H, W, 3]`` or
                ``[3, H, W]``), several in a list, or ``None``. Of several questions, a list with such an entry for
                each; an image that stands alone is shown to all.
            videos: likewise: a file, frames (uint8 ``[F, H, W, 3]`` or a list of pictures), a
                :class:`~dslight.data.given.Video`, or several in a list. They come behind the images, or where
                ``<video>`` stands in the question.

        Raises:
            ValueError: for what is no image or video, or more entries than questions.
            BadSample: an image that does not decode, or a question above ``max_length``.
        """
        one = isinstance(question, str)
        questions = [question] if one else list(question)
        if not questions or not all(isinstance(text, str) for text in questions):
            raise ValueError(f"question: expected a text, or a list of one or more texts, got {question!r}")
        shown, played = (_entries(n, given, questions, one) for n, given in (("image", images), ("video", videos)))
        return self.collate([self._row(i, text, shown[i], played[i], one) for i, text in enumerate(questions)])

    def teach(self, question: str, answer: str, images: Any = None) -> Batch:
        """A batch with labels, of a question and its answer; arguments as of :meth:`ask`, of one question.

        Raises:
            ValueError: as :meth:`ask`.
        """
        listed = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        return self.collate([self.rows.taught(question, answer, [self.rows.read(image) for image in listed])])

    def _row(self, number: int, text: str, images: Any, videos: Any, alone: bool) -> Any:
        listed = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        decoded = []
        for i, image in enumerate(listed):
            try:
                decoded.append(self.rows.read(image))
            except ValueError as error:
                where = f"images[{i}]" if alone else f"images[{number}][{i}]"
                raise BadSample(f"{where}: {error}", getattr(error, "reason", "image")) from None
        played = []
        for i, video in enumerate(videos_of(videos)):
            try:
                played.append(watched(video, self.frames, self.rows.read))
            except ValueError as error:
                where = f"videos[{i}]" if alone else f"videos[{number}][{i}]"
                raise BadSample(f"{where}: {error}", getattr(error, "reason", "video")) from None
        name, marks = "question" if alone else f"question {number}", ()
        if played or VIDEO_TOKEN in text or (IMAGE_TOKEN in text and not decoded):
            text, decoded, marks = ordered(text, decoded, played)
        question = Question(name, text, references=(), number=number)
        return self.rows.ask(Sample(name, name, images=(), marks=marks), question, valid=True, images=decoded)


def _entries(what: str, given: Any, questions: Sequence[str], one: bool) -> Any:
    """What is given for each question."""
    if one or not isinstance(given, list | tuple):
        return [given] * len(questions)
    if len(given) not in (0, len(questions)):
        raise ValueError(
            f"{what}s: {len(given)} entries for {len(questions)} questions; give one for each: an {what}, a list of "
            f"{what}s, or None".replace("an video", "a video")
        )
    return given or [None] * len(questions)
