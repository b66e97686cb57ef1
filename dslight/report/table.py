"""The table of an ablation: one row per arm (and point of the grid), its seeds summed up, next to the baseline.

Decided here: the spread is the sample standard deviation over seeds and is left out for a single seed; a difference to
the baseline is taken over the seeds that both have, so that a missing run does not shift it; scores of different
metrics are never subtracted. Step times are compared with the baseline's, as seconds depend on the machine.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dslight.report.runs import Result


@dataclass(frozen=True)
class Unit:
    """How scores are shown: a fraction as percent, anything else as it is."""

    factor: float
    name: str

    def __call__(self, score: float | None, signed: bool = False) -> str:
        """The score as text, with one decimal; a dash for none."""
        return "–" if score is None else f"{self.factor * score:{'+' if signed else ''}.1f}".replace("-", "−")


@dataclass(frozen=True)
class Row:
    """The runs of one arm at one setting of the grid, which differ by seed alone.

    Attributes:
        label: the arm, and the setting where the grid has other keys than the seed.
        results: its finished runs.
        unit: how their scores are shown, alike for all rows of a metric.
        base, base_label: the runs of the baseline that they are compared with, if there are any, and their label.
        delta: mean difference to the baseline over ``shared`` seeds; ``None`` without a baseline to compare with.
        shared: the number of those seeds.
        mark: how sure the difference is, see ``dslight.report.benchmarks``.
        relative_time: step time / the baseline's step time.
    """

    label: str
    arm: str
    results: tuple[Result, ...]
    unit: Unit
    base: tuple[Result, ...] = ()
    base_label: str = ""
    delta: float | None = None
    shared: int = 0
    mark: str = ""
    relative_time: float | None = None

    @property
    def scores(self) -> list[float]:
        """The headline scores of the runs that have one."""
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
    def headline(self) -> str:
        """The metric of the scores."""
        return self.results[0].headline

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
    settings = {setting for _, setting, _ in groups}
    units = {metric: unit(result for result in results if result.headline == metric) for *_, metric in groups}
    several = len(settings) > 1
    table = []
    for (arm, setting, headline), group in groups.items():
        row = Row(_label(arm, setting) if several else arm, arm, tuple(group), units[headline])
        # an arm without the grid's other keys still has the baseline of its own metric, if there is only one
        same_metric = [base for (_, base_headline), base in bases.items() if base_headline == headline]
        base = bases.get((setting, headline)) or (same_metric[0] if len(same_metric) == 1 else None)
        if base is not None and base is not group:
            differences = paired_differences(group, base)
            delta = statistics.fmean(differences.values()) if differences else None
            ratio = _ratio(row, Row("", "", tuple(base), row.unit))
            base_label = _label(base[0].arm, base[0].setting) if several else base[0].arm
            row = replace(row, base=tuple(base), base_label=base_label)
            row = replace(row, delta=delta, shared=len(differences), relative_time=ratio)
        elif base is not None:
            row = replace(row, relative_time=1.0 if row.mean_of("step_seconds") else None)
        table.append(row)
    return table


def _label(arm: str, setting: tuple[tuple[str, str], ...]) -> str:
    return " ".join([arm, *(f"{key.rpartition('.')[2]}={value}" for key, value in setting)])


def paired_differences(group: Sequence[Result], base: Sequence[Result]) -> dict[Any, float]:
    """Seed -> score of ``group`` minus score of ``base``, for the seeds for which both have a score."""
    scores = {result.seed: result.accuracy for result in base if result.accuracy is not None}
    return {
        result.seed: result.accuracy - scores[result.seed]
        for result in group
        if result.accuracy is not None and result.seed in scores
    }


def unit(results: Iterable[Result]) -> Unit:
    """Percent when all scores are fractions, else the metric's own scale."""
    return unit_of(result.accuracy for result in results)


def unit_of(values: Iterable[float | None]) -> Unit:
    """``unit`` of scores themselves."""
    scores = [score for score in values if score is not None]
    return Unit(100.0, "%") if scores and all(0 <= score <= 1 for score in scores) else Unit(1.0, "")


Column = tuple[str, Callable[[Row], str]]


def columns(table: Sequence[Row], baseline: str | None) -> list[Column]:
    """Heading and cell text of the columns that have something to say about these rows."""

    def score(row: Row) -> str:
        spread = f" ± {row.unit(row.spread)}" if row.spread is not None else ""
        return row.unit(row.mean) + spread + (row.unit.name if several_metrics and row.scores else "")

    def delta(row: Row) -> str:
        partly = f" (over {row.shared})" if row.delta is not None and row.shared < len(row.scores) else ""
        return "baseline" if row.arm == baseline else row.unit(row.delta, signed=True) + row.mark + partly

    def ratio(row: Row) -> str:
        return "–" if row.relative_time is None else f"{row.relative_time:.2f}×"

    def seconds(row: Row) -> str:
        value = row.mean_of("step_seconds")
        return "–" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"

    several_metrics = len({row.headline for row in table}) > 1
    name = "score" if several_metrics or not table else metric_name(table[0]).rpartition(": ")[2]
    found: list[Column | None] = [
        ("arm", lambda row: row.label),
        ("metric", lambda row: row.headline) if several_metrics else None,
        ("seeds", lambda row: str(len(row.results))),
        (name, score),
        (f"Δ to {baseline}", delta) if any(row.delta is not None for row in table) else None,
        ("visual tokens", lambda row: count(row, "visual_tokens")),
        ("stacked tokens", lambda row: count(row, "stacked_tokens")),
        ("context length", lambda row: count(row, "context_length")),
        ("s/step", seconds),
        (f"time vs. {baseline}", ratio) if any(row.relative_time is not None for row in table) else None,
    ]
    return [column for column in found + _differing(table) if column and any(column[1](row) != "–" for row in table)]


