"""What do the scores lose without a stack, or with the wrong one? Arms of one model, asked the same questions.

Differences are paired: of the same question with and without. Decided here: ``other_image`` is the strong control. A
model may need *something* at its slots, and lose by any change there; if it loses nothing where the stacks are those of
another image, it does not read them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

from torch import Tensor

from dslight.diagnostics.groups import Groups
from dslight.diagnostics.settings import Diagnostics
from dslight.nn.intervention import Act

Recorded = dict[bool, Tensor]


@dataclass(frozen=True)
class Arm:
    """One way to run the model.

    Attributes:
        name: a logger's key.
        title: for people.
        act: what to intervene with, given the stacks of other images where ``others`` asks for them.
        others: whether it takes them.
    """

    name: str
    title: str
    act: Callable[[Recorded], Act]
    others: bool = False


ALL = "all"
"""The model as it is."""


def arms(groups: Groups, settings: Diagnostics) -> list[Arm]:
    """The arms that the settings ask for, the model as it is first; none for a model without stacks."""
    numbers = [group.number for group in groups]
    if not numbers or not (settings.drop or settings.shuffle):
        return []
    made = [Arm(ALL, "all stacks", lambda _: groups.without(()))]
    if settings.drop:
        if len(numbers) > 1:
            made += [Arm(f"without_{n}", f"without stack {n}", _always(groups.without({n}))) for n in numbers]
        made.append(Arm("without_any", "without any stack", _always(groups.without(set(numbers)))))
    if settings.shuffle:
        sides = (groups.count_inside, len(groups) - groups.count_inside)
        if max(sides) > 1:
            made.append(Arm("permuted", "stacks exchanged among their sites", _always(groups.permuted(settings.seed))))
        made.append(Arm("other_image", "stacks of another image", groups.replaced, others=True))
    return made


def _always(act: Act) -> Callable[[Recorded], Act]:
    return lambda _: act


@dataclass(frozen=True)
class Difference:
    """Of an arm to the model as it is, over the questions that both answered.

    Attributes:
        name, title: of the arm.
        questions: how many there are.
        score: mean score of the arm.
        delta: mean of (score in the arm - score of the model as it is).
        error: standard error of that mean, from the paired differences; ``None`` for fewer than two questions.
        better, worse: how many questions score higher, lower.
    """

    name: str
    title: str
    questions: int
    score: float
    delta: float
    error: float | None
    better: int
    worse: int

    def to_json(self) -> dict[str, Any]:
        """For ``diagnostics.json``."""
        return asdict(self)


def difference(arm: Arm, whole: Sequence[float | None], scores: Sequence[float | None]) -> Difference | None:
    """Compare an arm's scores with the model's own, question by question; ``None`` where no question has both."""
    both = [(a, b) for a, b in zip(whole, scores, strict=True) if a is not None and b is not None]
    if not both:
        return None
    deltas = [b - a for a, b in both]
    return Difference(
        name=arm.name,
        title=arm.title,
        questions=len(both),
        score=statistics.fmean(b for _, b in both),
        delta=statistics.fmean(deltas),
        error=statistics.stdev(deltas) / sqrt(len(deltas)) if len(deltas) > 1 else None,
        better=sum(delta > 0 for delta in deltas),
        worse=sum(delta < 0 for delta in deltas),
    )
