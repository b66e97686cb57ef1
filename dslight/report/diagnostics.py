"""What diagnostics found in the runs of a report: how large the stacks are, what the scores lose without them or with
the wrong ones, where in the image answers come from.

Read from ``diagnostics.json`` and ``diagnostics/`` of each run. Numbers of an arm are means over its seeds. The
standard error of a difference is over the questions: the mean over the seeds first, then its spread from question to
question.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any

from markupsafe import Markup

from dslight.report.page import Figure, Section, Table
from dslight.report.rows import PERCENT, Unit
from dslight.report.runs import Result

SHOWN = 4
"""Heat maps of an arm on the page; the others are in its folder."""

Found = Mapping[str, Any]


def sections(results: Sequence[Result]) -> list[Section]:
    """One section, or none where no run was diagnosed."""
    arms: dict[str, list[tuple[Result, Found]]] = {}
    for result in results:
        if result.diagnosed is not None:
            arms.setdefault(result.label, []).append((result, result.diagnosed.found))
    if not arms:
        return []
    found = {arm: [one for _, one in runs] for arm, runs in arms.items()}
    parts: list[Table | Figure | str] = [*_norms(found), *_own_numbers(found)]
    sources = dict.fromkeys(source for runs in found.values() for one in runs for source in one["comparisons"])
    for source in sources:
        parts += _comparisons(source, arms, alone=len(sources) == 1)
    for arm, runs in arms.items():
        parts += _heat_maps(arm, *runs[0])
    without = [arm for arm, runs in found.items() if not runs[0]["stacks"]]
    if without:
        parts.append(f"Without stacks, so with nothing to measure: {', '.join(without)}.")
    return [Section("Do the stacks do anything?", parts)]


def _norms(found: Mapping[str, Sequence[Found]]) -> Iterator[Table]:
    """A row per arm, a column per stack; the larger the darker."""
    measured = {arm: runs for arm, runs in found.items() if runs[0].get("norms")}
    if not measured:
        return
    most = max(len(runs[0]["norms"]) for runs in measured.values())
    means = {arm: [_mean_norm(runs, i) for i in range(len(runs[0]["norms"]))] for arm, runs in measured.items()}
    largest = max((x for each in means.values() for x, _ in each if isfinite(x)), default=0.0) or 1.0
    lines = []
    for arm, each in means.items():
        places = [
            f"{'encoder' if norm['part'] == 'vision_encoder' else 'layer'} {norm['layer']}"
            for norm in measured[arm][0]["norms"]
        ]
        cells = [_heat(place, *mean, largest) for place, mean in zip(places, each, strict=True)]
        lines.append([arm, *cells, *["–"] * (most - len(cells))])
    yield Table(
        ["arm", *(f"stack {i}" for i in range(1, most + 1))],
        lines,
        caption="Norm of what a stack adds, relative to the residual stream where it is added, behind its gate; in "
        "parentheses the cosine of the two. Means over the positions that hold a stack, and over seeds. “Encoder”: "
        "added inside the vision encoder.",
    )


def _mean_norm(runs: Sequence[Found], i: int) -> tuple[float, float]:
    norms = [one["norms"][i] for one in runs if i < len(one["norms"])]
    return statistics.fmean(n["relative"] for n in norms), statistics.fmean(n["cosine"] for n in norms)


def _heat(place: str, relative: float, cosine: float, largest: float) -> Markup:
    strength = round(60 * relative / largest) if isfinite(relative) else 0
    style = f"background: color-mix(in srgb, var(--accent) {strength}%, transparent); padding: 0.15rem 0.4rem"
    text = f"{relative:.2f} ({cosine:+.2f})".replace("-", "−")
    return Markup('<span style="{}">{}</span> <small>{}</small>').format(style, text, place)


def _own_numbers(found: Mapping[str, Sequence[Found]]) -> Iterator[Table]:
    """What the stackings say of themselves: their gates."""
    numbers = {arm: runs for arm, runs in found.items() if runs[0]["parts"].get("stacking")}
    if not numbers:
        return
    names = dict.fromkeys(name for runs in numbers.values() for name in runs[0]["parts"]["stacking"])
    lines = []
    for arm, runs in numbers.items():
        own = [one["parts"].get("stacking", {}) for one in runs]
        each = [[of[name] for of in own if name in of] for name in names]
        lines.append([arm, *(f"{statistics.fmean(values):.3g}" if values else "–" for values in each)])
    yield Table(["arm", *names], lines, caption="What the stackings' own parameters are, means over seeds.")


def _comparisons(source: str, arms: Mapping[str, Sequence[tuple[Result, Found]]], alone: bool) -> Iterator[Table]:
    """A row per way to run the model, a column per arm."""
    compared = {arm: runs for arm, runs in arms.items() if runs[0][1]["comparisons"].get(source)}
    if not compared:
        return
    ways = {way["name"]: way["title"] for runs in compared.values() for way in runs[0][1]["comparisons"][source]}
    order = sorted(ways, key=lambda name: (name in ("permuted", "other_image"), name == "without_any"))
    scores = {
        arm: [one.diagnosed.scores[source] for one, found in runs if one.diagnosed and found["comparisons"].get(source)]
        for arm, runs in compared.items()
    }
    scored = [score for runs in scores.values() for run in runs for way in run.values() for score in way.values()]
    unit = PERCENT if all(0 <= score <= 1 for score in scored) else Unit(1.0, "")
    asked = [str(len({number for run in runs for number in run["all"]})) for runs in scores.values()]
    lines = [[ways[name], *(_cell(runs, name, unit) for runs in scores.values())] for name in order]
    yield Table(
        ["scores" if alone else f"scores on {source}", *scores],
        [["questions", *asked], *lines],
        caption=f"Scores {f'in {unit.name} ' if unit.name else ''}on the first questions of the validation set: with "
        "all stacks, then what changes without one of them or with the wrong ones, ± its standard error over the "
        "questions (paired). Were the stacks not read, those of another image would change nothing.",
    )


def _cell(runs: Sequence[Mapping[str, Mapping[int, float]]], name: str, unit: Unit) -> str:
    if name not in runs[0]:
        return "–"
    if name == "all":
        return unit(statistics.fmean(score for run in runs for score in run["all"].values()))
    runs = [run for run in runs if name in run]
    shared = set.intersection(*(set(run[name]) & set(run["all"]) for run in runs))
    deltas = [statistics.fmean(run[name][number] - run["all"][number] for run in runs) for number in sorted(shared)]
    if not deltas:
        return "–"
    error = f" ± {unit(statistics.stdev(deltas) / sqrt(len(deltas)))}" if len(deltas) > 1 else ""
    return unit(statistics.fmean(deltas), signed=True) + error


def _heat_maps(arm: str, result: Result, found: Found) -> Iterator[Figure | str]:
    maps = found.get("heat_maps") or []
    drawn = [one for one in maps if one["file"] and (result.path / "diagnostics" / one["file"]).is_file()]
    if maps and not drawn:
        yield f"No heat maps of {arm}: {maps[0].get('note', 'the pictures are missing')}."
    for one in drawn[:SHOWN]:
        data = base64.b64encode((result.path / "diagnostics" / one["file"]).read_bytes()).decode()
        picture = Markup('<img style="max-width: 100%" alt="heat maps" src="data:image/png;base64,{}">').format(data)
        yield Figure(
            f"{arm}: {one['question']}",
            str(picture),
            f"Reference {' / '.join(dict.fromkeys(one['references']))}, answered {one['answer']}; log-likelihood of "
            f"the reference {one['log_likelihood']:.2f}. " + _meaning(one["heat"]),
        )
    if len(drawn) > SHOWN:
        yield f"{len(drawn) - SHOWN} more heat maps of {arm} are in {result.path / 'diagnostics'}."


def _meaning(heat: str) -> str:
    """What the colours are."""
    return {
        "gradient_x_input": "Gradient times input of every token, where it lies: red speaks for the reference, blue "
        "against it. Each panel has its own scale.",
        "gradient": "Norm of the gradient by every token, where it lies. Each panel has its own scale.",
        "attention": "Attention from the reference to every visual position, in the mean of layers and heads.",
    }[heat]
