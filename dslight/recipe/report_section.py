"""What an ablation file may say under ``report``, checked with the ablation: before anything is trained.

A sentence about a result is a *claim*, bound to the comparison that it stands or falls with; ``docs/report.md`` has
examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal

from jsonargparse import ArgumentParser

from dslight.recipe.errors import RecipeError
from dslight.recipe.explain import arguments_fault
from dslight.texts import closest


@dataclass(frozen=True)
class Claim:
    """A sentence about a result, and what has to be so for it to hold.

    Args:
        say: the sentence.
        arm: whose score is meant; of several arms, each has to meet the bounds.
        minus: the arm whose score is subtracted, over the seeds that both have.
        relative_to: the arm whose score is divided by.
        score: a key of the scores (``val/SOURCE/METRIC``) or of ``result.json`` (``step_seconds``); default: the
            headline.
        without: ``each_stack``: the number is what the score changes by when one stack is left out, for each of them
            and in every seed, from ``diagnostics.drop``.
        at_least, at_most: bounds, in the units of the report: a share is in percent, a difference of shares in points.
        within: the largest difference, either way.
    """

    say: str
    arm: str | list[str]
    minus: str | None = None
    relative_to: str | None = None
    score: str | None = None
    without: Literal["each_stack"] | None = None
    at_least: float | None = None
    at_most: float | None = None
    within: float | None = None

    @property
    def arms(self) -> list[str]:
        """The arms that have to meet the bounds."""
        return [self.arm] if isinstance(self.arm, str) else self.arm

    @property
    def base(self) -> str | None:
        """The arm to compare with, if there is one."""
        return self.minus or self.relative_to

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest number with which the claim holds."""
        if self.within is not None:
            return -self.within, self.within
        low, high = self.at_least, self.at_most
        return -float("inf") if low is None else low, float("inf") if high is None else high

    def fault(self) -> str | None:
        """What the keys, each of which may be as it is, cannot mean together: ``key: why``."""
        bounds = {name: getattr(self, name) for name in ("at_least", "at_most", "within")}
        given = [name for name, value in bounds.items() if value is not None]
        for name in given:
            if not isfinite(bounds[name]):
                return f"{name}: {bounds[name]} bounds nothing"
        if not given:
            return "at_least: missing; a claim needs a bound: at_least, at_most, or within"
        if not self.arms:
            return "arm: [] names no arm"
        if self.minus and self.relative_to:
            return f"relative_to: {self.relative_to}, and minus {self.minus}; a claim subtracts or divides"
        beside = {"minus": self.minus, "relative_to": self.relative_to, "score": self.score, "within": self.within}
        for key, value in beside.items():
            if self.without and value is not None:
                return f"{key}: {value}, and without {self.without}, which compares an arm's own score with itself"
        if self.base in self.arms:
            return f"{'minus' if self.minus else 'relative_to'}: {self.base} would be compared with itself"
        if self.within is not None and not self.minus:
            return f"within: {self.within:g} bounds a difference; name the arm that is subtracted: minus"
        if self.within is not None and (len(given) > 1 or self.within < 0):
            return f"within: {self.within:g} is the largest difference either way: not negative, and alone"
        if self.bounds[0] > self.bounds[1]:
            return f"at_least: {self.at_least:g} is more than at_most: {self.at_most:g}"
        return None


@dataclass(frozen=True)
class Reference:
    """A score to compare with that is no run: ``value``, or the number at the dotted ``key`` of a JSON ``file``."""

    label: str
    value: float | None = None
    file: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class ReportSection:
    """The section, see above."""

    title: str | None = None
    baseline: str | None = None
    text: str = ""
    references: list[Reference] = field(default_factory=list)
    questions: int = 40
    claims: list[Claim] = field(default_factory=list)


def report_section(values: Mapping[str, Any], arms: Sequence[str]) -> ReportSection:
    """The section as an object.

    Args:
        values: as the ablation file has them, resolved.
        arms: that there are.

    Raises:
        RecipeError: ``report.KEY: ...`` for a key or an arm that is not there, a value of the wrong type, or keys that
            cannot stand together.
    """
    if problem := arguments_fault("report", ReportSection, values):
        raise RecipeError(problem)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReportSection, "report")
    config = parser.parse_object({"report": deepcopy(dict(values))})
    section: ReportSection = parser.instantiate(config)["report"]
    named = [("baseline", section.baseline)]
    for i, claim in enumerate(section.claims):
        if problem := claim.fault():
            raise RecipeError(f"report.claims.{i}.{problem}")
        named += [(f"claims.{i}.{key}", getattr(claim, key)) for key in ("minus", "relative_to")]
        named += [(f"claims.{i}.arm", arm) for arm in claim.arms]
    for key, arm in named:
        if arm is not None and arm not in arms:
            raise RecipeError(f"report.{key}: there is no arm {arm!r}{closest(arm, arms)}; there are {', '.join(arms)}")
    for i, reference in enumerate(section.references):
        if (reference.value is None) == (reference.file is None or reference.key is None):
            raise RecipeError(
                f"report.references.{i}: {reference.label!r} needs either a value, or a file with a key in it"
            )
    if section.questions < 0:
        raise RecipeError(f"report.questions: {section.questions} is below 0, which means no pages of questions")
    return section
