"""Runs the cases on an implementation and writes the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dslight.conformance.cases import CASES, Case, Miss
from dslight.conformance.kit import Array, Batch, Family, families
from dslight.conformance.protocol import NotOffered, UnreachableError

PASSED, MISSED, RAISED, NOT_OFFERED = "passed", "missed", "raised", "not offered"


@dataclass(frozen=True)
class Outcome:
    """Of one case on one family.

    Attributes:
        family: its name.
        case: its name.
        verdict: ``passed``, ``missed``, ``raised`` or ``not offered``.
        size: the largest miss in its own unit; of ids, the number of wrong ones; NaN where there is none.
        said: where the largest miss is, or what was raised, or why it is not offered.
        compared: how many comparisons there were, and how many of them missed.
    """

    family: str
    case: str
    verdict: str
    size: float = float("nan")
    said: str = ""
    compared: tuple[int, int] = (0, 0)

    @property
    def cell(self) -> str:
        """Of the table."""
        if self.verdict == NOT_OFFERED:
            return "-"
        if self.verdict == RAISED:
            return "**raises**"
        whole = self.size < 1000 and self.size == int(self.size)  # NaN is not
        size = f"{self.size:.0f}" if whole else f"{self.size:.0e}"
        return size if self.verdict == PASSED else f"**{size}**"


@dataclass(frozen=True)
class Report:
    """All outcomes of an implementation."""

    name: str
    outcomes: Sequence[Outcome] = field(default_factory=tuple)

    @property
    def failed(self) -> list[Outcome]:
        """What missed or raised."""
        return [one for one in self.outcomes if one.verdict in (MISSED, RAISED)]

    def of(self, family: str, case: str) -> Outcome:
        """One of them."""
        return next(one for one in self.outcomes if (one.family, one.case) == (family, case))

    def to_text(self) -> str:
        """A table in Markdown, and below it a line for whatever failed or is not offered."""
        names, cases = _ordered(one.family for one in self.outcomes), _ordered(one.case for one in self.outcomes)
        counts = [sum(one.verdict == kind for one in self.outcomes) for kind in (PASSED, MISSED, RAISED, NOT_OFFERED)]
        lines = [
            f"**{self.name}**: {counts[0]} passed, {counts[1]} missed, {counts[2]} raised, {counts[3]} not offered.",
            "",
            f"| case | {' | '.join(names)} |",
            f"| --- |{' ---: |' * len(names)}",
        ]
        lines += [f"| {case} | {' | '.join(self.of(name, case).cell for name in names)} |" for case in cases]
        for title, kinds in (("Failed", (MISSED, RAISED)), ("Not offered", (NOT_OFFERED,))):
            alike: dict[str, list[str]] = {}
            for one in self.outcomes:
                if one.verdict in kinds:
                    alike.setdefault(_told(one), []).append(f"{one.family}: {one.case}")
            if alike:
                lines += ["", f"{title}:", "", *(f"- {_some(where)}: {said}" for said, where in alike.items())]
        return "\n".join([*lines, ""])


def run(
    adapter: Any,
    only: Iterable[str] = (),
    among: Iterable[Family] | None = None,
    watch: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Ask an implementation.

    Args:
        adapter: an :class:`~dslight.conformance.protocol.Adapter`; or a function of (family, batch) that gives the
            logits ``[B, T, vocabulary]`` of a :class:`~dslight.conformance.kit.Batch` in one pass.
        only: names of cases or families; default: all.
        among: families; default: those that come with the package.
        watch: told each outcome as it is there.

    Raises:
        ValueError: for a name that is neither a case nor a family.
    """
    if not hasattr(adapter, "load"):
        adapter = _Function(adapter)
    wanted, known = set(only), list(families() if among is None else among)
    if unknown := sorted(wanted - {*CASES, *(family.name for family in known)}):
        raise ValueError(f"only: {unknown[0]!r} is neither a case ({', '.join(CASES)}) nor a family")
    cases = [case for case in CASES.values() if case.name in wanted or not wanted & CASES.keys()]
    chosen = [family for family in known if family.name in wanted or not wanted - CASES.keys()]
    outcomes = []
    for family in chosen:
        models: dict[str, Any] = {}
        for case in cases:
            outcomes.append(_outcome(adapter, family, case, models))
            watch(outcomes[-1])
    return Report(adapter.name, outcomes)


def _outcome(adapter: Any, family: Family, case: Case, models: dict[str, Any]) -> Outcome:
    try:
        if case.dtype not in models:
            models[case.dtype] = adapter.load(family, case.dtype)
        model = models[case.dtype]
        for need in case.needs:
            if not any(hasattr(model, name) for name in need.split("|")):
                raise NotOffered(f"no {need.replace('|', ' and no ')}")
        misses = list(case.run(model, family))
    except NotOffered as why:
        return Outcome(family.name, case.name, NOT_OFFERED, said=str(why))
    except UnreachableError:
        raise
    except Exception as error:  # an implementation may fail in any way, and the others are still asked
        return Outcome(family.name, case.name, RAISED, said=f"{type(error).__name__}: {' '.join(str(error).split())}")
    return _judged(family.name, case.name, misses)


def _judged(family: str, case: str, misses: Sequence[Miss]) -> Outcome:
    def far(miss: Miss) -> tuple[bool, float]:
        return (not miss.passed, float("inf") if np.isnan(miss.size) else miss.size)

    worst = max(misses, key=far)
    wrong = sum(not miss.passed for miss in misses)
    return Outcome(family, case, MISSED if wrong else PASSED, worst.size, worst.where, (len(misses), wrong))


class _Function:
    """An adapter of a function that gives logits in one pass."""

    def __init__(self, forward: Callable[[Family, Batch], Array]) -> None:
        self.forward = forward
        self.name = getattr(forward, "__qualname__", type(forward).__name__)

    def load(self, family: Family, dtype: str = "float32") -> Any:
        if dtype != "float32":
            raise NotOffered("a function is asked in float32")
        return _FunctionModel(self.forward, family)


class _FunctionModel:
    def __init__(self, forward: Callable[[Family, Batch], Array], family: Family) -> None:
        self.forward, self.family = forward, family

    def open(self, batch: Batch, after: Any = None) -> Any:
        if after is not None:
            raise NotOffered("a function has no cache")
        return _FunctionSession(self, batch)


class _FunctionSession:
    def __init__(self, model: _FunctionModel, batch: Batch) -> None:
        self.model, self.batch = model, batch

    def feed(self, count: int) -> Array:
        if count != self.batch.length:
            raise NotOffered("a function has no cache")
        return np.asarray(self.model.forward(self.model.family, self.batch), dtype=np.float32)


def _ordered(names: Iterator[str] | Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _told(one: Outcome) -> str:
    if one.verdict != MISSED:
        return one.said if len(one.said) <= 300 else f"{one.said[:297]}..."
    total, wrong = one.compared
    return f"{one.size:.2g} at {one.said} ({wrong} of {total} comparisons)"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"
