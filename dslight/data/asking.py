"""Rows of the questions of a source: what is made of a record's images is made once for all questions about them.

Of a video that was stored frame by frame, fewer can be shown: those in the middle of equal parts of it, as when frames
are taken from a video.
"""

from __future__ import annotations

from dataclasses import replace

from dslight.data.collate import Item
from dslight.data.rows import RowMaker
from dslight.data.sample import IMAGE_TOKEN, BadSample, Sample
from dslight.types import Question


class Asking:
    """Makes rows of questions; the views of neighbouring questions about a sample are the same tensors.

    Args:
        rows: makes a row.
        suffix: what the benchmark puts behind every question that has none of its own.
        frames: how many of a record's images are shown; ``None``: all.
    """

    def __init__(self, rows: RowMaker, suffix: str = "", frames: int | None = None) -> None:
        self.rows, self.suffix, self.frames = rows, suffix, frames
        self._last: tuple[Sample, Item] | None = None

    def __call__(self, sample: Sample, question: Question, valid: bool) -> Item:
        """A question's row; ``valid`` as in :class:`~dslight.types.Question`.

        Raises:
            BadSample: fewer images than frames are to be shown, or images that stand in the text.
        """
        if self.frames is not None and IMAGE_TOKEN in question.text:
            raise BadSample(f"frames: question {question.question_id} says where each of its images stands", "frames")
        if self.frames is not None and sample.marks:
            raise BadSample(
                f"frames: {self.frames}, of a video that is seen as a clip; data.video says how many", "frames"
            )
        if self._last is None or self._last[0] is not sample:
            item = self.rows.ask(self._shown(sample), question, valid, self.suffix)
            self._last = sample, item
            return item
        shown, item = self._shown(sample), self._last[1]
        ids = self.rows.prompt(shown, question, self.suffix, len(shown.images))
        return replace(item, ids=ids, question=replace(question, valid=valid)).opened()

    def _shown(self, sample: Sample) -> Sample:
        """The sample with as many of its images as are to be shown; one without any stays as it is."""
        count, there = self.frames, len(sample.images)
        if count is None or there in (0, count):
            return sample
        if there < count:
            raise BadSample(f"frames: {count} are to be shown, and there are {there} images", "frames")
        return replace(sample, images=tuple(sample.images[(2 * i + 1) * there // (2 * count)] for i in range(count)))
