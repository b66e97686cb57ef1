"""Write the report of an ablation, or of any run folders.

    dslight report recipes/ablations/effect.yaml        # or: dslight report runs/effect runs/another

    report.html      everything, in one file          benchmarks.csv   a line per arm and benchmark, every interval
    table.md         the tables as text               table.csv        a line per run
    table.tex        arms by benchmarks, in LaTeX     answers/*.html   an arm, question by question
                                                      diffs/*.html     a pair of arms, question by question

What an ablation file may say under ``report`` is in ``dslight.recipe.report_section``.
"""

from __future__ import annotations

import os
import shlex
import statistics as builtin
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dslight.files.atomic import write_atomically
from dslight.recipe.ablation import Ablation, expand
from dslight.recipe.errors import RecipeError
from dslight.recipe.report_section import report_section
from dslight.report import certainty, diagnostics, latex, paper, plots, references
from dslight.report.benchmarks import Benchmarks, benchmarks
from dslight.report.claims import judged, outcomes
from dslight.report.page import Figure, Outcome, Section, Table, render, to_markdown
from dslight.report.question_pages import write_pages
from dslight.report.rows import Row
from dslight.report.runs import Result, collect
from dslight.report.table import arms_table, duration, notes, run_record, runs_table, to_csv
from dslight.texts import inert, printable

_RED = "\x1b[1;31m{}\x1b[0m"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        table: the rows, one per arm and setting.
        benchmarks: the scores of all benchmarks, with intervals and tests.
        outcomes: what became of the ablation's claims.
        results: the finished runs.
        unfinished: the runs that are not in the report, and why.
        markdown: the text of ``table.md``.
        files: those written, without the pages of questions.
    """

    table: list[Row]
    benchmarks: Benchmarks
    outcomes: list[Outcome]
    results: list[Result]
    unfinished: list[str]
    markdown: str
    files: list[Path]


def report(
    source: Ablation | Sequence[str | Path],
    out: str | Path | None = None,
    baseline: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Collect the finished runs, write the files into ``out``, print claims and results.

    Args:
        source: an ablation, or the path of its file, or folders that are searched for runs.
        out: folder; made if it is missing. Default: the folder of the ablation or of the runs; ``report`` for several.
        baseline: the arm that others are compared with, instead of the one in ``settings``.
        settings: as under ``report`` in an ablation file, which is the default.

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
    if "\0" in str(out):
        raise RecipeError(f"--out: {str(out)!r} holds a null character, which ends the name of a file")
    results, unfinished = collect(source)
    if not results:
        raise RecipeError("\n  ".join(["no finished run to report on", *unfinished]))
    runs = source.runs if isinstance(source, Ablation) else results
    arms = list(dict.fromkeys(run.arm for run in runs))
    if baseline is not None and baseline not in arms:
        raise RecipeError(f"--baseline: there is no finished run of {baseline!r}; there are {', '.join(arms)}")
    asked = source.report if isinstance(source, Ablation) and settings is None else report_section(settings or {}, arms)
    baseline = baseline or asked.baseline
    made = benchmarks(results, baseline)
    table = list(made.rows)
    claimed = judged(asked.claims, results)
    out.mkdir(parents=True, exist_ok=True)
    pairs = [row.comparison for claim in claimed for row in claim if row.comparison is not None]
    pages = write_pages(made, pairs, out, asked.questions)
    found = outcomes(asked.claims, claimed, pages, results)
    headline = builtin.mode(row.headline for row in table)
    main = [row for row in table if row.headline == headline]  # what can stand in one picture
    known = references.read(asked.references)
    marks = certainty.said_of_marks(made, baseline)
    said = [*notes(table, baseline), *marks, *certainty.said_of_rescored(results)]
    title = asked.title or (source.name if isinstance(source, Ablation) else "Runs")
    summary = _summary(table, results, found)
    own = {row.label: pages[key] for row in table if (key := (row.label, None, row.source)) in pages}
    missing = "".join(f"- {line}\n" for line in unfinished)
    first = [
        Section(f"Not in this report: {_counted(len(unfinished), 'run')}", [missing], "warn"),
        Section("What is claimed", found),
        Section("Results", [replace(arms_table(table, baseline, own), caption=" ".join(said))], "headline"),
    ]
    more = [
        *certainty.sections(made, baseline, pages),
        *diagnostics.sections(results),
        references.section(known, main[0].unit),
        Section("All runs", [runs_table(table)]),
        Section("How to reproduce", [_commands(source, results), _facts(results)]),
    ]
    drawn = Section("", _figures(main, len(table) - len(main), known), "figures")
    text = inert(f"# {title}\n\n{summary}\n\n")
    shown = [section for section in [*first, drawn, Section("", [asked.text]), *more] if any(section.parts)]
    board = paper.paper_table(made)
    contents = {
        "table.md": text + to_markdown([*first, *more]),
        "table.csv": to_csv([run_record(result) for result in results]),
        "table.tex": latex.to_latex(board, title, [board.caption, *marks, *certainty.said_of_other_metrics(made)]),
        "benchmarks.csv": to_csv(paper.records(made)),
        "report.html": render("page.html", title=title, summary=summary, sections=shown),
    }
    for name, content in contents.items():
        write_atomically(out / name, printable(content))
    print(_in_red(printable(text + to_markdown([*first, *more[:-2]]))))
    print(f"written: {', '.join(str(out / name) for name in contents)}")
    if pages:
        print(f"question by question: {_counted(len(pages), 'page')} in {out}/answers and {out}/diffs")
    return Report(table, made, found, results, unfinished, contents["table.md"], [out / name for name in contents])


def _in_red(text: str) -> str:
    """With the claims that do not hold in red, where a terminal shows it."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return "\n".join(_RED.format(line) if line.startswith("- ❌") else line for line in text.split("\n"))


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _summary(table: Sequence[Row], results: Sequence[Result], found: Sequence[Outcome]) -> str:
    seeds = sorted({len(row.results) for row in table})
    per_arm = " or ".join(map(str, seeds)) + (" run" if seeds == [1] else " runs")
    count = len({row.arm for row in table})
    arms = _counted(count, "arm") + (f" in {len(table)} settings" if len(table) > count else "")
    seconds = sum(one for result in results if (one := result.number("train_seconds")))
    total = f"; {duration(seconds)} of training in all" if seconds else ""
    held = f" {sum(one.held is True for one in found)} of {_counted(len(found), 'claim')} held." if found else ""
    return f"{arms}, {per_arm} each{total}.{held}"


