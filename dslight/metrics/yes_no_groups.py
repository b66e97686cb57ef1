"""Accuracy of yes-or-no questions, and of groups of them that must all be right (HallusionBench)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dslight.metrics.base import MeanScore, check_protocol, ratio
from dslight.metrics.functional.yes_no import YES_NO_PROTOCOLS, YesNoProtocol, parse_yes_no_pope

if TYPE_CHECKING:
    from dslight.types import Question

_GROUPS = 20_000


class YesNoAccuracy(MeanScore):
    """The share of questions that are answered rightly with yes or no, and the share of groups that are all right.

    HallusionBench's three numbers are ``accuracy`` (its aAcc), ``accuracy_figure`` (fAcc: all questions about a figure)
    and ``accuracy_question`` (qAcc: a question about all its figures).

    Args:
        protocol: how an answer is read (see ``dslight.metrics.functional.yes_no``, POPE's readings).
        groups: names of the groupings; a question's ``<name>_group``, a number, says which group it is in.
        types: of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.YesNoAccuracy(groups=["figure"])
        >>> metric.update(["Yes.", "yes"], [["yes"], ["no"]], groups=[[0, 0]])
        >>> float(metric.compute()["accuracy"]), float(metric.compute()["accuracy_figure"])
        (0.5, 0.0)
    """

    headline = "accuracy"
    counts: Tensor

    def __init__(
        self,
        protocol: YesNoProtocol = "vlmevalkit",
        groups: Sequence[str] = (),
        types: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, YES_NO_PROTOCOLS)
        self.protocol: YesNoProtocol = protocol
        self.groups = tuple(groups)
        if self.groups:
            self._add_counts("counts", len(self.groups), _GROUPS, 2)  # right, asked

    def score(self, prediction: str, references: Sequence[str]) -> float | None:
        """1.0 or 0.0; ``None`` for an answer that is neither yes nor no."""
        found = parse_yes_no_pope(prediction, self.protocol)
        return None if found is None else float(found in [one.strip().lower() for one in references])

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        groups: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric, and per grouping the number of each answer's group.

        Raises:
            ValueError: ``groups`` are needed and not given, or a number is out of range.
        """
        super().update(preds, target, valid, types)
        if not self.groups:
            return
        if groups is None or len(groups) != len(self.groups):
            raise ValueError(f"groups: the number of each answer's group is needed for {', '.join(self.groups)}")
        counts = torch.zeros(self.counts.shape, dtype=torch.int64)
        for which, numbers in enumerate(groups):
            for number, verdict in zip(numbers, self.verdicts, strict=True):
                if verdict.score is None:
                    continue
                if not 0 <= number < _GROUPS:
                    raise ValueError(f"groups: {self.groups[which]} {number} is not below {_GROUPS}")
                counts[which, number, 0] += verdict.score == 1.0
                counts[which, number, 1] += 1
        self.counts = self.counts + counts.to(self.device)

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        """Groups are what the shard says of a question."""
        if not self.groups:
            return {}
        for question in questions:
            for name in self.groups:
                if f"{name}_group" not in question.extra:
                    raise ValueError(f"question {question.question_id!r}: has no {name}_group, by which it is scored")
        return {"groups": [[int(q.extra[f"{name}_group"]) for q in questions] for name in self.groups]}

    def compute(self) -> dict[str, Tensor]:
        """As for every mean score, and ``accuracy_<group>`` for each grouping."""
        result = super().compute()
        for name, counts in zip(self.groups, self.counts if self.groups else (), strict=True):
            right, asked = counts.unbind(1)
            result[f"accuracy_{name}"] = ratio(((right == asked) & (asked > 0)).sum(), (asked > 0).sum())
        return result
