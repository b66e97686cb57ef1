"""Intervals of numbers that are no means over questions: the F1 of POPE and the points of MME.

Pictures are resampled with all their questions, as for means, and the number is computed anew from each draw: F1 of
every subset and their mean, accuracy and accuracy+ of every task and their sum. A number that cannot be computed from
the answers (another protocol's) has no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dslight.metrics.functional.yes_no import MME_COGNITION, MME_PERCEPTION
from dslight.report import forms
from dslight.report.questions import Answers
from dslight.report.statistics import CONFIDENCE, Limits

_RESAMPLES = 2000
_CLOSE = 5e-4
"""A number is that of the answers if it is this close to it, in parts of its largest."""

_Weights = NDArray[np.float64]
"""``[N, C]``: how often each picture is in each draw."""


def interval(runs: Sequence[Answers], headline: str, value: float, seed: int = 0) -> Limits | None:
    """From where to where the mean of a number over these runs may lie; ``None`` where it cannot be computed.

    Args:
        runs: the answers of the seeds of an arm, to the same questions.
        headline: key of the number: its last part says which one it is.
        value: the number itself.
        seed: of the draws.
    """
    name = headline.rpartition("/")[2]
    if name not in _NUMBERS or not runs or any(run.ids != runs[0].ids for run in runs):
        return None
    make, largest = _NUMBERS[name]
    rows = [run.lines(run.ids) for run in runs]
    clusters = runs[0].clusters(runs[0].ids)
    count = int(clusters.max()) + 1 if len(clusters) else 0
    if not count or any(row.score is None or not row.references for lines in rows for row in lines):
        return None
    generator = np.random.default_rng(seed)
    drawn = np.stack([np.bincount(generator.integers(0, count, count), minlength=count) for _ in range(_RESAMPLES)])
    weights = np.vstack([np.ones(count), drawn]).astype(np.float64)
    numbers = np.mean([make(lines, clusters, weights) for lines in rows], axis=0)
    if abs(numbers[0] - value) > _CLOSE * largest:
        return None
    low, high = np.nanquantile(numbers[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _f1(lines: Sequence[forms.Line], clusters: NDArray[np.int64], weights: _Weights) -> NDArray[np.float64]:
    """The mean over subsets; an answer that is neither is a wrong "no" where "yes" was right."""
    subsets = list(dict.fromkeys(row.type for row in lines))
    scores = []
    for subset in subsets:
        counts = np.zeros((3, weights.shape[1]))  # true positives, false positives, missed
        for row, cluster in zip(lines, clusters, strict=True):
            if row.type == subset:
                right, positive = row.score == 1.0, str((row.references or [""])[0]).strip().lower() == "yes"
                if right and positive:
                    counts[0, cluster] += 1
                elif not right and (positive or not row.unresolved):
                    counts[2 if positive else 1, cluster] += 1
        hits, wrong, missed = weights @ counts[0], weights @ counts[1], weights @ counts[2]
        asked = 2 * hits + wrong + missed
        scores.append(np.divide(2 * hits, asked, out=np.zeros_like(hits), where=asked > 0))
    return np.mean(scores, axis=0)


def _mme(tasks: Sequence[str]) -> Callable[..., NDArray[np.float64]]:
    def points(lines: Sequence[forms.Line], clusters: NDArray[np.int64], weights: _Weights) -> NDArray[np.float64]:
        total = np.zeros(len(weights))
        for task in tasks:
            right, asked = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
            for row, cluster in zip(lines, clusters, strict=True):
                if row.type == task:
                    right[cluster] += row.score or 0.0
                    asked[cluster] += 1
            whole = asked == 2  # questions about an image
            images = weights @ whole
            safe = np.where(images > 0, images, np.nan)
            plain, both = weights @ (right * whole) / (2 * safe), weights @ ((right == 2) & whole) / safe
            total += np.nan_to_num(100 * (plain + both))
        return total

    return points


_NUMBERS: dict[str, tuple[Callable[..., NDArray[np.float64]], float]] = {
    "f1": (_f1, 1.0),
    "total": (_mme((*MME_PERCEPTION, *MME_COGNITION)), 2800.0),
    "perception": (_mme(MME_PERCEPTION), 2000.0),
    "cognition": (_mme(MME_COGNITION), 800.0),
}
"""By the last part of the key: how it is made, and the most that it can be."""
