"""Rows of the questions of a source: what is made of a record's images is made once for all questions about them."""

from __future__ import annotations

from dataclasses import replace

from dslight.data.collate import Item
from dslight.data.rows import RowMaker
from dslight.data.sample import Sample
from dslight.types import Question


class Asking:
    """Makes rows of questions; the views of neighbouring questions about a sample are the same tensors.

    Args:
        rows: makes a row.
        suffix: what the benchmark puts behind every question that has none of its own.
    """

    def __init__(self, rows: RowMaker, suffix: str = "") -> None:
        self.rows, self.suffix = rows, suffix
        self._last: tuple[Sample, Item] | None = None

    def __call__(self, sample: Sample, question: Question, valid: bool) -> Item:
        """A question's row; ``valid`` as in :class:`~dslight.types.Question`."""
        if self._last is None or self._last[0] is not sample:
            item = self.rows.ask(sample, question, valid, self.suffix)
            self._last = sample, item
            return item
        end = self.suffix if question.suffix is None else question.suffix
        ids = self.rows.template.prompt(question.text + end, len(sample.images), self.rows.tokenizer)
        return replace(self._last[1], ids=ids, question=replace(question, valid=valid))
