"""The table of arms, what a reader must know to read it, and the same runs as CSV. Step times are compared with the
baseline's, as seconds depend on the machine.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dslight.files.sheets import cell
from dslight.report.page import Table, link
from dslight.report.rows import Row
from dslight.report.runs import Result


def arms_table(table: Sequence[Row], baseline: str | None, pages: Mapping[str, str] | None = None) -> Table:
    """The arms, with the columns that have something to say about them.

    ``pages``: by label the address that an arm's name leads to.
    """
    return _table(table, baseline, {"seeds": lambda row: str(len(row.results))}, pages or {})


def runs_table(table: Sequence[Row]) -> Table:
    """Every run by itself."""
    alone = [replace(row, results=(result,), base=()) for row in table for result in row.results]
    own: dict[str, Column] = {
        "folder": lambda row: str(row.results[0].path),
        "seed": lambda row: "–" if row.results[0].seed is None else str(row.results[0].seed),
        "training": lambda row: "–" if (seconds := row.mean_of("train_seconds")) is None else duration(seconds),
    }
    return _table(alone, None, own, {})


Column = Callable[[Row], str]


def _table(table: Sequence[Row], baseline: str | None, own: Mapping[str, Column], pages: Mapping[str, str]) -> Table:
    def score(row: Row) -> str:
        spread = f" ± {row.unit(row.spread)}" if row.spread is not None else ""
        return row.unit(row.mean) + spread + (row.unit.name if several_metrics and row.scores else "")

    def delta(row: Row) -> str:
        partly = f" (over {len(row.pairs)})" if row.delta is not None and len(row.pairs) < len(row.scores) else ""
        return "baseline" if row.arm == baseline else row.unit(row.delta, signed=True) + row.mark + partly

    def ratio(row: Row) -> str:
        own, its = row.mean_of("step_seconds"), (row.of_base if row.base else row).mean_of("step_seconds")
        return f"{own / its:.2f}×" if own and its and (row.base or row.arm == baseline) else "–"

    def seconds(row: Row) -> str:
        value = row.mean_of("step_seconds")
        return "–" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"

    several_metrics = len({row.headline for row in table}) > 1
    differ = any(row.delta is not None for row in table)
    columns: dict[str, Column] = {
        "arm": lambda row: link(row.label, pages.get(row.label)),
        "metric": lambda row: row.headline if several_metrics else "–",
        **own,
        "score" if several_metrics else metric_name(table[0]).rpartition(": ")[2]: score,
        f"Δ to {baseline}": lambda row: delta(row) if differ else "–",
        "visual tokens": lambda row: count(row, "visual_tokens"),
        "stacked tokens": lambda row: count(row, "stacked_tokens"),
        "context length": lambda row: count(row, "context_length"),
        "s/step": seconds,
        f"time vs. {baseline}": ratio,
    }
    cells = {heading: [column(row) for row in table] for heading, column in columns.items()}
    for heading, key in _SAME.items():  # of interest only where the arms are not alike; `notes` says it where they are
        if len(set(values := [count(row, key) for row in table])) > 1:
            cells[heading] = values
    shown = {heading: column for heading, column in cells.items() if set(column) != {"–"}}
    words = [heading for heading in shown if heading in ("arm", "metric", "folder")]
    return Table(list(shown), list(zip(*shown.values(), strict=True)), names=len(words))


_SAME = {"steps": "steps", "trained parameters": "parameters.trainable"}


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
    if any(row.mean_of("context_length") for row in table):
        said.append("Context length counts the visual positions of the sequence; the text comes on top.")
    if any(row.mean_of("step_seconds") for row in table):
        said.append("s/step is the median over a run's steps; runs that shared the machine slowed each other down.")
    if len({count(row, "steps") for row in table}) > 1:
        said.append("The arms were not trained for the same number of steps.")
    else:
        same = [
            f"{text} {what}"
            for what, key in _SAME.items()
            if len({count(row, key) for row in table}) == 1 and (text := count(table[0], key)) != "–"
        ]
        said += [f"All arms: {', '.join(same)}."] if same else []
    if len({row.headline for row in table}) > 1:
        said.append("The runs are judged by different metrics; rows of different metrics cannot be compared.")
    return said


def to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """A line per record; the columns are all keys, and a cell is empty where there is none. Texts stay texts, see
    :mod:`dslight.files.sheets`.
    """
    text = io.StringIO()
    fields = dict.fromkeys(key for record in records for key in record)
    writer = csv.writer(text, lineterminator="\n")
    for line in (fields, *([record.get(key) for key in fields] for record in records)):
        writer.writerow([cell(value) for value in line])
    return text.getvalue()


def run_record(result: Result) -> dict[str, Any]:
    """Everything that is known of a run: its scores as they are in ``result.json``, every key of the grid."""
    numbers = ["visual_tokens", "stacked_tokens", "context_length", "step_seconds", "steps"]
    numbers += ["train_seconds", "parameters.total", "parameters.trainable"]
    point = {
        key: value if isinstance(value, (str, int, float, type(None))) else json.dumps(value)
        for key, value in result.point.items()
    }
    return {
        "arm": result.arm,
        "seed": result.seed,
        **{key: value for key, value in point.items() if key != "seed"},
        "headline": result.headline,
        "accuracy": result.accuracy,
        **{key: result.number(key) for key in numbers},
        **(result.values.get("scores") or {}),
        "git_commit": result.commit,
        "path": result.path,
    }


def metric_name(row: Row) -> str:
    """``digits: vqa accuracy (%)``: the metric of a row in words, with its unit."""
    name = row.headline.removeprefix("val/").replace("/", ": ").replace("_", " ")
    return f"{name} ({row.unit.name})" if row.unit.name else name


def count(row: Row, key: str) -> str:
    """A whole number of ``result.json`` with its runs' range; a dash for none."""
    values = sorted({value for result in row.results if (value := result.number(key)) is not None})
    return "–" if not values else "–".join(f"{value:,.0f}" for value in dict.fromkeys((values[0], values[-1])))


def duration(seconds: float) -> str:
    """``35 s``, ``2.1 min``, ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
