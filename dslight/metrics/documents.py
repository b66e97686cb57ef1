"""MMLongBench-Doc's accuracy and F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dslight.metrics.base import SCALE, check_protocol, ratio
from dslight.metrics.facts import FactScore
from dslight.metrics.functional.mmlongbench import (
    MMLONGBENCH_PROTOCOLS,
    NOT_ANSWERABLE,
    MMLongBenchProtocol,
    cleaned,
    mmlongbench_score,
)


class MMLongBenchDocScore(FactScore):
    """The mean score of answers about documents, and its F1: the harmonic mean of the mean score of the questions that
    have an answer, and of those to which the model gave one.

    Args:
        protocol: whose rules (see ``dslight.metrics.functional.mmlongbench``).
        types: of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.MMLongBenchDocScore()
        >>> metric.update(["8", "9"], [["8"], ["Not answerable"]], facts=[{"answer_format": "Int"}, {}])
        >>> {key: round(float(value), 3) for key, value in metric.compute().items()}
        {'accuracy': 0.5, 'f1': 0.667, 'unresolved': 0.0}
    """

    headline = "accuracy"
    answerable: Tensor
    answered: Tensor

    def __init__(
        self, protocol: MMLongBenchProtocol = "official", types: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, MMLONGBENCH_PROTOCOLS)
        self.protocol: MMLongBenchProtocol = protocol
        self._add_counts("answerable", 2)  # score, questions
        self._add_counts("answered", 2)

    def score(
        self, prediction: str, references: Sequence[str], facts: Mapping[str, Any] | None = None, kind: str = ""
    ) -> float:
        """In 0..1; the facts have the ``answer_format``."""
        form = str((facts or {}).get("answer_format") or "Str")
        return max(mmlongbench_score(prediction, one, form, self.protocol) for one in references)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric, and per answer what is said of its question."""
        super().update(preds, target, valid, types, facts)
        sums = [[0, 0], [0, 0]]
        for said, references, found in zip(preds, target, self.verdicts, strict=True):
            if found.score is None:
                continue
            right = references if isinstance(references, str) else references[0]
            score = round(found.score * SCALE)
            for counts, text in zip(sums, (right, said), strict=True):
                if cleaned(text) != NOT_ANSWERABLE:
                    # of what was answered, official adds the scores of the answerable questions alone
                    unlucky = counts is sums[1] and self.protocol == "official" and cleaned(right) == NOT_ANSWERABLE
                    counts[0] += 0 if unlucky else score
                    counts[1] += 1
        self.answerable = self.answerable + torch.tensor(sums[0], device=self.device)
        self.answered = self.answered + torch.tensor(sums[1], device=self.device)

    def compute(self) -> dict[str, Tensor]:
        """``accuracy``, ``f1``, and what every mean score has."""
        found = super().compute()
        (score, count), (hits, answered) = self.answerable.tolist(), self.answered.tolist()
        recall, precision = ratio(score, count * SCALE), ratio(hits, answered * SCALE)
        f1 = torch.nan_to_num(ratio(2 * float(recall) * float(precision), float(recall + precision)))
        f1 = f1 if sum(self.count.tolist()) else ratio(0, 0)
        unresolved = found.pop("unresolved")
        return {**found, "f1": f1, "unresolved": unresolved}
