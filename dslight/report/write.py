"""Write the report of an ablation, or of any run folders.

    dslight report recipes/ablations/effect.yaml        # or: dslight report runs/effect runs/another

    report.html      everything, in one file          benchmarks.csv   a line per arm with every interval and p
    table.md         the tables as text               table.csv        a line per run
    table.tex        arms by benchmarks, in LaTeX     diffs/*.html     a pair of arms, question by question

What an ablation file may say under ``report``: ``title``, ``baseline`` (an arm), ``text`` (prose; see ``page.prose``),
``compare`` (pairs of arms whose difference is listed seed by seed), ``diffs`` (questions shown on each side of a page
of ``diffs``; 0 for no such pages), and ``references``: scores to compare with that are no runs, each ``{label, value}``
or ``{label, file, key}``, a dotted key of a JSON file.
"""

from __future__ import annotations

import shlex
import statistics as builtin
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dslight.recipe.ablation import Ablation, expand
from dslight.recipe.errors import RecipeError
from dslight.report import certainty, diagnostics, latex, paper, plots, references
from dslight.report.benchmarks import Benchmarks, Comparison, benchmarks
from dslight.report.diffs import FOLDER, SHOWN, write_diffs
from dslight.report.page import Figure, Page, Table, render
from dslight.report.references import Reference
from dslight.report.runs import Result, Unfinished, collect
from dslight.report.table import (
    Row,
    Unit,
    columns,
    markdown,
    notes,
    rows,
    to_csv,
    to_markdown,
)

