"""ChartQAPro's relaxed accuracy as a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from dslight.metrics.base import MeanScore, check_protocol
from dslight.metrics.functional.chartqapro import EXACT, chartqapro_match

if TYPE_CHECKING:
    from dslight.types import Question

ChartQAProProtocol = Literal["official", "lmms_eval"]
CHARTQAPRO_TYPES = ("Factoid", "Conversational", "Hypothetical", "Fact Checking", "Multi Choice")


class ChartQAProAccuracy(MeanScore):
    """The mean score of answers about charts (see ``dslight.metrics.functional.chartqapro``).

    Args:
        types: of the breakdown.
        protocol: ``official``: its script, which means to compare the answers to fact-checking and multiple-choice
            questions exactly, and does not (so does VLMEvalKit); ``lmms_eval``: with that.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> from dslight.metrics.charts import ChartQAProAccuracy
        >>> metric = ChartQAProAccuracy()
        >>> metric.update(["['3', 'blue']"], [["[3, blue]"]], types=["Factoid"])
        >>> float(metric.compute()["relaxed_accuracy"])
        1.0
    """

    headline = "relaxed_accuracy"

    def __init__(
        self, types: Sequence[str] | None = CHARTQAPRO_TYPES, protocol: ChartQAProProtocol = "official", **kwargs: Any
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, get_args(ChartQAProProtocol))
        self.protocol: ChartQAProProtocol = protocol

    def score(
        self, prediction: str, references: Sequence[str], years: Sequence[str] = (), exact: bool = False
    ) -> float:
        """In 0..1, by the nearest reference."""
        return max(chartqapro_match(prediction, reference, years, exact) for reference in references)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
        facts: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric, and per answer the ``years`` flags of its items."""
        scored = []
        for row, pred, refs, kind in self._rows(preds, target, valid, types):
            years = (facts[row].get("years") or ()) if facts is not None else ()
            exact = self.protocol == "lmms_eval" and types is not None and types[row] in EXACT
            scored.append((row, kind, self.score(pred, refs, years, exact)))
        self._add(scored, preds)

    def _more(self, questions: Sequence[Question]) -> dict[str, Any]:
        """The flags are those of the shard."""
        return {"facts": [question.extra for question in questions]}
