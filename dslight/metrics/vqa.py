"""VQA accuracy (VQAv2, OK-VQA, TextVQA, VizWiz): the mean leave-one-out soft score of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dslight.metrics.base import MeanScore, check_protocol
from dslight.metrics.functional.vqa import VQA_PROTOCOLS, VQAProtocol, vqa_soft_score


class VQAAccuracy(MeanScore):
    """Soft accuracy against the human answers of each question (ten in the published sets; any number works).

    Args:
        protocol: whose evaluator: ``official`` for VQAv2, ``m4c`` for TextVQA and VizWiz; the others reproduce the
            numbers of evaluation kits (see ``dslight.metrics.functional.vqa``).
        types: question types of the breakdown, for VQAv2 ``("yes/no", "number", "other")``.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.VQAAccuracy()
        >>> metric.update(["red", "blue"], [["red"] * 8 + ["pink"] * 2, ["green"] * 10])
        >>> float(metric.compute()["vqa_accuracy"])
        0.5
    """

    headline = "vqa_accuracy"

    def __init__(self, protocol: VQAProtocol = "official", types: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, VQA_PROTOCOLS)
        self.protocol: VQAProtocol = protocol

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """The soft score of one answer, in 0..1."""
        return vqa_soft_score(prediction, references, self.protocol)