def _differing(table: Sequence[Row]) -> list[Column]:
    """Columns that are only of interest when the arms are not alike in them; ``notes`` says it when they are."""
    every: list[Column] = [
        ("steps", lambda row: count(row, "steps")),
        ("trained parameters", lambda row: count(row, "parameters.trainable")),
    ]
    return [column for column in every if len({column[1](row) for row in table}) > 1]


def to_markdown(table: Sequence[Row], baseline: str | None) -> str:
    """The table of arms in (GitHub's) markdown, numbers to the right."""
    shown = columns(table, baseline)
    cells = [[heading for heading, _ in shown], *([text(row) for _, text in shown] for row in table)]
    return markdown(cells)


def markdown(cells: Sequence[Sequence[str]], names: int = 1) -> str:
    """A heading and rows as a table in (GitHub's) markdown; all but the first ``names`` columns to the right."""
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]  # a rule of fewer is none everywhere
    lines = [
        [text.ljust(w) if i < names else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    ]
    rule = ["-" * width if i < names else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))


def notes(table: Sequence[Row], baseline: str | None) -> list[str]:
    """What a reader must know to read the table, and no more than applies to it."""
    counts = {len(row.scores) for row in table}
    said = []
    if any(row.spread is not None for row in table):
        said.append(
            "± is the sample standard deviation over seeds"
            + ("; two seeds tell little about it" if 2 in counts else "")
            + "."
        )
    if 1 in counts:
        only = "Every row is" if counts == {1} else "Rows without ± are"
        said.append(f"{only} a single run: no spread can be given, and small differences may be chance.")
    if any(row.delta is not None for row in table):
        said.append(
            f"Δ is the mean difference to {baseline} over the seeds that both have"
            + (", in points." if all(row.unit.name for row in table) else ".")
        )
    elif any(row.arm == baseline for row in table) and len(table) > 1:
        said.append(f"No row shares a metric and a seed with {baseline}, so no differences are given.")
    elif baseline is not None and len(table) > 1:
        said.append(f"There is no finished run of {baseline} to compare with, so no differences are given.")
    if any(row.mean_of("step_seconds") for row in table):
        said.append("s/step is the median over a run's steps; runs that shared the machine slowed each other down.")
    if len({count(row, "steps") for row in table}) > 1:
        said.append("The arms were not trained for the same number of steps.")
    else:
        same = [
            f"{text} {what}"
            for what, key in (("steps", "steps"), ("trained parameters", "parameters.trainable"))
            if len({count(row, key) for row in table}) == 1 and (text := count(table[0], key)) != "–"
        ]
        said += [f"All arms: {', '.join(same)}."] if same else []
    if len({row.headline for row in table}) > 1:
        said.append("The runs are judged by different metrics; rows of different metrics cannot be compared.")
    return said


def to_csv(results: Sequence[Result]) -> str:
    """One line per run with everything that is known: scores as they are in ``result.json``, every key of the grid."""
    grid = [key for key in dict.fromkeys(key for result in results for key in result.point) if key != "seed"]
    scores = list(dict.fromkeys(name for result in results for name in result.values.get("scores", {})))
    numbers = ["visual_tokens", "stacked_tokens", "context_length", "step_seconds", "steps", "train_seconds"]
    counts = ["parameters.total", "parameters.trainable"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", *grid, "headline", "accuracy", *numbers, *counts, *scores, "git_commit", "path"])
    for result in results:
        own = result.values.get("scores", {})
        cells = [result.number(key) for key in (*numbers, *counts)] + [own.get(name) for name in scores]
        point = [
            value if isinstance(value := result.point.get(key), (str, int, float, type(None))) else json.dumps(value)
            for key in grid
        ]
        writer.writerow(
            [result.arm, result.seed, *point, result.headline, result.accuracy, *cells, result.commit, result.path]
        )
    return text.getvalue()


def metric_name(row: Row) -> str:
    """``digits: vqa accuracy (%)``: the metric of a row in words, with its unit."""
    name = row.headline.removeprefix("val/").replace("/", ": ").replace("_", " ")
    return f"{name} ({row.unit.name})" if row.unit.name else name


def _ratio(row: Row, base: Row) -> float | None:
    own, its = row.mean_of("step_seconds"), base.mean_of("step_seconds")
    return own / its if own and its else None


def count(row: Row, key: str) -> str:
    """A whole number of ``result.json`` with its runs' range; a dash for none."""
    values = sorted({value for result in row.results if (value := result.number(key)) is not None})
    return "–" if not values else "–".join(f"{value:,.0f}" for value in dict.fromkeys((values[0], values[-1])))
