"""The claims of an ablation against its runs: each holds, does not hold, or cannot be checked yet.

Decided here: an arm is compared over the seeds that it shares with the other one, and at several settings of a grid a
claim has to hold at each. Where the score is a mean over questions and there are per-question files, the whole 95 %
interval over questions has to lie within the bounds: a claim that holds is no luck of these questions. It is a claim
about these trained models all the same; what other seeds would change stands beside it. Elsewhere the number itself has
to lie within the bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from dslight.recipe.errors import RecipeError
from dslight.recipe.report_section import Claim
from dslight.report.benchmarks import compare, estimate_all
from dslight.report.page import Outcome, Pages, link
from dslight.report.rows import Row, Unit, rows
from dslight.report.runs import Result
from dslight.report.stack_claims import check_stacks
from dslight.texts import closest

NUMBER = Unit(1.0, "", ".4g")


def judged(claims: Sequence[Claim], results: Sequence[Result]) -> list[list[Row]]:
    """The arms of each claim, judged by its score; where one is subtracted, compared question by question.

    Raises:
        RecipeError: a score that no run has.
    """
    tables = [
        [] if claim.without else _rows(f"report.claims.{i}.score", claim, results) for i, claim in enumerate(claims)
    ]
    means = [
        (claim, table, k)
        for claim, table in zip(claims, tables, strict=True)
        for k, row in enumerate(table)
        if row.is_mean and (row.base == () or row.of_base.is_mean)
    ]
    alone = [(table, k) for claim, table, k in means if not claim.base]
    pairs = [(table, k) for claim, table, k in means if claim.minus]
    for (table, k), one in zip(alone, estimate_all([table[k] for table, k in alone]), strict=True):
        table[k] = replace(table[k], estimate=one)
    for (table, k), one in zip(pairs, compare([table[k] for table, k in pairs]), strict=True):
        table[k] = replace(table[k], comparison=one)
    return tables


def outcomes(
    claims: Sequence[Claim], tables: Sequence[Sequence[Row]], pages: Pages, results: Sequence[Result] = ()
) -> list[Outcome]:
    """What became of each claim.

    Args:
        claims: about arms that there are.
        tables: what :func:`judged` found.
        pages: to which a comparison leads.
        results: of which claims about single stacks are checked.
    """
    found = []
    for claim, table in zip(claims, tables, strict=True):
        checks: list[tuple[bool | None, str]] = []
        for arm in claim.arms:
            if claim.without:
                of_arm = check_stacks(claim, arm, results)
            else:
                of_arm = [_check(claim, row, pages) for row in table if row.arm == arm]
            checks += of_arm or [(None, f"there is no finished run of {arm}")]
        held = [one for one, _ in checks]
        whole = False if False in held else None if None in held else True
        found.append(Outcome(claim.say, whole, [text for _, text in checks]))
    return found


def _rows(path: str, claim: Claim, results: Sequence[Result]) -> list[Row]:
    """The arms of a claim, judged by its score, next to the arm that they are compared with."""
    runs = results if claim.score is None else [one.judged_by(claim.score) for one in results]
    known = sorted({key for one in results for key in one.scores})
    if claim.score is not None and all(one.accuracy is None for one in runs):
        raise RecipeError(
            f"{path}: no finished run has {claim.score!r}{closest(claim.score, known)}; there are {', '.join(known)}, "
            f"and numbers of result.json, such as step_seconds"
        )
    table = [row for row in rows(runs, baseline=claim.base) if row.arm in claim.arms]
    of_result = claim.score is not None and claim.score not in known
    return [replace(row, unit=NUMBER) for row in table] if of_result else table


def _check(claim: Claim, row: Row, pages: Pages) -> tuple[bool | None, str]:
    """Whether one row meets the bounds, and the numbers."""
    unit = Unit(1.0, "×", ".2f") if claim.relative_to else row.unit
    name = {"": "", "×": "×"}.get(unit.name, " points" if claim.minus else " %")
    limits = {"at least": claim.at_least, "at most": claim.at_most, "within": claim.within}
    bounds = " and ".join(f"{word} {limit:g}{name}" for word, limit in limits.items() if limit is not None)
    what = f"{claim.score}: {row.label}" if claim.score else row.label
    if claim.base:
        what += f" {'−' if claim.minus else '/'} {row.of_base.label if row.base else claim.base}"
    if (one := row.comparison) is not None:
        what = link(what, pages.get((one.arm, one.base, one.source)))
    said = f", claimed to be {bounds}: "
    pairs = row.pairs
    if not claim.base:
        pairs = {one.seed: (one.accuracy, 0.0) for one in row.results if one.accuracy is not None}
    if not pairs or (claim.relative_to and not all(theirs for _, theirs in pairs.values())):
        return None, what + said + (
            f"there is no run of {claim.base} with the same seed and metric" if claim.base else "it has no such score"
        )

    def number(ours: float, theirs: float) -> float:
        return ours / theirs if claim.relative_to else ours - theirs

    signed = claim.minus is not None
    value = number(*(fmean(scores) for scores in zip(*pairs.values(), strict=True)))
    said += f"{unit(value, signed)}{name}"
    if len(pairs) > 1:
        said += f" ({', '.join(f'seed {seed}: {unit(number(*both), signed)}' for seed, both in pairs.items())})"
    ends = (value, value)
    if (sure := one.difference if one else row.estimate) is not None:
        ends = (sure.over_questions.low, sure.over_questions.high)
        said += f", 95 % over other questions {unit.interval(sure.over_questions, signed)}"
        if sure.over_seeds is not None:
            said += f", and other seeds {unit.interval(sure.over_seeds, signed)}"
    low, high = claim.bounds
    return low <= round(unit.factor * ends[0], 9) and round(unit.factor * ends[1], 9) <= high, what + said
