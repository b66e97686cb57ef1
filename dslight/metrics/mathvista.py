"""MathVista's accuracy, with its own normalisation and without a language model that extracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dslight.metrics.base import MeanScore
from dslight.metrics.functional.mathvista import mathvista_match

if TYPE_CHECKING:
    from dslight.types import Question


class MathVistaAccuracy(MeanScore):
    """The share of answers that mean the right option, number or list (see ``dslight.metrics.functional.mathvista``).

    Args:
        types: of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> from dslight.metrics.mathvista import MathVistaAccuracy
        >>> metric = MathVistaAccuracy()
        >>> metric.update(["It is 1.25 m."], [["1.2"]], facts=[{"answer_type": "float", "precision": 1}])
        >>> float(metric.compute()["accuracy"])
        1.0
    """

    headline = "accuracy"

    def score(self, prediction: str, references: Sequence[str], facts: Mapping[str, Any] | None = None) -> float | None:
        """1.0 or 0.0; ``None`` where nothing could be extracted."""
        facts = facts or {}
        return mathvista_match(
            prediction,
            references,
            facts.get("choices") or (),
            facts.get("answer_type") or "text",
            facts.get("precision"),
        )

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric, and per answer ``choices``, ``answer_type`` and ``precision``."""
        scored = [
            (row, kind, self.score(pred, refs, None if facts is None else facts[row]))
            for row, pred, refs, kind in self._rows(preds, target, valid, types)
        ]
        self._add(scored, preds)

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The facts are those of the shard."""
        return {"facts": [question.extra for question in questions]}
