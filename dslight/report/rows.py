"""A row of a report: an arm at a point of the grid, its seeds summed up on one score, next to the baseline.

Decided here: the spread is the sample standard deviation over seeds and is left out for a single seed; a difference to
the baseline is taken over the seeds that both have, so that a missing run does not shift it; scores of different
metrics are never subtracted.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dslight.report.questions import Answers
from dslight.report.runs import Result
from dslight.report.statistics import Estimate, Interval

LIKELY, RETRAINED = "†", "‡"
"""Marks of a difference: p < 0.05 over other questions; and over other questions and other seeds."""

SAME = 5e-4
"""A score is the questions' mean score if it is this close to it in every run."""


@dataclass(frozen=True)
class Unit:
    """How scores are shown: a fraction as percent, anything else as it is."""

    factor: float
    name: str
    digits: str = ".1f"

    def __call__(self, score: float | None, signed: bool = False) -> str:
        """The score as text; a dash for none."""
        text = "–" if score is None else f"{self.factor * score:{'+' if signed else ''}{self.digits}}"
        return text.replace("-", "−")

    def interval(self, interval: Interval, signed: bool = False) -> str:
        """``[15.9, 18.4]``."""
        return f"[{self(interval.low, signed)}, {self(interval.high, signed)}]"


PERCENT = Unit(100.0, "%")


@dataclass(frozen=True)
class Comparison:
    """Two arms on the questions of a source, over the seeds that both have answers of.

    Attributes:
        arm, base: their labels.
        seeds: one for each pair of runs.
        ours, theirs: the answers of the arm and of the base, by seed.
        difference: of the mean score per question.
        p_holm: of ``difference.over_questions`` in its family, if it has one.
    """

    arm: str
    base: str
    source: str
    seeds: tuple[int | None, ...]
    ours: tuple[Answers, ...]
    theirs: tuple[Answers, ...]
    difference: Estimate
    p_holm: float | None = None


@dataclass(frozen=True)
class Row:
    """The runs of one arm at one setting of the grid, which differ by seed alone, judged by one metric.

    Attributes:
        results: the finished runs.
        unit: how their scores are shown, alike for all rows of a metric.
        base: the runs of the baseline that they are compared with, if there are any.
        estimate: of the mean score per question; ``None`` without per-question files.
        comparison: with the baseline, question by question.
    """

    results: tuple[Result, ...]
    unit: Unit
    base: tuple[Result, ...] = ()
    estimate: Estimate | None = None
    comparison: Comparison | None = None

    @property
    def arm(self) -> str:
        """Its name in the ablation."""
        return self.results[0].arm

    @property
    def label(self) -> str:
        """The arm, and the setting where there are several."""
        return self.results[0].label

    @property
    def headline(self) -> str:
        """The metric of the scores."""
        return self.results[0].headline

    @property
    def source(self) -> str:
        """Whose metric it is; "" for none."""
        return self.headline.split("/")[1] if self.headline.startswith("val/") else ""

    @property
    def scores(self) -> list[float]:
        """Those of the runs that have one."""
        return [result.accuracy for result in self.results if result.accuracy is not None]

    @property
    def mean(self) -> float | None:
        """Mean score over the seeds."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds; ``None`` for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def pairs(self) -> dict[int | None, tuple[float, float]]:
        """Seed -> score and the baseline's score, for the seeds for which both have one."""
        base = {result.seed: result.accuracy for result in self.base if result.accuracy is not None}
        return {
            result.seed: (result.accuracy, base[result.seed])
            for result in self.results
            if result.accuracy is not None and result.seed in base
        }

    @property
    def delta(self) -> float | None:
        """Mean difference to the baseline over those seeds; ``None`` without one to compare with."""
        return statistics.fmean(ours - theirs for ours, theirs in self.pairs.values()) if self.pairs else None

    @property
    def is_mean(self) -> bool:
        """Whether the score is the mean score per question, of which the intervals are."""
        # nan, the mean of a file without scores, is not close to anything: an interval needs scores anyway
        return all(
            abs(result.accuracy - result.answers[self.source].mean) < SAME
            for result in self.results
            if result.accuracy is not None and self.source in result.answers
        )

    @property
    def mark(self) -> str:
        """How sure the difference to the baseline is."""
        if self.comparison is None or not self.is_mean:
            return ""
        difference = self.comparison.difference
        if difference.over_questions.p >= 0.05:
            return ""
        return RETRAINED if difference.over_seeds is not None and difference.over_seeds.p < 0.05 else LIKELY

    @property
    def of_base(self) -> Row:
        """The baseline's row."""
        return Row(self.base, self.unit)

    def mean_of(self, key: str) -> float | None:
        """Mean over the runs of a number of ``result.json``."""
        values = [value for result in self.results if (value := result.number(key)) is not None]
        return statistics.fmean(values) if values else None


def rows(results: Sequence[Result], baseline: str | None = None) -> list[Row]:
    """One row per arm, setting and metric, in the order of the runs. ``baseline`` names the arm to compare with."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault((result.arm, result.setting, result.headline), []).append(result)
    bases = {key[1:]: group for key, group in groups.items() if key[0] == baseline}
    table = []
    for (_, setting, headline), group in groups.items():
        # an arm without the grid's other keys still has the baseline of its own metric, if there is only one
        same_metric = [base for (_, base_headline), base in bases.items() if base_headline == headline]
        base = bases.get((setting, headline)) or (same_metric[0] if len(same_metric) == 1 else [])
        unit = unit_of([result for result in results if result.headline == headline])
        table.append(Row(tuple(group), unit, () if base is group else tuple(base)))
    return table


def unit_of(results: Sequence[Result]) -> Unit:
    """Percent when all scores are fractions, else the metric's own scale."""
    scores = [result.accuracy for result in results if result.accuracy is not None]
    return PERCENT if scores and all(0 <= score <= 1 for score in scores) else Unit(1.0, "")
