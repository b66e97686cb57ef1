"""What was asked and answered, with the pictures: a page for an arm on a source, and one for a pair of arms, of what
one got right that the other did not.

Decided here: a question counts as right if its score is at least one half, in the mean over the seeds. Questions of a
pair stand in the order of the difference of that mean; those alike in it, and those of an arm, in no order (by a hash
of the id), so that the ones shown are no selection by where they stand in the file. The page says how many there are
beside those shown.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dslight.files.atomic import write_atomically
from dslight.report.benchmarks import Benchmarks
from dslight.report.certainty import estimated, shown_p
from dslight.report.forms import Line
from dslight.report.page import Gallery, Pages, Table, render
from dslight.report.paper import title_of
from dslight.report.pictures import Pictures
from dslight.report.questions import Answers, aligned
from dslight.report.rows import PERCENT, Comparison
from dslight.report.statistics import mcnemar

RIGHT = 0.5
_LONGEST_NAME = 120  # bytes: some file systems take 143, with what stands around a name
_TYPES = 40  # more types than this are no table that one reads

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Card:
    """A question, its pictures (or why there are none), and by arm and run what was answered: lines of the files."""

    id: str
    line: Line
    pictures: Gallery | str
    answers: Mapping[str, Sequence[tuple[str, Line]]]


@dataclass(frozen=True)
class Side:
    """Questions that have something in common; of many, those shown are ``picked`` somehow."""

    title: str
    total: int
    cards: Sequence[Card]
    picked: str


@dataclass(frozen=True)
class QuestionPage:
    """What the template sees."""

    title: str
    summary: str
    counts: Table
    types: Table | None
    sides: Sequence[Side]


def write_pages(made: Benchmarks, pairs: Sequence[Comparison], out: Path, shown: int) -> Pages:
    """Write a page for each arm on each source into ``out/answers``, for each comparison into ``out/diffs``.

    Args:
        made: the arms.
        pairs: comparisons beside those with the baseline.
        out: the folder of the report.
        shown: questions shown on each side of a page; 0: no pages.
    """
    pages: dict[tuple[str, str | None, str], str] = {}
    pictures = Pictures()

    taken: set[str] = set()

    def write(folder: str, arm: str, base: str | None, source: str, page: QuestionPage) -> None:
        name = _page_name([text for text in (arm, base, source) if text is not None], folder, taken)
        pages[arm, base, source] = address = f"{folder}/{name}.html"
        (out / folder).mkdir(parents=True, exist_ok=True)
        write_atomically(out / address, render("questions.html", page=page, title=page.title, right=RIGHT))

    for row, cells in zip(made.rows, made.cells, strict=True) if shown else ():
        for source, cell in cells.items():
            if cell.estimate is not None:
                runs = {result.seed: result.answers[source] for result in row.results if source in result.answers}
                write("answers", row.label, None, source, arm_page(row.label, source, runs, shown, pictures))
    for one in [*made.comparisons, *pairs] if shown else ():
        if (one.arm, one.base, one.source) not in pages:
            write("diffs", one.arm, one.base, one.source, pair_page(one, shown, pictures))
    return pages


def _page_name(about: Sequence[str], folder: str, taken: set[str]) -> str:
    """What the page is about as a name of a file, noted as ``taken``. A long one is cut, and one that is taken (also
    where a file system tells no upper from lower case) gets a hash.
    """
    name = "-".join(re.sub(r"[^\w.=]+", "_", text) for text in about)
    if len(name.encode()) > _LONGEST_NAME or f"{folder}/{name}".casefold() in taken:
        begin = name.encode()[: _LONGEST_NAME - 9].decode(errors="ignore")
        name = f"{begin}-{hashlib.sha256(repr(about).encode()).hexdigest()[:8]}"
    taken.add(f"{folder}/{name}".casefold())
    return name


def arm_page(arm: str, source: str, runs: Mapping[int | None, Answers], shown: int, pictures: Pictures) -> QuestionPage:
    """What an arm answered on a source; ``runs`` by seed."""
    ids, scores = aligned(list(runs.values()))
    mean = scores.mean(axis=0)
    right = [(_seed(seed), row >= RIGHT) for seed, row in zip(runs, scores, strict=True)]
    if len(runs) > 1:
        right.append(("mean over seeds", mean >= RIGHT))
    counts = [[label, f"{int(at.sum()):,}", f"{int((~at).sum()):,}"] for label, at in right]
    sides = []
    for title, at in (("Wrong", mean < RIGHT), ("Right", mean >= RIGHT)):
        found = _order(ids, at.astype(float))
        cards = _cards({arm: runs}, source, [ids[i] for i in found[:shown]], pictures)
        sides.append(Side(title, len(found), cards, "at random"))
    return QuestionPage(
        title=f"{title_of(source)}: {arm}",
        summary=f"Of {len(ids):,} questions, {sides[1].total:,} right{_over_seeds(runs)}; mean score "
        f"{PERCENT(float(mean.mean()))} %.",
        counts=Table(["", "right", "wrong"], counts, caption="Right: a score of at least one half."),
        types=_types(next(iter(runs.values())), ids, {arm: mean}),
        sides=sides,
    )


def pair_page(one: Comparison, shown: int, pictures: Pictures) -> QuestionPage:
    """What one of two arms got right that the other did not, and the other way round."""
    ids, scores = aligned([*one.ours, *one.theirs])
    ours, theirs = scores[: len(one.ours)], scores[len(one.ours) :]
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    better, worse = (_order(ids, sign * difference) for sign in (1, -1))
    arms = {
        one.arm: dict(zip(one.seeds, one.ours, strict=True)),
        one.base: dict(zip(one.seeds, one.theirs, strict=True)),
    }
    sides = []
    for arm, found in ((one.arm, better), (one.base, worse)):
        cards = _cards(arms, one.source, [ids[i] for i in found[:shown]], pictures)
        sides.append(Side(f"{arm} is better", len(found), cards, "by the difference, of those alike in it at random"))
    over = one.difference
    return QuestionPage(
        title=f"{title_of(one.source)}: {one.arm} and {one.base}",
        summary=(
            f"Of {len(ids):,} questions, {len(better):,} score higher with {one.arm}, {len(worse):,} with {one.base}, "
            f"{len(ids) - len(better) - len(worse):,} alike{_over_seeds(one.seeds)}. Mean difference in points, with "
            f"its 95 % interval over questions: {estimated(over.value, over.over_questions, signed=True)}."
        ),
        counts=_counts(one, ours, theirs),
        types=_types(one.ours[0], ids, {one.arm: ours.mean(axis=0), one.base: theirs.mean(axis=0)}),
        sides=sides,
    )


def _over_seeds(seeds: Mapping[int | None, Answers] | Sequence[int | None]) -> str:
    return f" (means over {len(seeds)} seeds)" if len(seeds) > 1 else ""


def _seed(seed: int | None) -> str:
    return f"seed {'–' if seed is None else seed}"


def _order(ids: Sequence[str], weight: Scores) -> list[int]:
    """The questions with a weight above zero, the largest first."""
    found = np.flatnonzero(weight > 1e-9).tolist()
    return sorted(found, key=lambda i: (-round(float(weight[i]), 9), zlib.crc32(ids[i].encode())))


def _counts(one: Comparison, ours: Scores, theirs: Scores) -> Table:
    """How often both, one or none of the arms is right, by seed and on the mean over seeds."""
    rows = [(_seed(seed), a, b) for seed, a, b in zip(one.seeds, ours, theirs, strict=True)]
    if len(rows) > 1:
        rows.append(("mean over seeds", ours.mean(axis=0), theirs.mean(axis=0)))
    lines = []
    for label, a, b in rows:
        a, b = a >= RIGHT, b >= RIGHT
        numbers = [int(x.sum()) for x in (a & b, a & ~b, ~a & b, ~a & ~b)]
        lines.append([label, *(f"{number:,}" for number in numbers), shown_p(mcnemar(numbers[1], numbers[2]))])
    head = ["", "both right", f"only {one.arm}", f"only {one.base}", "both wrong", "p (McNemar)"]
    return Table(
        head, lines, caption="Right: a score of at least one half. McNemar's test is the exact, two-sided one."
    )


def _types(answers: Answers, ids: Sequence[str], means: Mapping[str, Scores]) -> Table | None:
    """The mean scores by type of question and, of two arms, their difference, which is what the types stand by."""
    kind_of = dict(zip(answers.ids, answers.types, strict=True))
    kinds = np.array([kind_of[one] for one in ids])
    names = list(dict.fromkeys(kinds.tolist()))
    if not 1 < len(names) <= _TYPES:
        return None
    found = [(name or "–", kinds == name) for name in names]
    lines = [(name, int(at.sum()), [float(mean[at].mean()) for mean in means.values()]) for name, at in found]
    lines.sort(key=lambda line: line[2][-1] - line[2][0])
    both = ["difference"] if len(means) > 1 else []
    return Table(
        ["type", "questions", *means, *both],
        [
            [n, f"{count:,}", *map(PERCENT, x), *(PERCENT(x[0] - x[1], signed=True) for _ in both)]
            for n, count, x in lines
        ],
        caption="Mean scores in percent.",
    )


def _cards(
    arms: Mapping[str, Mapping[int | None, Answers]], source: str, ids: Sequence[str], pictures: Pictures
) -> list[Card]:
    said = {arm: [(_seed(seed), run.lines(ids)) for seed, run in runs.items()] for arm, runs in arms.items()}
    first = next(iter(next(iter(arms.values())).values()))
    run = first.path.parent.parent
    return [
        Card(
            ids[i],
            line,
            pictures.of(run, source, line.key or ""),
            {arm: [(seed, lines[i]) for seed, lines in each] for arm, each in said.items()},
        )
        for i, line in enumerate(first.lines(ids))
    ]
