"""What the evidence's runs found, into their page: ``python -m benchmarks.evidence --runs runs/evidence --page
docs/evidence.md``.

The page is written by hand but for what stands between two marks, which is made of ``table.md`` (``dslight report``)
and the runs' ``result.json``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- results: python -m benchmarks.evidence -->", "<!-- end of results -->"
TEXT = "val/text/loss"


def results(runs: Path) -> str:
    """Markdown of everything that the runs say.

    Raises:
        SystemExit: a run or the report is missing.
    """
    files = {name: runs / name / "result.json" for name in ("encoder", "align")}
    missing = [str(path) for path in [*files.values(), runs / "table.md"] if not path.exists()]
    if missing:
        raise SystemExit(f"not there yet: {', '.join(missing)}; make evidence continues")
    encoder, align = (json.loads(path.read_text()) for path in files.values())
    found = sorted((runs / "arms").glob("*/seed=*/result.json"))
    arms = {str(path.parent.relative_to(runs / "arms")): json.loads(path.read_text()) for path in found}
    return "\n\n".join(
        [
            _run(encoder, align, [*arms.values()]),
            *_text(align, arms),
            "## The report's tables\n\n" + _deeper((runs / "table.md").read_text().strip()),
        ]
    )


def page(old: str, new: str) -> str:
    """The page with ``new`` between its marks.

    Raises:
        SystemExit: it has no such marks.
    """
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args(argv)
    args.page.write_text(page(args.page.read_text(), results(args.runs)))
    print(f"{args.page}: written")


def _run(encoder: dict[str, Any], align: dict[str, Any], arms: Sequence[dict[str, Any]]) -> str:
    whole = [encoder, align, *arms]
    hours = sum(run["train_seconds"] for run in whole) / 3600
    versions = ", ".join(f"{name} {number}" for name, number in align["versions"].items())
    scores = {key.rpartition("/")[2]: value for key, value in encoder["scores"].items() if key.endswith("accuracy")}
    read = ", ".join(f"{100 * value:.1f} % ({name})" for name, value in scores.items())
    return (
        f"## The run\n\n{len(arms)} runs of the arms, one of stage 1, one of the encoder: {hours:.1f} hours of "
        f"training, summed over processes. Of the patches of new sheets the encoder names {read}. With {versions}."
    )


def _text(align: dict[str, Any], arms: dict[str, dict[str, Any]]) -> list[str]:
    """Loss of plain answers, before and after."""
    lines = ["## Text ability", "", "| | loss of plain answers |", "| --- | ---: |"]
    lines.append(f"| the language model as it came | {align['scores'][TEXT]:.3f} |")
    lines += [f"| `{name}` | {run['scores'][TEXT]:.3f} |" for name, run in arms.items()]
    return ["\n".join(lines)]


def _deeper(markdown: str) -> str:
    """Headings two levels down, so that they stand below the page's."""
    return "\n".join(f"##{line}" if line.startswith("#") else line for line in markdown.splitlines())


if __name__ == "__main__":
    main()
