"""MathVista's accuracy, with its own normalisation and without a language model that extracts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dslight.metrics.facts import FactScore
from dslight.metrics.functional.mathvista import mathvista_match


class MathVistaAccuracy(FactScore):
    """The share of answers that mean the right option, number or list (see ``dslight.metrics.functional.mathvista``).

    Args:
        types: of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.MathVistaAccuracy()
        >>> metric.update(["It is 1.25 m."], [["1.2"]], facts=[{"answer_type": "float", "precision": 1}])
        >>> float(metric.compute()["accuracy"])
        1.0
    """

    headline = "accuracy"

    def score(
        self, prediction: str, references: Sequence[str], facts: Mapping[str, Any] | None = None, kind: str = ""
    ) -> float | None:
        """1.0 or 0.0; ``None`` where nothing could be extracted. The facts are ``choices``, ``answer_type`` and
        ``precision``.
        """
        facts = facts or {}
        return mathvista_match(
            prediction,
            references,
            facts.get("choices") or (),
            facts.get("answer_type") or "text",
            facts.get("precision"),
        )