SETTINGS = ("title", "baseline", "text", "compare", "references", "diffs")


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        table: the rows, one per arm and setting.
        results: the finished runs.
        unfinished: the runs that are not in the report.
        benchmarks: the scores of all benchmarks, with intervals and tests.
        markdown: the text of ``table.md``.
        files: those written, without the pages of ``diffs``.
    """

    table: list[Row]
    benchmarks: Benchmarks
    results: list[Result]
    unfinished: list[Unfinished]
    markdown: str
    files: list[Path]


def report(
    source: Ablation | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    settings: Mapping[str, Any] | None = None,
    command: str | None = None,
) -> Report:
    """Collect the finished runs, write the files into ``out``, print the tables.

    Args:
        source: an ablation, or the path of its file, or folders that are searched for runs.
        out: folder; made if it is missing. Default: the folder of the ablation or of the runs; ``report`` for several.
        baseline: the arm that others are compared with, instead of the one in ``settings``.
        settings: as under ``report`` in an ablation file, which is the default.
        command: what "How to reproduce" shows; by default the sweep of the ablation.

    Raises:
        RecipeError: no finished run; a setting, or an arm named in one, that does not exist.
    """
    if not isinstance(source, Ablation):
        paths = [Path(path) for path in source]
        source = expand(paths[0]) if len(paths) == 1 and paths[0].is_file() else paths
    if isinstance(source, Ablation):
        home = source.run_dir
    else:
        home = Path(source[0] if len(source) == 1 else "report")
    out = home if out is None else Path(out)
    settings = dict(settings or (source.report if isinstance(source, Ablation) else {}))
    if baseline is not None:
        settings["baseline"] = baseline
    if unknown := [key for key in settings if key not in SETTINGS]:
        raise RecipeError(f"report.{unknown[0]}: no such setting; there are {', '.join(SETTINGS)}")
    if isinstance(source, Ablation):
        _refuse_unknown_arms(source, settings)
    results, unfinished = collect(source)
    if not results:
        reasons = "\n".join(f"  {run.name}: {run.reason}" for run in unfinished)
        raise RecipeError(f"no finished run to report on\n{reasons}")
    baseline = settings.get("baseline")
    arms = list(dict.fromkeys(result.arm for result in results))
    if baseline is not None and baseline not in arms and not isinstance(source, Ablation):
        raise RecipeError(f"--baseline: there is no finished run of {baseline!r}; there are {', '.join(arms)}")
    table = rows(results, baseline)
    made = benchmarks(table)
    table = [replace(row, mark=_mark(row, cells)) for row, cells in zip(table, made.cells, strict=True)]
    pairs = certainty.pairs_of(results, settings.get("compare") or [])
    out.mkdir(parents=True, exist_ok=True)
    pages = _diff_pages([*made.comparisons, *(one for *_, one in pairs if one)], out, settings.get("diffs", SHOWN))
    headline = builtin.mode(row.headline for row in table)
    main = [row for row in table if row.headline == headline]  # what can stand in one picture
    known = references.read(settings.get("references") or [])
    said = notes(table, baseline) + certainty.said_of_marks(made, baseline) + certainty.said_of_rescored(results)
    missing = [f"{run.name}: {run.reason}" for run in unfinished]
    title = settings.get("title") or (source.name if isinstance(source, Ablation) else "Runs")
    text = _markdown(to_markdown(table, baseline), said, known, main[0].unit, missing, made)
    shown = columns(table, baseline)
    page = Page(
        title=title,
        summary=_summary(table, results),
        table=Table(
            [heading for heading, _ in shown],
            [[text(row) for _, text in shown] for row in table],
            names=2 if len(main) < len(table) else 1,
        ),
        notes=said,
        figures=_figures(main, len(table) - len(main), known),
        sections=[*certainty.sections(made, baseline, pages), *diagnostics.sections(results)],
        runs=_all_runs(results, table),
        missing=missing,
        comparisons=certainty.pair_table(pairs, pages),
        references=references.table(known, main[0].unit),
        text=str(settings.get("text") or ""),
        commands=_commands(source, results, command),
        facts=_facts(results),
    )
    contents = {
        "table.md": text,
        "table.csv": to_csv(results),
        "table.tex": latex.to_latex(
            made, title, [paper.CELLS, *certainty.said_of_marks(made, baseline), *certainty.said_of_other_metrics(made)]
        ),
        "benchmarks.csv": paper.to_csv(made),
        "report.html": render(page),
    }
    for name, content in contents.items():
        (out / name).write_text(content, encoding="utf-8")
    print(text)
    print(f"written: {', '.join(str(out / name) for name in contents)}")
    if pages:
        print(f"question by question: {len(pages)} pages in {out / FOLDER}")
    return Report(table, made, results, unfinished, text, [out / name for name in contents])


def _mark(row: Row, cells: Mapping[str, Any]) -> str:
    return next((cell.mark for cell in cells.values() if cell.headline == row.headline), "")


def _diff_pages(comparisons: Sequence[Comparison], out: Path, shown: Any) -> certainty.Pages:
    if not isinstance(shown, int) or shown < 0:
        raise RecipeError(f"report.diffs: {shown!r} must be a number of questions, 0 for no pages")
    return write_diffs(comparisons, out, shown) if shown else {}


def _refuse_unknown_arms(ablation: Ablation, settings: Mapping[str, Any]) -> None:
    arms = list(dict.fromkeys(run.arm for run in ablation.runs))
    named = [("baseline", settings.get("baseline"))]
    named += [("compare", arm) for pair in settings.get("compare") or [] for arm in pair]
    for key, arm in named:
        if arm is not None and arm not in arms:
            raise RecipeError(f"report.{key}: there is no arm {arm!r}; there are {', '.join(arms)}")


def _markdown(
    table: str,
    said: Sequence[str],
    known: Sequence[Reference],
    scale: Unit,
    missing: Sequence[str],
    made: Benchmarks,
) -> str:
    parts = [table]
    if said:
        parts.append(" ".join(said) + "\n")
    if len(made.sources) > 1:
        parts.append(paper.to_markdown(made))
    if (sure := certainty.table(made, {})) is not None:
        parts += [markdown([sure.head, *sure.rows], sure.names), " ".join(certainty.said_of_intervals(made)) + "\n"]
    if known:
        lines = [f"- reference: {label} {scale(score)}{scale.name} ({origin})\n" for label, score, origin in known]
        parts.append("".join(lines))
    if missing:
        parts.append(f"Not in the table, {len(missing)} runs:\n\n" + "".join(f"- {line}\n" for line in missing))
    return "\n".join(parts)


def _summary(table: Sequence[Row], results: Sequence[Result]) -> str:
    seeds = sorted({len(row.results) for row in table})
    per_arm = " or ".join(map(str, seeds)) + (" run" if seeds == [1] else " runs")
    count = len({row.arm for row in table})
    arms = f"{count} {'arm' if count == 1 else 'arms'}" + (f" in {len(table)} settings" if len(table) > count else "")
    minutes = sum(seconds for result in results if (seconds := result.number("train_seconds")))
    total = f"; {_duration(minutes)} of training in all" if minutes else ""
    return f"{arms}, {per_arm} each{total}."


def _figures(same: Sequence[Row], left_out: int, listed: Sequence[Reference]) -> list[Figure]:
    """The pictures that the rows, all of the ``same`` metric, have data for."""
    rest = f" Rows judged by another metric than {same[0].headline} are left out." if left_out else ""
    known = [(label, score) for label, score, _ in listed if score is not None]
    several = any(len(row.results) > 1 for row in same)
    dots = "A bar is the mean, a dot is a run." if several else "Every bar is a single run."
    lines = "Thin lines are runs, bold lines their mean." if several else "Every line is a single run."
    marks = "A marker is the mean, a faint dot is a run." if several else "Every marker is a single run."
    dashed = " Dashed: references, which are no runs of this ablation." if known else ""
    drawn = [
        ("Score", plots.bars(same, known), dots + dashed),
        ("Learning curves", plots.curves(same), lines + " Scores on the validation set."),
        ("Score and context length", plots.against(same, "context_length", "context length (tokens)"), marks),
        (
            "Score and step time",
            plots.against(same, "step_seconds", "time of a step (s, median)"),
            marks + " Step times are of one machine.",
        ),
    ]
    return [Figure(title, svg, caption + rest) for title, svg, caption in drawn if svg is not None]


def _all_runs(results: Sequence[Result], table: Sequence[Row]) -> Table:
    units = {row.headline: row.unit for row in table}
    scale = f"score {next(iter(units.values())).name}".strip() if len(units) == 1 else "score"
    grid = [key for key in dict.fromkeys(key for result in results for key in result.point) if key != "seed"]
    head = ["arm", *grid, "folder", "seed", scale, "s/step", "steps", "training"]
    lines = []
    for result in results:
        step, steps, seconds = (result.number(key) for key in ("step_seconds", "steps", "train_seconds"))
        lines.append(
            [
                result.arm,
                *(str(result.point.get(key, "–")) for key in grid),
                str(result.path),
                "–" if result.seed is None else str(result.seed),
                units[result.headline](result.accuracy),
                "–" if step is None else f"{step:.3f}",
                "–" if steps is None else f"{steps:,.0f}",
                "–" if seconds is None else _duration(seconds),
            ]
        )
    return Table(head, lines, names=2 + len(grid))


def _commands(source: Any, results: Sequence[Result], command: str | None) -> list[str]:
    if command is not None:
        return [command]
    if isinstance(source, Ablation):
        return [shlex.join(["dslight", "sweep", str(source.path), *source.overrides])]
    return [
        shlex.join(["dslight", "fit", str(result.path / "recipe.yaml")])
        for result in results
        if (result.path / "recipe.yaml").exists()
    ]


def _facts(results: Sequence[Result]) -> dict[str, str]:
    """Commit and versions; where runs differ, all values."""
    commits = _all_values(result.commit or "not recorded" for result in results)
    names = dict.fromkeys(name for result in results for name in result.versions)
    versions = {name: _all_values(result.versions.get(name, "?") for result in results) for name in names}
    return {"git commit": commits, **versions}


def _all_values(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
