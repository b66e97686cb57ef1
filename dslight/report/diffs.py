"""What did one arm get right that another did not, and the other way round: a page for a pair of arms and a source.

Decided here: a question counts as right if its score is at least one half. Questions stand in the order of the
difference of their mean score over the seeds, those with the same difference in no order (by a hash of the id), so that
the ones shown are no selection by where they stand in the file. The page says how many there are beside those shown.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dslight.report.benchmarks import Comparison
from dslight.report.certainty import estimated, shown_p
from dslight.report.page import Gallery, Table, render
from dslight.report.paper import title_of
from dslight.report.pictures import Pictures
from dslight.report.questions import Answers, aligned
from dslight.report.statistics import mcnemar

RIGHT = 0.5
SHOWN = 40
"""Questions shown on a page of those that are better, and as many of those that are worse."""

FOLDER = "diffs"
_LONGEST = 1200  # characters of a text on the page
_TYPES = 40  # more types than this are no table that one reads


@dataclass(frozen=True)
class Said:
    """What a run answered."""

    run: str
    text: str
    score: float
    right: bool


@dataclass(frozen=True)
class Card:
    """A question with its pictures, or why there are none, and what both arms answered to it."""

    id: str
    type: str
    question: str
    references: Sequence[str]
    pictures: Gallery | str
    ours: Sequence[Said]
    theirs: Sequence[Said]
    count: str


@dataclass(frozen=True)
class Side:
    """The questions that one of the arms is better at."""

    title: str
    total: int
    cards: Sequence[Card]


@dataclass(frozen=True)
class DiffPage:
    """What the template sees."""

    title: str
    arm: str
    base: str
    summary: str
    counts: Table
    types: Table | None
    sides: Sequence[Side]
    back: str = "../report.html"


def write_diffs(
    comparisons: Sequence[Comparison], out: Path, shown: int = SHOWN, pictures: Pictures | None = None
) -> dict[tuple[str, str, str], str]:
    """Write a page for each comparison into ``out/diffs``.

    Returns:
        Its address, relative to ``out``, by (arm, base, source).
    """
    pictures = pictures or Pictures()
    addresses: dict[tuple[str, str, str], str] = {}
    for one in comparisons:
        pair = (one.arm, one.base, one.source)
        if pair in addresses:
            continue
        name = "-".join(re.sub(r"[^\w.=]+", "_", text) for text in pair)
        while (address := f"{FOLDER}/{name}.html") in addresses.values():  # names that differ only in such characters
            name += "_"
        addresses[pair] = address
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        (out / address).write_text(render(diff_page(one, shown, pictures), "diff.html"), encoding="utf-8")
    return addresses


def diff_page(one: Comparison, shown: int, pictures: Pictures) -> DiffPage:
    """The page of a comparison."""
    ids, scores = aligned([*one.ours, *one.theirs])
    ours, theirs = scores[: len(one.ours)], scores[len(one.ours) :]
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    better, worse = (_order(ids, sign * difference) for sign in (1, -1))
    alike = len(ids) - len(better) - len(worse)
    over = one.difference
    return DiffPage(
        title=f"{title_of(one.source)}: {one.arm} and {one.base}",
        arm=one.arm,
        base=one.base,
        summary=(
            f"Of {len(ids):,} questions, {len(better):,} score higher with {one.arm}, {len(worse):,} with {one.base}, "
            f"{alike:,} alike"
            + (f" (means over {len(one.seeds)} seeds)" if len(one.seeds) > 1 else "")
            + f". Mean difference in points, with its 95 % interval over questions: "
            f"{estimated(over.value, over.over_questions, signed=True)}."
        ),
        counts=_counts(one, ours >= RIGHT, theirs >= RIGHT, ours.mean(axis=0), theirs.mean(axis=0)),
        types=_types(one, ids, ours.mean(axis=0), theirs.mean(axis=0)),
        sides=[
            Side(f"{first} is better", len(found), _cards(one, [ids[i] for i in found[:shown]], pictures))
            for first, found in ((one.arm, better), (one.base, worse))
        ],
    )


def _order(ids: Sequence[str], difference: NDArray[np.float64]) -> list[int]:
    """The questions with a difference above zero, the largest first."""
    found = np.flatnonzero(difference > 1e-9).tolist()
    return sorted(found, key=lambda i: (-round(float(difference[i]), 9), zlib.crc32(ids[i].encode())))


def _counts(one: Comparison, ours: Any, theirs: Any, our_mean: Any, their_mean: Any) -> Table:
    """How often both, one or none of the arms is right, by seed and on the mean over seeds."""
    rows = [(f"seed {'–' if seed is None else seed}", a, b) for seed, a, b in zip(one.seeds, ours, theirs, strict=True)]
    if len(rows) > 1:
        rows.append(("mean over seeds", our_mean >= RIGHT, their_mean >= RIGHT))
    lines = []
    for label, a, b in rows:
        numbers = [int(x.sum()) for x in (a & b, a & ~b, ~a & b, ~a & ~b)]
        lines.append([label, *(f"{number:,}" for number in numbers), shown_p(mcnemar(numbers[1], numbers[2]))])
    head = ["", "both right", f"only {one.arm}", f"only {one.base}", "both wrong", "p (McNemar)"]
    return Table(
        head, lines, caption="Right: a score of at least one half. McNemar's test is the exact, two-sided one."
    )


def _types(one: Comparison, ids: Sequence[str], ours: Any, theirs: Any) -> Table | None:
    """Where the difference comes from, by type of question."""
    kind_of = dict(zip(one.ours[0].ids, one.ours[0].types, strict=True))
    kinds = np.array([kind_of[one] for one in ids])
    names = list(dict.fromkeys(kinds.tolist()))
    if not 1 < len(names) <= _TYPES:
        return None
    found = [(name or "–", kinds == name) for name in names]
    lines = [(name, int(at.sum()), 100 * ours[at].mean(), 100 * theirs[at].mean()) for name, at in found]
    lines.sort(key=lambda line: line[3] - line[2])
    return Table(
        ["type", "questions", one.arm, one.base, "difference"],
        [[n, f"{count:,}", f"{a:.1f}", f"{b:.1f}", f"{a - b:+.1f}".replace("-", "−")] for n, count, a, b in lines],
        caption="Mean scores in percent.",
    )


def _cards(one: Comparison, ids: Sequence[str], pictures: Pictures) -> list[Card]:
    ours, theirs = (
        [_said(run, seed, ids) for seed, run in zip(one.seeds, runs, strict=True)] for runs in (one.ours, one.theirs)
    )
    run = one.ours[0].path.parent.parent
    cards = []
    for number, line in enumerate(one.ours[0].lines(ids)):
        both = [[said[number] for said in side] for side in (ours, theirs)]
        right = [sum(said.right for said in side) for side in both]
        count = f"right in {right[0]} of {len(both[0])} runs, {one.base} in {right[1]}" if len(one.seeds) > 1 else ""
        cards.append(
            Card(
                id=ids[number],
                type=str(line.get("type") or ""),
                question=_cut(line.get("question") or line.get("prompt") or ""),
                references=[_cut(text) for text in dict.fromkeys(map(str, line.get("references") or []))],
                pictures=pictures.of(run, one.source, str(line.get("key") or "")),
                ours=both[0],
                theirs=both[1],
                count=count,
            )
        )
    return cards


def _said(run: Answers, seed: int | None, ids: Sequence[str]) -> list[Said]:
    return [
        Said(
            "" if seed is None else f"seed {seed}",
            _cut(str(line.get("prediction") or "")),
            float(line["score"]),
            float(line["score"]) >= RIGHT,
        )
        for line in run.lines(ids)
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters)"
