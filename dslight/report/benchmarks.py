"""The numbers of a report by arm and benchmark: scores, differences to the baseline, and how sure they are.

Decided here:

* The number of a benchmark is its own (``headline``): the mean over seeds, and its difference over the seeds that both
  arms have. Where it is no mean over questions (F1 of POPE, accuracy+ of MME), an interval of the questions' mean score
  is not an interval of that number: it is given for what it is, and no mark is put on the number.
* Runs are paired by seed and question: the baseline's run of the same seed, the questions that all have a score for.
* Marks are per comparison. p values adjusted by Holm's method are of all comparisons of the table with the baseline.
"""

from __future__ import annotations

import statistics as builtin
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dslight.report.questions import Answers, aligned
from dslight.report.runs import Result
from dslight.report.statistics import RESAMPLES, Estimate, estimates, holm
from dslight.report.table import Row, Unit, unit_of

LIKELY, RETRAINED = "†", "‡"
"""Marks of a difference: p < 0.05 over other questions; and over other questions and other seeds."""

SAME = 5e-4
"""A benchmark's number is the questions' mean score if it is this close to it in every run."""


@dataclass(frozen=True)
class Comparison:
    """Two arms on the questions of a source, over the seeds that both have answers of.

    Attributes:
        arm, base: their labels.
        seeds: one for each pair of runs.
        ids: of the questions that all runs have a score for.
        ours, theirs: the answers of the arm and of the base, by seed.
        difference: of the mean score per question.
        p_holm: of ``difference.over_questions`` in its family, if it has one.
    """

    arm: str
    base: str
    source: str
    seeds: tuple[int | None, ...]
    ids: tuple[str, ...]
    ours: tuple[Answers, ...]
    theirs: tuple[Answers, ...]
    difference: Estimate
    p_holm: float | None = None