def _figures(same: Sequence[Row], left_out: int, listed: Sequence[references.Reference]) -> list[Figure]:
    """The pictures that the rows, all of the ``same`` metric, have data for."""
    rest = f" Rows judged by another metric than {same[0].headline} are left out." if left_out else ""
    known = [(label, score) for label, score, _ in listed if score is not None]
    dashed = " Dashed: references, which are no runs of this ablation." if known else ""
    slices = dict.fromkeys(one for row in same for result in row.results if (one := result.validated_on))
    asked = f" on a slice of the questions ({', '.join(slices)})" if slices else ""
    marks = "A marker is the mean over the runs, a faint dot is a run."
    context, step = "context length (tokens)", "time of a step (s, median)"
    drawn = {
        "Score": (plots.bars(same, known), f"A bar is the mean over the runs, a dot is a run.{dashed}"),
        "Learning curves": (
            plots.curves(same),
            f"Thin lines are runs, bold lines their mean, of the validations while training{asked}. Circles: the means "
            "of the table, on all questions.",
        ),
        "Training loss": (
            plots.losses(same),
            f"The mean over an arm's runs, and over the last 1/{plots.SMOOTHING} of what was logged.",
        ),
        "Score and context length": (plots.against(same, "context_length", context), marks),
        "Score and step time": (plots.against(same, "step_seconds", step), f"{marks} Step times are of one machine."),
    }
    return [Figure(title, svg, caption + rest) for title, (svg, caption) in drawn.items() if svg is not None]


def _commands(source: Any, results: Sequence[Result]) -> str:
    recipes = [result.path / "recipe.yaml" for result in results]
    commands = [shlex.join(["dslight", "fit", str(path)]) for path in recipes if path.exists()]
    if isinstance(source, Ablation):
        commands = [shlex.join(["dslight", "sweep", str(source.path), *source.overrides])]
    return "".join(f"```\n{command}\n```\n" for command in commands)


def _facts(results: Sequence[Result]) -> Table:
    """Commit and versions; where runs differ, all values."""
    names = dict.fromkeys(name for result in results for name in result.versions)
    versions = [[name, _all_values(result.versions.get(name, "?") for result in results)] for name in names]
    commits = _all_values(result.commit or "not recorded" for result in results)
    return Table(["library", "version"], [["this checkout (git)", commits], *versions], names=2)


def _all_values(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))
