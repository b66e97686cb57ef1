"""How many questions and seeds a difference needs to be seen: the planning of an ablation from one that is there.

A difference of two arms is called seen if its test at the level of 5 % finds it in 80 % of repetitions. That takes a
difference of z = 1.96 + 0.84 standard errors (Cohen 1988, Miller 2024). Standard errors are those of the paired
differences: over questions, clustered by picture, and over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from dslight.errors import UserError
from dslight.report.benchmarks import Benchmarks
from dslight.report.questions import aligned
from dslight.report.rows import Comparison

LEVEL, POWER = 0.05, 0.8
Z = NormalDist().inv_cdf(1 - LEVEL / 2) + NormalDist().inv_cdf(POWER)


@dataclass(frozen=True)
class Needed:
    """What a comparison can see.

    Attributes:
        arm, base, source: that are compared.
        questions, seeds: there are.
        smallest: difference, in 0..1, that these questions see with these trained models.
        wanted_questions: for the difference that was asked for.
        wanted_seeds: for it, over seeds alone; ``None`` for a single seed, which says nothing of others.
    """

    arm: str
    base: str
    source: str
    questions: int
    seeds: int
    smallest: float
    wanted_questions: int
    wanted_seeds: int | None


def clustered_error(scores: Any, clusters: Any) -> float:
    """The standard error of a mean of scores ``[Q]``, of which those of a cluster depend on each other.

    The root of the sum over clusters of (the sum of their deviations from the mean) squared, over Q: of clusters of one
    question each it is the usual one (with Q in place of Q - 1).
    """
    scores = np.asarray(scores, dtype=np.float64)
    sums = np.bincount(np.asarray(clusters, dtype=np.int64), weights=scores - scores.mean())
    return float(np.sqrt((sums**2).sum()) / len(scores))


def needed(comparison: Comparison, difference: float) -> Needed:
    """What it takes to see ``difference``, in 0..1, between these two arms."""
    ours, theirs = comparison.ours, comparison.theirs
    ids, scores = aligned([*ours, *theirs])
    differences = scores[: len(ours)] - scores[len(ours) :]
    error = clustered_error(differences.mean(axis=0), ours[0].clusters(ids))
    questions = len(ids)
    seeds = None
    if len(ours) > 1:
        spread = float(differences.mean(axis=1).std(ddof=1))
        seeds = max(2, math.ceil((Z * spread / difference) ** 2))
    return Needed(
        comparison.arm,
        comparison.base,
        comparison.source,
        questions,
        len(ours),
        Z * error,
        max(1, math.ceil(questions * (Z * error / difference) ** 2)),
        seeds,
    )


def lines(made: Benchmarks, points: float) -> Sequence[str]:
    """In words, for a difference of so many points of 100."""
    if not 0 < points <= 100:
        raise UserError(f"--power: {points}; a difference in points, above 0 and up to 100, is needed")
    found = [needed(one, points / 100) for one in made.comparisons]
    if not found:
        return ["--power: there is nothing to compare; name the arm that others are compared with by --baseline"]
    said = [f"What it takes to see a difference of {points:g} points in {POWER:.0%} of repetitions, at p < {LEVEL}:"]
    for one in found:
        seeds = "" if one.wanted_seeds is None else f" and {one.wanted_seeds:,} seeds"
        said.append(
            f"- {one.arm} against {one.base}, {one.source}: {one.wanted_questions:,} questions{seeds} (the "
            f"{one.questions:,} that were asked see {100 * one.smallest:.1f} points)"
        )
    return said
