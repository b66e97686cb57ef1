"""OCRBench v2's two numbers, English and Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dslight.metrics.base import SCALE, ratio
from dslight.metrics.facts import FactScore
from dslight.metrics.functional.ocrbench_v2 import GROUPS, ocrbench_v2_score
from dslight.metrics.functional.texts import missing

if TYPE_CHECKING:
    from dslight.types import Question


class OCRBenchV2Score(FactScore):
    """The mean over a language's skills of the mean score of the questions that ask for each.

    Args:
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> from dslight.metrics.ocrbench_v2 import OCRBenchV2Score
        >>> metric = OCRBenchV2Score()
        >>> kinds = ["text recognition en", "text recognition en", "math QA en", "cognition VQA cn"]
        >>> metric.update(["stop", "go", "4", "5"], [["STOP"], ["no"], ["4"], ["5"]], types=kinds)
        >>> float(metric.compute()["en_overall"]), float(metric.compute()["cn_overall"])
        (0.75, 1.0)
    """

    headline = "en_overall"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__([kind for kinds in GROUPS.values() for kind in kinds], **kwargs)

    def unready(self) -> str:
        """What has to be installed first: texts are compared with nltk and its WordNet, tables are read by lxml."""
        return missing()

    def score(
        self, prediction: str, references: Sequence[str], facts: Mapping[str, Any] | None = None, kind: str = ""
    ) -> float | None:
        """See ``ocrbench_v2_score``; the facts have ``eval`` and ``bbox``, and the question's text as ``asked``."""
        facts = facts or {}
        return ocrbench_v2_score(prediction, references, kind, facts, str(facts.get("asked", "")))

    def compute(self) -> dict[str, Tensor]:
        """``en_overall``, ``cn_overall``; per skill ``skill/...``, per kind of question ``score/...``; ``unresolved``.

        A skill without questions is left out.
        """
        found = super().compute()
        plain = {key.replace(self.headline, "score"): value for key, value in found.items() if key != self.headline}
        total, count = self.total.tolist(), self.count.tolist()
        skills: dict[str, Tensor] = {}
        for skill, kinds in GROUPS.items():
            rows = [self.types.index(kind) for kind in kinds]
            skills[skill] = ratio(sum(total[row] for row in rows), sum(count[row] for row in rows) * SCALE)
        result = {}
        for language in ("en", "cn"):
            values = [float(value) for skill, value in skills.items() if skill.startswith(language)]
            values = [value for value in values if value == value]
            result[f"{language}_overall"] = ratio(sum(values), len(values))
        return result | {f"skill/{skill}": value for skill, value in skills.items()} | plain

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        return {"facts": [{"asked": question.text, **question.extra} for question in questions]}
