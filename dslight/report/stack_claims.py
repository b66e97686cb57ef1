"""Claims about single stacks: what an arm's score loses when one of them is left out, in the runs that were diagnosed.

Decided here: each stack has to meet the bounds in every seed, and at every setting of a grid; a mean would hide the
seed in which a stack is not read. The scores are those of ``diagnostics.drop``, on the first ``diagnostics.limit``
questions of each source, paired question by question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from dslight.recipe.report_section import Claim
from dslight.report.rows import PERCENT, Unit
from dslight.report.runs import Result

Check = tuple[bool | None, str]
"""Whether the bounds are met (``None``: it cannot be checked), and the numbers."""


def check_stacks(claim: Claim, arm: str, results: Sequence[Result]) -> list[Check]:
    """A check for each stack of the arm, source by source, setting by setting."""
    runs: dict[str, list[Result]] = {}
    for result in results:
        if result.arm == arm:
            runs.setdefault(result.label, []).append(result)
    return [check for label, found in runs.items() for check in _of_setting(claim, label, found)]


def _of_setting(claim: Claim, label: str, runs: Sequence[Result]) -> list[Check]:
    blind = [run for run in runs if not _ways(run)]
    if blind:
        seeds = ", ".join(str(run.seed) for run in blind)
        return [(None, f"{label}: no stack was left out in the runs of seed {seeds}; set diagnostics.drop")]
    keys = dict.fromkeys((source, name) for run in runs for source, name in _ways(run))
    return [_check(claim, label, source, name, runs) for source, name in keys]


def _ways(run: Result) -> list[tuple[str, str]]:
    """(source, ``without_K``) of every stack that was left out."""
    scores = run.diagnosed.scores if run.diagnosed else {}
    return [
        (source, name) for source, ways in scores.items() for name in ways if name.removeprefix("without_").isdigit()
    ]


def _check(claim: Claim, label: str, source: str, name: str, runs: Sequence[Result]) -> Check:
    deltas: dict[str, float] = {}
    unit = PERCENT
    for run in runs:
        ways: Mapping[str, Mapping[int, float]] = run.diagnosed.scores.get(source, {}) if run.diagnosed else {}
        whole, without = ways.get("all", {}), ways.get(name, {})
        shared = sorted(set(whole) & set(without))
        if not shared:
            return None, f"{label} without stack {name.removeprefix('without_')}: seed {run.seed} has no such scores"
        if not all(0 <= score <= 1 for way in (whole, without) for score in way.values()):
            unit = Unit(1.0, "")
        deltas[f"seed {run.seed}"] = fmean(without[number] - whole[number] for number in shared)
    points = " points" if unit is PERCENT else ""
    limits = {"at least": claim.at_least, "at most": claim.at_most}
    bounds = " and ".join(f"{word} {limit:g}{points}" for word, limit in limits.items() if limit is not None)
    low, high = claim.bounds
    held = all(low <= round(unit.factor * delta, 9) <= high for delta in deltas.values())
    each = ", ".join(f"{seed}: {unit(delta, signed=True)}" for seed, delta in deltas.items())
    mean = unit(fmean(deltas.values()), signed=True)
    stack = name.removeprefix("without_")
    return held, f"{label} without stack {stack} on {source}, claimed to be {bounds}: {mean}{points} ({each})"
