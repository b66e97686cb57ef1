"""What a score would be with other questions of the kind, and with other seeds: intervals and tests for a report.

Every run of an arm answers the same questions, so the scores of an arm are a table of seeds x questions. Two claims can
be made from it, and they have intervals of their own:

* ``questions``: how *these trained models* do on questions like these. The questions are resampled with replacement,
  one draw for all seeds and arms (the percentile bootstrap). Two more questions are among them, one with the lowest
  possible score and one with the highest (after Agresti and Min 2005): of 500 questions that all models get right
  one cannot know that they get every question right, which a bootstrap of those alone would say.
* ``retrained``: how *the method* does when it is trained again. To every resampled mean a draw of the seeds' error is
  added, (standard deviation of the seeds' means) / sqrt(seeds) times Student's t with seeds - 1 degrees of freedom.

Questions about one picture stand or fall together, so they are drawn together: what is resampled are the pictures, each
with all its questions (the cluster bootstrap; its standard error is the clustered one, Miller 2024). Where every
question has a picture of its own, that is the same as resampling questions.

Decided here: seeds are not resampled. A bootstrap of two or three runs stays between the lowest and the highest of them
and so covers the truth in only 50 or 75 % of experiments; Student's t is exact when the seeds are all that varies, and
what is left of it is the questions' bootstrap when they do not vary. In between the interval errs on the wide side, as
the noise of a seed's own answers is in both terms. It needs two seeds; with two it is very wide, which is the truth. It
ends where scores do: the truth is never beyond, so that cutting it there costs no coverage.

An arm is compared with another on the differences per seed and question (the paired bootstrap), and the two-sided p is
twice the share of resampled differences on the other side of zero: p < 0.05 and an interval without zero say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
_CHUNK = 250_000  # question numbers drawn at a time, which stay in the cache

Limits = tuple[float, float]
SCORE: Limits = (0.0, 1.0)
DIFFERENCE: Limits = (-1.0, 1.0)
"""What a question's score, and the difference of two, lie between."""

Scores = NDArray[np.float64]
"""``[R, Q]``: a row per seed, a column per question."""


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high``, and the two-sided ``p`` of the hypothesis that the value is zero."""

    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Estimate:
    """A mean of scores, or of differences of scores.

    Attributes:
        value: the mean over seeds and questions.
        over_questions: its interval for these trained models and other questions.
        over_seeds: its interval for other questions and other seeds; ``None`` for a single seed.
        seeds, questions: how many there are.
        clusters: pictures that the questions are about.
    """

    value: float
    over_questions: Interval
    over_seeds: Interval | None
    seeds: int
    questions: int
    clusters: int = 0


def estimates(
    tables: Sequence[Any],
    limits: Limits = SCORE,
    resamples: int = RESAMPLES,
    seed: int = 0,
    clusters: Any = None,
) -> list[Estimate]:
    """The means of tables of scores about the same Q questions, with intervals whose draws they share.

    Args:
        tables: ``[R, Q]`` each, scores or differences of them.
        limits: between which a score (:data:`SCORE`) or a difference (:data:`DIFFERENCE`) lies.
        resamples: draws of the bootstrap.
        seed: the same seed gives the same numbers.
        clusters: ``[Q]``, from 0: which questions are about the same picture; default: none.

    Raises:
        ValueError: there is no question, or a score is not finite, or beyond the limits.
    """
    if not tables:
        return []
    tables = [np.asarray(table, dtype=np.float64) for table in tables]
    runs = np.concatenate(tables)
    if not runs.shape[1]:
        raise ValueError("scores: there is no question to resample")
    if not ((limits[0] <= runs) & (runs <= limits[1])).all():  # nan is not
        raise ValueError(f"scores: some are not in {limits[0]:g}..{limits[1]:g}; leave out what was not scored")
    count = runs.shape[1]
    groups = np.arange(count) if clusters is None else np.asarray(clusters, dtype=np.int64)
    pictures = int(groups.max()) + 1
    # the two that are added weigh as much as a picture does
    size = max(1, round(count / pictures))
    ends = np.repeat(np.tile(limits, (len(runs), 1)), size, axis=1)
    groups = np.concatenate([groups, np.repeat([pictures, pictures + 1], size)])
    means = resampled_means(np.hstack([runs, ends]), resamples, seed, groups)
    found, row = [], 0
    for table in tables:
        # the mean over the seeds of each resample of the questions
        drawn = means[:, row : row + len(table)].mean(axis=1)
        row += len(table)
        value = float(table.mean())
        retrained = drawn + _seed_errors(table, resamples, seed) if len(table) > 1 else None
        found.append(
            Estimate(
                value,
                _interval(drawn, limits),
                None if retrained is None else _interval(retrained, limits),
                len(table),
                table.shape[1],
                pictures,
            )
        )
    return found


def resampled_means(scores: Scores, resamples: int, seed: int, clusters: NDArray[np.int64] | None = None) -> Scores:
    """``[resamples, K]``: the means of K runs over questions drawn with replacement, the same draw for all runs.

    With ``clusters`` ``[Q]``, numbered from 0, all questions of a cluster are drawn together.
    """
    sizes = np.ones(scores.shape[1])
    if clusters is not None and len(clusters) != int(clusters.max()) + 1:
        sizes = np.bincount(clusters).astype(np.float64)
        scores = np.stack([np.bincount(clusters, weights=run).astype(np.float64) for run in scores])
    questions = scores.shape[1]
    generator = np.random.default_rng(seed)
    at_a_time = max(1, _CHUNK // questions)
    means = np.empty((resamples, len(scores)))
    for start in range(0, resamples, at_a_time):
        count = min(at_a_time, resamples - start)
        drawn = generator.integers(0, questions, (count, questions), dtype=np.int32)
        drawn += np.arange(count, dtype=np.int32)[:, None] * questions
        weights = np.bincount(drawn.ravel(), minlength=count * questions).reshape(count, questions)
        weights = weights.astype(np.float64)
        means[start : start + count] = weights @ scores.T / (weights @ sizes)[:, None]
    return means.round(12)  # so that a resample in which two models do equally well is a tie, not 1e-17


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test, from the numbers of questions that only one of two models gets right."""
    from scipy.stats import binomtest

    both = only_first + only_second
    return float(binomtest(only_first, both).pvalue) if both else 1.0


def holm(values: Sequence[float]) -> list[float]:
    """The p values of a family of comparisons, adjusted by Holm's step-down method, in the given order.

    Rejecting those below 0.05 keeps the chance of even one false rejection in the family below 0.05.
    """
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(values, dtype=np.float64)[order] * factors))
    result = np.empty(len(values))
    result[order] = adjusted
    return result.tolist()


def _seed_errors(table: Scores, resamples: int, seed: int) -> NDArray[np.float64]:
    """``[resamples]``: errors that a mean over so few seeds may have; t's quantiles themselves, in random order."""
    from scipy.stats import t

    quantiles = t.ppf((np.arange(resamples) + 0.5) / resamples, len(table) - 1)
    order = np.random.default_rng([seed, 1]).permutation(resamples)
    return table.mean(axis=1).std(ddof=1) / np.sqrt(len(table)) * quantiles[order]


def _interval(drawn: NDArray[np.float64], limits: Limits) -> Interval:
    low, high = np.clip(np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]), *limits)
    # + 1: the data themselves are one of the draws, so that p is never zero
    beyond = 1 + min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    return Interval(float(low), float(high), float(min(1.0, 2 * beyond / (len(drawn) + 1))))
