"""The table of the paper: arms by benchmarks, each score with its difference to the baseline.

A cell is ``{number} ({difference}{mark})``, the best of a column in bold, after what went in: visual tokens (all that
the vision encoder makes) and context length.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from dslight.report.benchmarks import Benchmarks, Cell
from dslight.report.page import Table
from dslight.report.statistics import Interval
from dslight.report.table import count, markdown

TITLES = {
    "vqav2": "VQAv2",
    "gqa": "GQA",
    "textvqa": "TextVQA",
    "docvqa": "DocVQA",
    "infovqa": "InfoVQA",
    "seed": "SEED",
    "pope": "POPE",
    "mmmu": "MMMU",
    "mmvet": "MM-Vet",
    "chartqa": "ChartQA",
    "multidocvqa": "MultiDocVQA",
    "scienceqa": "ScienceQA",
    "mmbench": "MMBench",
    "mme": "MME",
    "vizwiz": "VizWiz",
    "ocrbench": "OCRBench",
    "ai2d": "AI2D",
    "egoschema": "EgoSchema",
    "nextqa": "NExT-QA",
    "msvd_qa": "MSVD-QA",
    "activitynet_qa": "ActivityNet-QA",
}
"""How papers write the names of benchmarks; another source keeps its name."""

CELLS = "In parentheses: the difference to the baseline. Bold: the best."

Write = Callable[[str, str, str, bool], str]
"""Score, difference ("" for none), mark, whether it is the best -> a cell."""


def paper_table(made: Benchmarks, write: Write, plain: Callable[[str], str] = str) -> Table:
    """Arms by benchmarks, the scores as ``write`` writes them and the rest as ``plain`` does."""
    inputs = [("Vis. tok.", "visual_tokens"), ("Cxt. len.", "context_length")]
    inputs = [(title, key) for title, key in inputs if any(row.mean_of(key) is not None for row in made.rows)]
    best = {source: made.best(source) for source in made.sources}
    lines = []
    for row, cells in zip(made.rows, made.cells, strict=True):
        line = [plain(text) for text in (row.label, *(count(row, key) for _, key in inputs))]
        for source in made.sources:
            cell = cells.get(source)
            if cell is None or cell.mean is None:
                line.append(plain("–"))
            else:
                delta = cell.unit(cell.delta, signed=True) if cell.delta is not None else ""
                line.append(write(cell.unit(cell.mean), delta, cell.mark, row.label in best[source]))
        lines.append(line)
    head = ["Method", *(title for title, _ in inputs), *map(title_of, made.sources)]
    return Table([plain(text) for text in head], lines)


def in_html(score: str, delta: str, mark: str, best: bool) -> str:
    """A cell of the page."""
    shown = Markup("<strong>{}</strong>" if best else "{}").format(score)
    return shown + (Markup(' <span class="small">({}<sup>{}</sup>)</span>').format(delta, mark) if delta else "")


def in_markdown(score: str, delta: str, mark: str, best: bool) -> str:
    """A cell of markdown."""
    return (f"**{score}**" if best else score) + (f" ({delta}{mark})" if delta else "")


def to_markdown(made: Benchmarks) -> str:
    """The table in markdown."""
    table = paper_table(made, in_markdown)
    return markdown([table.head, *table.rows])


def to_csv(made: Benchmarks) -> str:
    """A line per arm with the same columns and, per benchmark, everything that is known, on the scale of the scores."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name, _ in _FACTS]
    shared = ["method", "seeds", "visual_tokens", "context_length"]
    writer.writerow([*shared, *(f"{source} {name}".rstrip() for source in made.sources for name in names)])
    for row, cells in zip(made.rows, made.cells, strict=True):
        line: list[Any] = [row.label, len(row.results), row.mean_of("visual_tokens"), row.mean_of("context_length")]
        for source in made.sources:
            cell = cells.get(source)
            line += [None if cell is None else fact(cell) for _, fact in _FACTS]
        writer.writerow(line)
    return text.getvalue()


def title_of(source: str) -> str:
    """The name of a source as a heading."""
    return TITLES.get(source, source)


def _difference(read: Callable[[Any], Any]) -> Callable[[Cell], Any]:
    return lambda cell: None if cell.comparison is None else read(cell.comparison)


def _retrained(read: Callable[[Interval], Any]) -> Callable[[Cell], Any]:
    return _difference(lambda one: None if one.difference.over_seeds is None else read(one.difference.over_seeds))


def _estimate(read: Callable[[Any], Any]) -> Callable[[Cell], Any]:
    return lambda cell: None if cell.estimate is None else read(cell.estimate)


_FACTS: list[tuple[str, Callable[[Cell], Any]]] = [
    ("", lambda cell: cell.mean),
    ("sd", lambda cell: cell.spread),
    ("delta", lambda cell: cell.delta),
    ("questions", _estimate(lambda found: found.questions)),
    ("mean score", _estimate(lambda found: found.value)),
    ("low", _estimate(lambda found: found.over_questions.low)),
    ("high", _estimate(lambda found: found.over_questions.high)),
    ("difference", _difference(lambda one: one.difference.value)),
    ("difference low", _difference(lambda one: one.difference.over_questions.low)),
    ("difference high", _difference(lambda one: one.difference.over_questions.high)),
    ("p", _difference(lambda one: one.difference.over_questions.p)),
    ("p holm", _difference(lambda one: one.p_holm)),
    ("retrained low", _retrained(lambda again: again.low)),
    ("retrained high", _retrained(lambda again: again.high)),
    ("retrained p", _retrained(lambda again: again.p)),
]
