"""The page of benchmarks, ``docs/benchmarks.md``: made from the tables of sets and of benchmarks.

Run ``python -m data_prep.eval.overview > docs/benchmarks.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from data_prep.eval.sets import SETS
from data_prep.eval.sources import EQUAL, SOURCES
from dslight.metrics.benchmarks import BENCHMARKS

_HEAD = """# Benchmarks

Made by `python -m data_prep.eval.overview`.

`python -m data_prep.eval NAME --annotations FILES --images FOLDER --out DIR` reads the authors' files, and
parquet files of the Hub with the pictures inside; `data.val: {NAME: DIR}` asks and judges as this table says. `choice`,
`yes_no` and `short` read any other set of their kind, and `--circular` asks every rotation of the options
(`benchmark: circular`).
Where an evaluator asks a language model what an answer without a letter means, such an answer is `unresolved` here, and
wrong.
Columns of the Hub's files are those of the dataset cards, where these name them (DocVQA, InfographicVQA, which has no
`evidence` there, AI2D, OCRBench, LongVideoBench, MMLongBench-Doc), else those that lmms-eval's tasks of Aug 2026 read;
CharXiv's are those that several programs read. The kinds of ActivityNet-QA's questions are numbered as its repository
says.
The protocols are described in `dslight/metrics/functional/`; a source takes another by `protocol:`, where the
metric has several. *Equal to*: the code that gave the same scores to the same generated answers, at a commit, and the
day on which that was last tried; – where a language model judges, or their code was not run. Those whose answers are
kept (`tests/golden/metrics`) are tried by every run of the tests.

| name | source | score | protocol | whose rules | equal to | date | answers hidden |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def lines() -> Iterator[str]:
    """The rows of the table."""
    for name, row in SETS.items():
        source, benchmark = SOURCES[name], BENCHMARKS[row.benchmark]
        metric = benchmark.build()
        protocol = getattr(metric, "protocol", None) or getattr(metric, "rule", None) or "–"
        to, date = EQUAL[source.equal][:2] if source.equal else ("–", "–")
        cells = (f"`{name}`", source.files, metric.headline, protocol, source.rules, to, date, benchmark.hidden or "–")
        yield f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    return _HEAD + "\n".join(lines()) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
