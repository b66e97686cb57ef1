"""ChartQAPro's relaxed accuracy as a metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from dslight.metrics.base import check_protocol
from dslight.metrics.facts import FactScore
from dslight.metrics.functional.chartqapro import EXACT, chartqapro_match

ChartQAProProtocol = Literal["official", "lmms_eval"]
CHARTQAPRO_TYPES = ("Factoid", "Conversational", "Hypothetical", "Fact Checking", "Multi Choice")


class ChartQAProAccuracy(FactScore):
    """The mean score of answers about charts (see ``dslight.metrics.functional.chartqapro``).

    Args:
        types: of the breakdown.
        protocol: ``official``: its script, which means to compare the answers to fact-checking and multiple-choice
            questions exactly, and does not (so does VLMEvalKit); ``lmms_eval``: with that.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.ChartQAProAccuracy()
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
        self, prediction: str, references: Sequence[str], facts: Mapping[str, Any] | None = None, kind: str = ""
    ) -> float:
        """In 0..1, by the nearest reference; ``years`` of the facts flags the items of a list that are years."""
        years, exact = (facts or {}).get("years") or (), self.protocol == "lmms_eval" and kind in EXACT
        return max(chartqapro_match(prediction, reference, years, exact) for reference in references)
