"""What every metric of generated text shares: the arguments of ``update``, the keys of ``compute``, the state.

Decided here, once, so that a validation loop can treat all benchmarks alike:

- ``update(preds, target, valid=None, types=None)`` per batch, or ``update_questions(preds, questions)``, which takes
  all it needs from the batch's ``Question`` objects (options, image numbers) and so works for every metric.
- ``compute()`` gives a dict of float64 scalars. The keys are fixed at construction and so equal on all ranks; the first
  is ``metric.headline``, the number that papers report. A type without questions is nan; so is everything before the
  first update.
- States are int64 sums of fixed shape. A float state would be rounded when Lightning casts the module for ``bf16-true``
  (it also casts the metrics: 1000 updates of +1 give 256), and a list state aborts when a rank has no data.
- ``valid`` marks the repeats with which a distributed sampler fills up the last batch of a rank. They are left out, so
  the result on any number of processes is the result on one.
- What cannot be read from an answer scores 0 and is reported as ``unresolved``, a share of the questions. Nothing is
  guessed.
- A question without references (of a hidden test set) is answered but not scored: it counts nowhere.
- What is added up is what is written down: ``update`` makes a :class:`Verdict` on every row, sums those, and leaves
  them in ``verdicts`` for the file of all questions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from dslight.metrics.functional.thinking import Unfinished, spoken

if TYPE_CHECKING:
    from dslight.types import Question

SCALE = 10**9
"""Scores are added up as integers in units of 1e-9: room for 9e9 questions, error below 1e-9."""


def ratio(part: Tensor | float, whole: Tensor | float) -> Tensor:
    """``part / whole`` as a float64 scalar, nan where ``whole`` is 0. On the CPU: not every device has float64."""
    part, whole = float(part), float(whole)
    return torch.tensor(part / whole if whole else float("nan"), dtype=torch.float64)


def check_protocol(protocol: str, known: Sequence[str]) -> None:
    """Refuse a protocol that is not one of ``known``."""
    if protocol not in known:
        raise ValueError(f"protocol: {protocol!r} is not one of {', '.join(known)}")


class Verdict(NamedTuple):
    """What a metric says about one answer.

    Attributes:
        score: in 0..1, ``None`` for an answer that is not scored (no references, a repeat, judged elsewhere).
        unresolved: the protocol could read nothing from the answer; its score is 0.
        unfinished: the reply ended among the model's thoughts (``<think>``), so it is unresolved.
    """

    score: float | None = None
    unresolved: bool = False
    unfinished: bool = False


class Answer(NamedTuple):
    """A question with what the model said and what the metric says about that."""

    question: Question
    prediction: str
    verdict: Verdict


def verdict(score: float | None) -> Verdict:
    """The verdict on an answer that was scored; ``None`` for one that the protocol cannot judge."""
    return Verdict(score or 0.0, score is None)


class TextMetric(Metric):
    """A metric of generated answers.

    Args:
        types: names of the breakdown (question types, subsets, tasks); ``None`` for no breakdown, and then the types
            given to ``update`` are ignored.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric: dslight.metrics.TextMetric = dslight.metrics.BENCHMARKS["textvqa"].build()
        >>> metric.headline
        'vqa_accuracy'
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    headline: str
    """The key of ``compute()`` that is the benchmark's number."""

    def __init__(self, types: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.verdicts: list[Verdict] = []
        """On the rows of the last update, in their order."""
        self.types = tuple(types or ())
        if len(set(self.types)) != len(self.types):
            raise ValueError(f"types: {list(self.types)} names a type twice")

    def update_questions(self, preds: Sequence[str], questions: Sequence[Question]) -> list[Verdict]:
        """Add the answers to a batch of questions, the same call for every metric; returns the verdict on each.

        Thoughts (``<think> ... </think>``) are cut off first.
        """
        preds = [spoken(prediction) for prediction in preds]
        self.update(
            preds,
            [question.references for question in questions],
            valid=[question.valid and bool(question.references) for question in questions],
            types=[question.type for question in questions],
            **self._more(questions),
        )
        pairs = zip(preds, self.verdicts, strict=True)
        self.verdicts = [found._replace(unfinished=isinstance(said, Unfinished)) for said, found in pairs]
        return self.verdicts

    def unready(self) -> str:
        """What has to be installed before answers can be judged, "" for nothing; asked before a run begins."""
        return ""

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What else ``update`` needs to know about a batch of questions."""
        return {}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the current values, or those given (see ``torchmetrics.Metric.plot``)."""
        return self._plot(val, ax)

    def _add_counts(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def _rows(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None,
        types: Sequence[str] | None,
    ) -> Iterator[tuple[int, str, list[str], int]]:
        """(row, prediction, references, index of its type or ``len(self.types)``) of every valid row."""
        if isinstance(preds, str) or isinstance(target, str):
            raise TypeError("preds, target: one entry per question is needed, got a single string; put it in a list")
        for name, given in (("target", target), ("valid", valid), ("types", types)):
            if given is not None and len(given) != len(preds):
                raise ValueError(f"{name}: {len(given)} entries for {len(preds)} predictions")
        for row, (prediction, references) in enumerate(zip(preds, target, strict=True)):
            if valid is None or valid[row]:
                references = [references] if isinstance(references, str) else list(references)
                if not references:
                    raise ValueError(f"target[{row}]: a question needs at least one reference, got none")
                yield row, prediction, references, self._type_index(types[row] if types is not None else "")

    def _type_index(self, name: str) -> int:
        if not self.types or not name:
            return len(self.types)
        if name not in self.types:
            raise ValueError(
                f"types: a question is of type {name!r}, which is not one of {', '.join(self.types)}; "
                "give the metric types=... with all of them, or types=None for no breakdown"
            )
        return self.types.index(name)

    def _type_key(self, name: str) -> str:
        """A logger's key: "vqa_accuracy/yes_no" for the type "yes/no"."""
        return f"{self.headline}/{name.replace('/', '_').replace(' ', '_')}"


class MeanScore(TextMetric):
    """The mean over questions of a score in 0..1, overall and per type. Subclasses say how one answer is scored.

    Example:
        >>> class Length(dslight.metrics.MeanScore):
        ...     headline = "right_length"
        ...     def score(self, prediction, references):
        ...         return float(any(len(prediction) == len(reference) for reference in references))
        >>> metric = Length()
        >>> metric.update(["abc", "ab"], [["xyz"], ["x"]])
        >>> float(metric.compute()["right_length"])
        0.5
    """

    total: Tensor
    count: Tensor
    unresolved: Tensor

    def __init__(self, types: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(types, **kwargs)
        self._add_counts("total", len(self.types) + 1)
        self._add_counts("count", len(self.types) + 1)
        self._add_counts("unresolved")

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> float | None:
        """The score of one answer, in 0..1; ``None`` for one that the protocol cannot judge (it counts as 0)."""

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            preds: the generated answers.
            target: per answer its references; a string stands for one reference.
            valid: false for a repeated question, which is left out.
            types: per answer the name of its type, "" for none (then it counts overall only).

        Raises:
            ValueError: lengths differ, a question has no references, or a type is unknown.
        """
        self._add(
            [(row, kind, self.score(pred, refs)) for row, pred, refs, kind in self._rows(preds, target, valid, types)],
            preds,
        )

    def compute(self) -> dict[str, Tensor]:
        """``{headline: ..., "headline/type": ..., "unresolved": ...}``, all in 0..1."""
        total, count = self.total.tolist(), self.count.tolist()
        result = {self.headline: ratio(sum(total), sum(count) * SCALE)}
        for index, name in enumerate(self.types):
            result[self._type_key(name)] = ratio(total[index], count[index] * SCALE)
        return result | {"unresolved": ratio(self.unresolved, sum(count))}

    def _add(self, scored: Sequence[tuple[int, int, float | None]], preds: Sequence[str]) -> None:
        """Sum up (row, type, score) of the valid ones among the answers ``preds``."""
        self.verdicts = [Verdict()] * len(preds)
        scored = [(row, kind, None if isinstance(preds[row], Unfinished) else score) for row, kind, score in scored]
        total, count = [0] * len(self.count), [0] * len(self.count)
        for row, kind, score in scored:
            self.verdicts[row] = verdict(score)
            total[kind] += round((score or 0.0) * SCALE)
            count[kind] += 1
        # one transfer per batch; out of place, because a reset inside Lightning's inference mode makes the states
        # immutable
        self.total = self.total + torch.tensor(total, device=self.device)
        self.count = self.count + torch.tensor(count, device=self.device)
        self.unresolved = self.unresolved + sum(score is None for _, _, score in scored)


class JudgedElsewhere(TextMetric):
    """For benchmarks that a language model judges (MM-Vet): answers are generated and written, and nothing is scored.

    Args:
        kwargs: of ``torchmetrics.Metric``.
    """

    headline = "score"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(None, **kwargs)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
    ) -> None:
        """Take the answers; arguments as for every metric."""
        self.verdicts = [Verdict()] * len(preds)

    def compute(self) -> dict[str, Tensor]:
        """``{"score": nan}``."""
        return {self.headline: ratio(0, 0)}
