"""The table of the paper: arms by benchmarks, each score with its difference to the baseline.

A cell is ``{number} ({difference}{mark})``, the best of a column in bold, after what went in: visual tokens (all that
the vision encoder makes) and context length.
"""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from dslight.report.benchmarks import Benchmarks
from dslight.report.page import Table
from dslight.report.rows import Row
from dslight.report.table import count

_NAMES = (
    "VQAv2 GQA TextVQA DocVQA InfoVQA SEED POPE MMMU MM-Vet ChartQA MultiDocVQA ScienceQA MMBench MME VizWiz OCRBench "
    "AI2D EgoSchema NExT-QA MSVD-QA ActivityNet-QA"
)
TITLES = {re.sub(r"\W", "", name).lower(): name for name in _NAMES.split()}
"""How papers write the names of benchmarks; another source keeps its name."""


def paper_table(made: Benchmarks) -> Table:
    """Arms by benchmarks."""
    inputs = [("Vis. tok.", "visual_tokens"), ("Cxt. len.", "context_length")]
    inputs = [(title, key) for title, key in inputs if any(row.mean_of(key) is not None for row in made.rows)]
    best = {source: made.best(source) for source in made.sources}
    lines = []
    for row, cells in zip(made.rows, made.cells, strict=True):
        line = [row.label, *(count(row, key) for _, key in inputs)]
        line += [_shown(cells.get(source), row.label in best[source]) for source in made.sources]
        lines.append(line)
    head = ["Method", *(title for title, _ in inputs), *map(title_of, made.sources)]
    return Table(head, lines, caption="In parentheses: the difference to the baseline. Bold: the best.")


def _shown(cell: Row | None, best: bool) -> str:
    if cell is None or cell.mean is None:
        return "–"
    shown = Markup("<strong>{}</strong>" if best else "{}").format(cell.unit(cell.mean))
    delta = Markup(' <span class="small">({}{})</span>').format(cell.unit(cell.delta, signed=True), cell.mark)
    return shown if cell.delta is None else shown + delta


def records(made: Benchmarks) -> list[dict[str, Any]]:
    """By arm and benchmark everything that is known, on the scale of the scores."""
    return [
        {
            "method": row.label,
            "benchmark": source,
            "metric": cell.headline,
            "seeds": len(row.results),
            "visual_tokens": row.mean_of("visual_tokens"),
            "context_length": row.mean_of("context_length"),
            "score": cell.mean,
            "sd": cell.spread,
            "delta": cell.delta,
            **_estimated(cell),
        }
        for row, cells in zip(made.rows, made.cells, strict=True)
        for source, cell in cells.items()
        if source in made.sources
    ]


def _estimated(cell: Row) -> dict[str, Any]:
    """What the questions say: of the score, of its difference, and of the difference after another training."""
    found: dict[str, Any] = {}
    if cell.estimate is not None:
        over = cell.estimate.over_questions
        found |= {"questions": cell.estimate.questions, "mean_score": cell.estimate.value}
        found |= {"low": over.low, "high": over.high}
    if cell.comparison is not None:
        one = cell.comparison.difference
        found |= {"difference": one.value, "p_holm": cell.comparison.p_holm}
        for name, interval in (("difference", one.over_questions), ("retrained", one.over_seeds)):
            if interval is not None:
                found |= {f"{name}_low": interval.low, f"{name}_high": interval.high, f"{name}_p": interval.p}
    return found


def title_of(source: str) -> str:
    """The name of a source as a heading."""
    return TITLES.get(re.sub(r"[\W_]", "", source).lower(), source)
