"""The numbers of a report by arm and benchmark: scores, differences to the baseline, and how sure they are.

Decided here:

* The number of a benchmark is its own (``headline``): the mean over seeds, and its difference over the seeds that both
  arms have. Where it is no mean over questions (F1 of POPE, accuracy+ of MME), an interval of the questions' mean score
  is not an interval of that number: it is given for what it is, and no mark is put on the number.
* Runs are paired by seed and question: the baseline's run of the same seed, the questions that all have a score for.
* Marks are per comparison. p values adjusted by Holm's method are of all comparisons of the table with the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dslight.report.questions import Answers, aligned
from dslight.report.rows import Comparison, Row, rows
from dslight.report.runs import Result
from dslight.report.statistics import DIFFERENCE, RESAMPLES, SCORE, Estimate, Limits, estimates, holm


@dataclass(frozen=True)
class Benchmarks:
    """Arms by benchmarks.

    Attributes:
        sources: the columns, in the order of the recipes.
        rows: the arms, judged by their headlines.
        cells: by row, then by source: the same arm, judged by the number of that benchmark.
    """

    sources: tuple[str, ...]
    rows: tuple[Row, ...]
    cells: tuple[dict[str, Row], ...]

    @property
    def comparisons(self) -> list[Comparison]:
        """All that are made with the baseline."""
        return [cell.comparison for cells in self.cells for cell in cells.values() if cell.comparison is not None]

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


def benchmarks(results: Sequence[Result], baseline: str | None = None, resamples: int = RESAMPLES) -> Benchmarks:
    """The numbers of all arms on all benchmarks."""
    table = rows(results, baseline)
    sources = tuple(dict.fromkeys(source for result in results for source in (*result.headlines, *result.answers)))
    cells: list[dict[str, Row]] = [{} for _ in table]
    for source in sources:
        judged = [one.judged_by(one.headlines.get(source, f"val/{source}/")) for one in results]
        having = [one for one in judged if one.accuracy is not None or source in one.answers]
        by_label = {row.label: row for row in rows(having, baseline)}
        for row, found in zip(table, cells, strict=True):
            if row.label in by_label:
                found[source] = by_label[row.label]
    places = [(found, source) for found in cells for source in found]
    own = [found[source] for found, source in places]
    for (found, source), one, two in zip(places, estimate_all(own, resamples), compare(own, resamples), strict=True):
        found[source] = replace(found[source], estimate=one, comparison=two)
    made = [(found, source, one) for found, source in places if (one := found[source].comparison) is not None]
    adjusted = holm([one.difference.over_questions.p for *_, one in made])
    for (found, source, one), p in zip(made, adjusted, strict=True):
        found[source] = replace(found[source], comparison=replace(one, p_holm=p))
    # a benchmark whose answers are judged elsewhere has neither
    shown = {source for found in cells for source, one in found.items() if one.scores or one.estimate is not None}
    table = [
        one if (one := found.get(row.source)) is not None and one.headline == row.headline else row
        for row, found in zip(table, cells, strict=True)
    ]
    return Benchmarks(tuple(source for source in sources if source in shown), tuple(table), tuple(cells))


def estimate_all(table: Sequence[Row], resamples: int = RESAMPLES) -> list[Estimate | None]:
    """The mean score per question of each row on the source of its metric; ``None`` without answers to that."""
    answers = [[one.answers[row.source] for one in row.results if row.source in one.answers] for row in table]
    return _estimates([(*aligned(runs), runs[0]) if runs else None for runs in answers], SCORE, resamples)


def compare(table: Sequence[Row], resamples: int = RESAMPLES) -> list[Comparison | None]:
    """Arms compared with their bases on the sources of their metrics, question by question; ``None`` where the two
    share no answers.
    """
    shared = [_shared(row) for row in table]
    jobs = [_differences(list(one.values())) for one in shared]
    compared: list[Comparison | None] = []
    for row, answers, difference in zip(table, shared, _estimates(jobs, DIFFERENCE, resamples), strict=True):
        if difference is None:
            compared.append(None)
            continue
        ours, theirs = zip(*answers.values(), strict=True)
        labels = (row.label, row.of_base.label, row.source)
        compared.append(Comparison(*labels, tuple(answers), ours, theirs, difference))
    return compared


_Table = tuple[tuple[str, ...], NDArray[np.float64], Answers]
"""Ids ``[Q]``, scores, or differences, ``[R, Q]``, and answers that say which questions share a picture."""


def _shared(row: Row) -> dict[int | None, tuple[Answers, Answers]]:
    """The answers of an arm and of its base by seed, for the seeds that both have answers of."""
    base = {one.seed: one.answers[row.source] for one in row.base if row.source in one.answers}
    return {
        one.seed: (one.answers[row.source], base[one.seed])
        for one in row.results
        if row.source in one.answers and one.seed in base
    }


def _differences(pairs: Sequence[tuple[Answers, Answers]]) -> _Table | None:
    if not pairs:
        return None
    ids, scores = aligned([answers for side in zip(*pairs, strict=True) for answers in side])
    return ids, scores[: len(pairs)] - scores[len(pairs) :], pairs[0][0]


def _estimates(jobs: Sequence[_Table | None], limits: Limits, resamples: int) -> list[Estimate | None]:
    """Of every table; those about the same questions share the draws."""
    by_questions: dict[tuple[str, ...], list[tuple[int, NDArray[np.float64], Answers]]] = {}
    for number, job in enumerate(jobs):
        if job is not None and job[0]:
            by_questions.setdefault(job[0], []).append((number, *job[1:]))
    found: list[Estimate | None] = [None] * len(jobs)
    for ids, same in by_questions.items():
        made = estimates([table for _, table, _ in same], limits, resamples, clusters=same[0][2].clusters(ids))
        for (number, *_), one in zip(same, made, strict=True):
            found[number] = one
    return found
