"""How sure scores and differences are, as tables of a report, and what a reader must know to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dslight.report import corpus, plots
from dslight.report.benchmarks import Benchmarks
from dslight.report.page import Figure, Pages, Section, Table, link
from dslight.report.paper import paper_table, title_of
from dslight.report.rows import LIKELY, PERCENT, RETRAINED, Comparison
from dslight.report.runs import Result
from dslight.report.statistics import RESAMPLES, Interval

_QUESTIONS = ["Δ [95 %, other questions]", "p, other questions"]
_SEEDS = ["95 %, and other seeds", "p, and other seeds"]


def sections(made: Benchmarks, baseline: str | None, pages: Pages) -> list[Section]:
    """All benchmarks side by side where there are several, and how sure the scores and differences are."""
    found = []
    if len(made.sources) > 1:
        found.append(Section("Benchmarks", [paper_table(made)]))
    if (sure := table(made, pages)) is not None:
        said = [*said_of_intervals(made), *(["Arms and differences lead to their questions."] if pages else [])]
        found.append(Section("Question by question", [replace(sure, caption=" ".join(said)), *_figure(made, baseline)]))
    return found


def table(made: Benchmarks, pages: Pages) -> Table | None:
    """By arm and benchmark; ``None`` without per-question files."""
    several = len(made.sources) > 1
    head = ["arm", *(["benchmark"] if several else []), "questions", "mean score [95 %]"]
    over = _over(made.comparisons)
    head += [*over, "p (Holm)"] if over else []
    lines = []
    for row, cells in zip(made.rows, made.cells, strict=True):
        for source, cell in cells.items():
            if cell.estimate is None:
                continue
            found, one = cell.estimate, cell.comparison
            line = [link(row.label, pages.get((row.label, None, source))), *([title_of(source)] if several else [])]
            line += [f"{found.questions:,}", estimated(found.value, found.over_questions)]
            if one is not None:
                line += [*_difference(one, pages)[: len(over)], shown_p(one.p_holm)]
            lines.append(line + ["–"] * (len(head) - len(line)))
    return Table(head, lines, names=2 if several else 1) if lines else None


def said_of_marks(made: Benchmarks, baseline: str | None) -> list[str]:
    """What the marks of the scores mean; nothing where there are none."""
    marks = {cell.mark for cells in made.cells for cell in cells.values()}
    if not marks & {LIKELY, RETRAINED}:
        return []
    return [
        f"{LIKELY}: p < 0.05 against {baseline} in a paired bootstrap over questions, for these trained models; "
        + (f"{RETRAINED}: also when other seeds are reckoned with. " if _over(made.comparisons)[2:] else "")
        + "Marks are per comparison, not adjusted for their number."
    ]


def said_of_intervals(made: Benchmarks) -> list[str]:
    """What the intervals and p values are of."""
    said = [
        f"Questions are resampled {RESAMPLES:,} times, the same ones for all seeds and arms, and differences are per "
        "question; p is two-sided."
    ]
    if _over(made.comparisons)[2:]:
        said.append(
            "For other seeds, Student's t of what the seeds differ by is added, since so few cannot be resampled; "
            "intervals end where scores and their differences do."
        )
    elif made.comparisons:
        said.append("One seed says nothing about another.")
    pairs = [cell.estimate for cells in made.cells for cell in cells.values() if cell.estimate is not None]
    if any(one.clusters < one.questions for one in pairs):
        said.append("Questions about one picture are drawn together.")
    if any(one.difference.seeds == 2 for one in made.comparisons):
        said.append("Two seeds say very little about a third, so these intervals can be wide.")
    return said + said_of_other_metrics(made)


def said_of_rescored(results: Sequence[Result]) -> list[str]:
    """Which runs were validated again after their training."""
    again = [str(result.path) for result in results if result.rescored]
    few = ", ".join(again[:3]) + (f" and {len(again) - 3} more" if len(again) > 3 else "")
    return [f"Validated again after training, so with the scores of scores.json: {few}."] if again else []


def said_of_other_metrics(made: Benchmarks) -> list[str]:
    """Which benchmarks have numbers that are no means over questions, if per-question files are there."""
    said = []
    for source in made.sources:
        cells = [cells[source] for cells in made.cells if source in cells]
        if any(not cell.is_mean and cell.estimate is not None for cell in cells):
            name = cells[0].headline.rpartition("/")[2]
            said.append(
                f"{title_of(source)}: its number, {name}, is no mean over questions, so it has no "
                f"{'mark' if (own := _own(made, source)) else 'interval and no mark'}; what is said question by "
                f"question is of the mean score per question.{own}"
            )
    return said


def _own(made: Benchmarks, source: str) -> str:
    """The intervals of a number that is no mean, where it can be computed from the answers."""
    said = []
    for row, cells in zip(made.rows, made.cells, strict=True):
        cell = cells.get(source)
        if cell is not None and cell.mean is not None:
            runs = [one.answers[source] for one in cell.results if source in one.answers]
            limits = corpus.interval(runs, cell.headline, cell.mean)
            if limits is not None:
                said.append(f"{row.label} {cell.unit(cell.mean)} {cell.unit.interval(Interval(*limits, 1.0))}")
    return f" Its own 95 %, other pictures: {'; '.join(said)}." if said else ""


def estimated(value: float, interval: Interval, signed: bool = False) -> str:
    """``+17.2 [15.9, 18.4]``, in percent."""
    return f"{PERCENT(value, signed)} {PERCENT.interval(interval, signed)}"


def shown_p(p: float | None) -> str:
    """Three decimals."""
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _over(comparisons: Sequence[Comparison]) -> list[str]:
    """Headings of what can be said of some comparisons: nothing about other seeds if each has one seed."""
    seeds = any(one.difference.over_seeds is not None for one in comparisons)
    return [*(_QUESTIONS if comparisons else []), *(_SEEDS if seeds else [])]


def _figure(made: Benchmarks, baseline: str | None) -> list[Figure]:
    """The differences on the first benchmark."""
    first = [(one.arm, one.difference) for one in made.comparisons if one.source == made.sources[0]]
    svg = plots.differences(first, baseline or "the baseline")
    seeds = (
        "; thin, other questions and other seeds, with an arrow where it goes on" if _over(made.comparisons)[2:] else ""
    )
    caption = f"Intervals of 95 %: thick, other questions{seeds}."
    return [] if svg is None else [Figure(f"{title_of(made.sources[0])}: differences", svg, caption)]


def _difference(one: Comparison, pages: Pages) -> list[str]:
    """With its interval and p over questions, and over questions and seeds; the first leads to a page."""
    found = one.difference
    again = found.over_seeds
    shown = estimated(found.value, found.over_questions, signed=True)
    return [
        link(shown, pages.get((one.arm, one.base, one.source))),
        shown_p(found.over_questions.p),
        "–" if again is None else PERCENT.interval(again, signed=True),
        "–" if again is None else shown_p(again.p),
    ]
