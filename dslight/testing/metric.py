"""What a metric of generated answers promises: a number in 0..1, however the answers were batched."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from dslight.metrics.base import TextMetric
from dslight.question import Question


class MetricContract:
    """The promises of :class:`~dslight.metrics.TextMetric`; subclass it and define :meth:`make`, :meth:`questions` and
    :meth:`right`.

    Attributes:
        atol: largest difference between values that ought to be equal.
    """

    atol = 1e-6

    def make(self) -> TextMetric:
        """A new metric."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the metric to test")

    def questions(self) -> Sequence[Question]:
        """Two questions or more, as the data would give them, with references."""
        raise NotImplementedError(f"{type(self).__name__}: define questions(self), with references")

    def right(self) -> Sequence[str]:
        """The best answer to each of :meth:`questions`."""
        raise NotImplementedError(f"{type(self).__name__}: define right(self), an answer to each question")

    def test_right_answers_score_one_and_others_less(self) -> None:
        assert abs(self._score(self.right()) - 1) <= self.atol, (
            f"right answers score {self._score(self.right())}, not 1"
        )
        wrong = self._score(["§ not an answer §"] * len(self.questions()))
        assert 0 <= wrong < 1, f"answers that are none score {wrong}"

    def test_its_headline_is_among_its_numbers(self) -> None:
        metric = self._updated(self.right())
        assert metric.headline in metric.compute(), f"compute() has no {metric.headline!r}, its headline"

    def test_batches_do_not_matter(self) -> None:
        answers = [self.right()[0], *["no"] * (len(self.questions()) - 1)]
        apart = self.make()
        for answer, question in zip(answers, self.questions(), strict=True):
            apart.update_questions([answer], [question])
        whole, parts = self._score(answers), float(apart.compute()[apart.headline])
        assert abs(whole - parts) <= self.atol, (
            f"{whole} at once, {parts} one by one: sum counts, and divide at the end"
        )

    def test_processes_do_not_matter(self) -> None:
        answers, questions = [self.right()[0], *["no"] * (len(self.questions()) - 1)], list(self.questions())
        first, second = self.make(), self.make()
        first.update_questions(answers[:1], questions[:1])
        second.update_questions(answers[1:], questions[1:])
        first.merge_state(second)
        whole, merged = self._score(answers), float(first.compute()[first.headline])
        assert abs(whole - merged) <= self.atol, (
            f"{whole} in one process, {merged} in two: give every state that is a sum a dist_reduce_fx, and no other "
            f"attribute a part in compute()"
        )

    def test_every_answer_has_a_verdict(self) -> None:
        metric = self.make()
        verdicts = metric.update_questions(list(self.right()), list(self.questions()))
        assert len(verdicts) == len(self.questions()), (
            f"{len(verdicts)} verdicts for {len(self.questions())} answers: append one to self.verdicts for each row"
        )
        assert all(each.score is None or 0 <= each.score <= 1 for each in verdicts), "a verdict's score is not in 0..1"

    def test_reset_forgets(self) -> None:
        metric = self._updated(["§ not an answer §"] * len(self.questions()))
        metric.reset()
        metric.update_questions(list(self.right()), list(self.questions()))
        assert abs(float(metric.compute()[metric.headline]) - 1) <= self.atol, "after reset() old answers still count"

    def test_it_can_be_copied(self) -> None:
        metric = self._updated(self.right())
        again = copy.deepcopy(metric)
        assert float(again.compute()[again.headline]) == float(metric.compute()[metric.headline])

    def _updated(self, answers: Sequence[str]) -> TextMetric:
        metric = self.make()
        metric.update_questions(list(answers), list(self.questions()))
        return metric

    def _score(self, answers: Sequence[str]) -> float:
        metric = self._updated(answers)
        return float(metric.compute()[metric.headline])
