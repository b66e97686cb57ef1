"""Metrics of free-text answers: each the mean over questions of one pure rule of ``dslight.metrics.functional``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dslight.metrics.base import MeanScore, check_protocol
from dslight.metrics.functional.anls import ANLS_PROTOCOLS, ANLSProtocol, anls_score
from dslight.metrics.functional.exact_match import EXACT_MATCH_PROTOCOLS, ExactMatchProtocol, exact_match
from dslight.metrics.functional.mmmu_open import mmmu_open_match
from dslight.metrics.functional.relaxed_accuracy import RELAXED_PROTOCOLS, RelaxedProtocol, relaxed_match
from dslight.metrics.functional.substring import SUBSTRING_PROTOCOLS, SubstringProtocol, substring_match


class ANLS(MeanScore):
    """Average normalised Levenshtein similarity (DocVQA, InfographicVQA, ST-VQA).

    Args:
        threshold: similarities below it score 0.
        protocol: whose evaluator (see ``dslight.metrics.functional.anls``).
        types: question types of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.ANLS()
        >>> metric.update(["12 May"], [["12 may", "may 12"]])
        >>> float(metric.compute()["anls"])
        1.0
    """

    headline = "anls"

    def __init__(
        self,
        threshold: float = 0.5,
        protocol: ANLSProtocol = "rrc",
        types: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, ANLS_PROTOCOLS)
        self.threshold = threshold
        self.protocol: ANLSProtocol = protocol

    def score(self, prediction: str, references: Sequence[str]) -> float | None:
        """The similarity of one answer, in 0..1; ``None`` where the protocol's code raises."""
        return anls_score(prediction, references, self.protocol, self.threshold)


class ExactMatch(MeanScore):
    """The share of answers that equal a reference (GQA: ``types=("binary", "open")``).

    Args:
        protocol: whose normalisation (see ``dslight.metrics.functional.exact_match``).
        types: question types of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.ExactMatch()
        >>> metric.update(["4", "5"], [["4"], ["6"]])
        >>> float(metric.compute()["exact_match"])
        0.5
    """

    headline = "exact_match"

    def __init__(
        self, protocol: ExactMatchProtocol = "strict", types: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, EXACT_MATCH_PROTOCOLS)
        self.protocol: ExactMatchProtocol = protocol

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1.0 or 0.0."""
        return exact_match(prediction, references, self.protocol)


class RelaxedAccuracy(MeanScore):
    """Accuracy with a relative tolerance for numbers (ChartQA).

    Args:
        tolerance: the allowed relative error.
        protocol: whose evaluator (see ``dslight.metrics.functional.relaxed_accuracy``).
        types: question types of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.RelaxedAccuracy()
        >>> metric.update(["102", "110"], [["100"], ["100"]])  # within 5 %
        >>> float(metric.compute()["relaxed_accuracy"])
        0.5
    """

    headline = "relaxed_accuracy"

    def __init__(
        self,
        tolerance: float = 0.05,
        protocol: RelaxedProtocol = "pix2struct",
        types: Sequence[str] | None = ("human", "augmented"),
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, RELAXED_PROTOCOLS)
        self.tolerance = tolerance
        self.protocol: RelaxedProtocol = protocol

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1.0 or 0.0."""
        return relaxed_match(prediction, references, self.protocol, self.tolerance)


class MMMUOpenAccuracy(MeanScore):
    """Accuracy on the open questions of MMMU alone; ``MultipleChoiceAccuracy(protocol="mmmu")`` scores the mixed set.

    Args:
        types: subjects or domains of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.MMMUOpenAccuracy()
        >>> metric.update(["So the answer is 3.5"], [["3.5"]])
        >>> float(metric.compute()["accuracy"])
        1.0
    """

    headline = "accuracy"

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """1.0 or 0.0."""
        return mmmu_open_match(prediction, references)


class SubstringAccuracy(MeanScore):
    """The share of answers in which a reference occurs (OCRBench, where it is given times 1000).

    Args:
        protocol: whose evaluator (see ``dslight.metrics.functional.substring``).
        ignore_spaces_types: types whose answers are compared with case and without spaces.
        types: sources of the breakdown; with ``None``, ``ignore_spaces_types`` still needs the types given to
            ``update``.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.SubstringAccuracy()
        >>> metric.update(["it says STOP"], [["stop"]])
        >>> float(metric.compute()["accuracy"])
        1.0
    """

    headline = "accuracy"

    def __init__(
        self,
        protocol: SubstringProtocol = "deepstack_fork",
        ignore_spaces_types: Sequence[str] = ("HME100k",),
        types: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(protocol, SUBSTRING_PROTOCOLS)
        self.protocol: SubstringProtocol = protocol
        self.ignore_spaces_types = tuple(ignore_spaces_types)

    def score(self, prediction: str, references: Sequence[str], ignore_spaces: bool = False) -> float:
        """1.0 or 0.0."""
        return substring_match(prediction, references, self.protocol, ignore_spaces)

    def update(
        self,
        preds: Sequence[str],
        target: Sequence[Sequence[str] | str],
        valid: Sequence[bool] | None = None,
        types: Sequence[str] | None = None,
    ) -> None:
        """Add a batch; arguments as for every metric."""
        scored = [
            (row, kind, self.score(pred, refs, types is not None and types[row] in self.ignore_spaces_types))
            for row, pred, refs, kind in self._rows(preds, target, valid, types)
        ]
        self._add(scored, preds)
