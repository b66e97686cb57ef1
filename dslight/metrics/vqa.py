"""VQA accuracy (VQAv2, OK-VQA, TextVQA, VizWiz): the mean leave-one-out soft score of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dslight.metrics.base import SCALE, MeanScore, check_protocol, ratio
from dslight.metrics.functional.vqa import VQA_PROTOCOLS, VQAProtocol, vqa_soft_score


class VQAAccuracy(MeanScore):
    """Soft accuracy against the human answers of each question (ten in the published sets; any number works).

    Args:
        protocol: whose evaluator (see ``dslight.metrics.functional.vqa``): ``lmms_eval`` for VQAv2 and ``m4c`` for
            TextVQA and VizWiz are what papers report; ``official`` does not normalise against references that are all
            alike.
        beside: another protocol whose score is computed as well, as ``vqa_accuracy_<beside>``.
        types: question types of the breakdown, for VQAv2 ``("yes/no", "number", "other")``.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.VQAAccuracy()
        >>> metric.update(["red", "blue"], [["red"] * 8 + ["pink"] * 2, ["green"] * 10])
        >>> float(metric.compute()["vqa_accuracy"])
        0.5
    """

    headline = "vqa_accuracy"
    other: Tensor

    def __init__(
        self,
        protocol: VQAProtocol = "official",
        types: Sequence[str] | None = None,
        beside: VQAProtocol | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, VQA_PROTOCOLS)
        self.protocol: VQAProtocol = protocol
        self.beside: VQAProtocol | None = None if beside == protocol else beside
        if self.beside is not None:
            check_protocol(self.beside, VQA_PROTOCOLS)
            self._add_counts("other")

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """The soft score of one answer, in 0..1."""
        return vqa_soft_score(prediction, references, self.protocol)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric."""
        super().update(preds, target, valid, types)
        if self.beside is not None:
            rows = self._rows(preds, target, valid, types)
            scores = [vqa_soft_score(prediction, references, self.beside) for _, prediction, references, _ in rows]
            self.other = self.other + sum(round(score * SCALE) for score in scores)

    def compute(self) -> dict[str, Tensor]:
        """As for every mean score; with ``beside`` also ``vqa_accuracy_<beside>``."""
        result = super().compute()
        if self.beside is None:
            return result
        return result | {f"{self.headline}_{self.beside}": ratio(self.other, torch.sum(self.count) * SCALE)}