@dataclass(frozen=True)
class Cell:
    """An arm on a benchmark.

    Attributes:
        headline: the key of its number.
        unit: how it is shown.
        scores: one for each run that has one.
        delta: mean difference to the baseline, over the seeds that both have.
        estimate: of the mean score per question; ``None`` without per-question files.
        is_mean: whether the number is that mean.
        comparison: with the baseline, question by question.
    """

    headline: str
    unit: Unit
    scores: tuple[float, ...] = ()
    delta: float | None = None
    estimate: Estimate | None = None
    is_mean: bool = True
    comparison: Comparison | None = None

    @property
    def mean(self) -> float | None:
        """Mean of the benchmark's number over the runs."""
        return builtin.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the runs; ``None`` for fewer than two."""
        return builtin.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def mark(self) -> str:
        """How sure the difference to the baseline is."""
        if self.comparison is None or not self.is_mean:
            return ""
        difference = self.comparison.difference
        if difference.over_questions.p >= 0.05:
            return ""
        return RETRAINED if difference.over_seeds is not None and difference.over_seeds.p < 0.05 else LIKELY


@dataclass(frozen=True)
class Benchmarks:
    """Arms by benchmarks.

    Attributes:
        sources: the columns, in the order of the recipes.
        rows: the arms.
        cells: by row, then by source.
    """

    sources: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: tuple[dict[str, Cell], ...]

    @property
    def comparisons(self) -> list[Comparison]:
        """All that are made with the baseline."""
        return [cell.comparison for cells in self.cells for cell in cells.values() if cell.comparison is not None]

    @property
    def has_answers(self) -> bool:
        """Whether there are per-question files."""
        return any(cell.estimate is not None for cells in self.cells for cell in cells.values())

    def best(self, source: str) -> set[str]:
        """Labels of the rows with the highest number, as it is shown; none if all are alike."""
        shown = {
            row.label: round(cells[source].unit.factor * mean, 1)
            for row, cells in zip(self.rows, self.cells, strict=True)
            if source in cells and (mean := cells[source].mean) is not None
        }
        comparable = len({cells[source].headline for cells in self.cells if source in cells}) == 1
        if not comparable or len(set(shown.values())) < 2:
            return set()
        return {label for label, mean in shown.items() if mean == max(shown.values())}


def benchmarks(table: Sequence[Row], resamples: int = RESAMPLES) -> Benchmarks:
    """The numbers of all arms on all benchmarks."""
    results = [result for row in table for result in row.results]
    sources = tuple(dict.fromkeys(source for result in results for source in (*result.headlines, *result.answers)))
    units = {source: unit_of(result.score(source) for result in results) for source in sources}
    cells = [
        {source: cell for source in sources if (cell := _cell(row, source, units[source])) is not None} for row in table
    ]
    places = [(number, source) for number, row in enumerate(cells) for source in row]
    own = [aligned(found) if (found := _answers(table[number].results, source)) else None for number, source in places]
    for (number, source), found in zip(places, _estimates(own, resamples), strict=True):
        cells[number][source] = replace(cells[number][source], estimate=found)
    against = [(number, source) for number, source in places if table[number].base]
    compared = compare([(table[number], base_of(table[number]), source) for number, source in against], resamples)
    made = [(place, one) for place, one in zip(against, compared, strict=True) if one is not None]
    adjusted = holm([one.difference.over_questions.p for _, one in made])
    for ((number, source), one), p in zip(made, adjusted, strict=True):
        cells[number][source] = replace(cells[number][source], comparison=replace(one, p_holm=p))
    shown = {
        source for row in cells for source, cell in row.items() if cell.scores or cell.estimate is not None
    }  # a benchmark whose answers are judged elsewhere has neither
    return Benchmarks(tuple(source for source in sources if source in shown), tuple(table), tuple(cells))


def base_of(row: Row) -> Row:
    """The row of the baseline that a row is compared with."""
    return replace(row, label=row.base_label, results=row.base)


def compare(pairs: Sequence[tuple[Row, Row, str]], resamples: int = RESAMPLES) -> list[Comparison | None]:
    """Arms compared with others on sources, question by question; ``None`` where they share no answers."""
    runs = [_shared(row.results, other.results, source) for row, other, source in pairs]
    jobs = [_differences([ours for _, ours, _ in found], [theirs for *_, theirs in found]) for found in runs]
    compared: list[Comparison | None] = []
    for (row, other, source), found, job, difference in zip(
        pairs, runs, jobs, _estimates(jobs, resamples), strict=True
    ):
        if job is None or difference is None:
            compared.append(None)
            continue
        seeds, ours, theirs = zip(*found, strict=True)
        compared.append(Comparison(row.label, other.label, source, seeds, job[0], ours, theirs, difference))
    return compared


def _cell(row: Row, source: str, scale: Unit) -> Cell | None:
    having = [result for result in row.results if result.score(source) is not None or source in result.answers]
    if not having:
        return None
    headline = having[0].headlines.get(source, "")
    scores = [(result, score) for result in having if (score := result.score(source)) is not None]
    theirs = {
        result.seed: score
        for result in row.base
        if (score := result.score(source)) is not None and result.headlines.get(source, "") == headline
    }
    differences = [score - theirs[result.seed] for result, score in scores if result.seed in theirs]
    # nan, the mean of a file without scores, is not close to anything: an interval needs scores anyway
    is_mean = all(
        abs(score - result.answers[source].mean) < SAME for result, score in scores if source in result.answers
    )
    return Cell(
        headline,
        scale,
        tuple(score for _, score in scores),
        builtin.fmean(differences) if differences else None,
        is_mean=is_mean,
    )


_Table = tuple[tuple[str, ...], NDArray[np.float64]]
"""Ids ``[Q]`` and scores, or differences, ``[R, Q]``."""


def _answers(results: Sequence[Result], source: str) -> list[Answers]:
    return [result.answers[source] for result in results if source in result.answers]


def _shared(ours: Sequence[Result], theirs: Sequence[Result], source: str) -> list[tuple[int | None, Answers, Answers]]:
    """The answers of both by seed, for the seeds that both have answers of."""
    base = {result.seed: result.answers[source] for result in theirs if source in result.answers}
    return [
        (result.seed, result.answers[source], base[result.seed])
        for result in ours
        if source in result.answers and result.seed in base
    ]


def _differences(ours: Sequence[Answers], theirs: Sequence[Answers]) -> _Table | None:
    if not ours:
        return None
    ids, scores = aligned([*ours, *theirs])
    return ids, scores[: len(ours)] - scores[len(ours) :]


def _estimates(jobs: Sequence[_Table | None], resamples: int) -> list[Estimate | None]:
    """Of every table; those about the same questions share the draws."""
    by_questions: dict[tuple[str, ...], list[tuple[int, NDArray[np.float64]]]] = {}
    for number, job in enumerate(jobs):
        if job is not None and job[0]:
            by_questions.setdefault(job[0], []).append((number, job[1]))
    found: list[Estimate | None] = [None] * len(jobs)
    for same in by_questions.values():
        for (number, _), one in zip(same, estimates([table for _, table in same], resamples), strict=True):
            found[number] = one
    return found
