"""Mean scores whose judgement needs what the shard says of a question besides its references."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dslight.metrics.base import MeanScore

if TYPE_CHECKING:
    from dslight.types import Question


class FactScore(MeanScore):
    """A mean score; a row is judged by its ``Question.extra`` too."""

    @abstractmethod
    def score(
        self, prediction: str, references: Sequence[str], facts: Mapping[str, Any] | None = None, kind: str = ""
    ) -> float | None:
        """As of every mean score, given what is said of the question, and its type."""

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric, and per answer what is said of its question."""
        known, kinds = facts or [{}] * len(preds), types or [""] * len(preds)
        rows = self._rows(preds, target, valid, types)
        self._add(
            [(row, kind, self.score(pred, refs, known[row], kinds[row])) for row, pred, refs, kind in rows], preds
        )

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        return {"facts": [question.extra for question in questions]}
