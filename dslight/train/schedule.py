"""Schedules of the learning rate: transformers', with their arguments checked when a stage is described."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dslight.texts import closest

_BY_SCORE = ("reduce_lr_on_plateau", "greedy")
_OURS = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")
_ABSOLUTE = ("min_lr", "lr_end")
_RATE = "min_lr_rate"
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", NoneType: "null"}
_PLAIN = ("constant", "constant_with_warmup", "cosine", "linear")
"""Need no arguments, so by name alone they are known to be right, without an import that takes half a second."""


class Schedule:
    """A schedule by its name, or with arguments: ``{name: warmup_stable_decay, num_decay_steps: 100}``; or a function
    of your own, in Python or by its path: ``{name: my_package.halving, every: 100}``.

    A function is called as transformers' are, ``halving(optimizer, num_warmup_steps, num_training_steps, every=100)``
    (of the two numbers, with those that it takes), and returns a ``LambdaLR`` of torch: factors of each part's
    learning rate by step alone, so that a run can be extended and branched.

    ``min_lr`` and ``lr_end`` are not taken: transformers divides them by the optimizer's own default, and not by the
    learning rate of the part. ``min_lr_rate`` and ``min_lr_ratio`` are shares of each part's.

    Raises:
        ValueError: beginning with the key, for a schedule that is none, or arguments that it does not take or lacks.
    """

    def __init__(self, described: str | Mapping[str, Any] | Callable[..., Any]) -> None:
        arguments = dict(described) if isinstance(described, Mapping) else {"name": described}
        self.name: Any = arguments.pop("name", None)
        self.arguments = arguments
        self.own: Callable[..., Any] | None = None
        if callable(self.name):
            self.own, self.name = self.name, getattr(self.name, "__name__", type(self.name).__name__)
        elif isinstance(self.name, str) and "." in self.name:
            self.own = _named(self.name)
        if self.own is None and self.name in _PLAIN and not arguments:
            return
        self._check()
        try:
            tried = self.over(torch.optim.SGD([torch.zeros(1, device="cpu")], lr=1.0), 2, 10**6)
            for _ in range(4):
                tried.optimizer.step()
                tried.step()
        except Exception as error:  # a function of one's own may raise anything
            raised = "" if isinstance(error, ValueError) else f" raises {type(error).__name__}"
            raise ValueError(f"schedule: {self.name}{raised}: {error}") from None

    def _check(self) -> None:
        from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

        made = {kind.value: make for kind, make in TYPE_TO_SCHEDULER_FUNCTION.items() if kind.value not in _BY_SCORE}
        if self.name is None:
            raise ValueError(f"schedule.name: missing; it is one of {', '.join(sorted(made))}")
        if self.name in _BY_SCORE:
            raise ValueError(
                f"schedule: {self.name} follows a score, and here a schedule follows the steps; "
                f"choose one of {', '.join(sorted(made))}"
            )
        if self.own is None and self.name not in made:
            meant = closest(self.name, made) or "; a function of your own is named with its package: my_package.mine"
            raise ValueError(f"schedule: {self.name!r} is none of {', '.join(sorted(made))}{meant}")
        signature = inspect.signature(self.own or made[self.name])
        takes = {key: p for key, p in signature.parameters.items() if key not in _OURS}
        for key in self.arguments:
            if self.own is None and key in _ABSOLUTE and key in takes:
                instead = f"; say {_RATE}, a share of it" if _RATE in takes else ""
                raise ValueError(f"schedule.{key}: each part has a learning rate of its own{instead}")
            if key not in takes:
                known = [name for name in takes if self.own is not None or name not in _ABSOLUTE]
                takes_what = f"takes {', '.join(known)}" if known else "takes no arguments"
                meant = closest(key, known)
                raise ValueError(f"schedule.{key}: there is no such argument{meant}; {self.name} {takes_what}")
        lacking = [key for key, p in takes.items() if p.default is p.empty or (key == _RATE and self.own is None)]
        for key in lacking:
            if self.arguments.get(key) is None:
                raise ValueError(f"schedule.{key}: missing; {self.name} needs it: {{name: {self.name}, {key}: ...}}")
        types = _types(self.own or made[self.name])
        for key, value in self.arguments.items():
            if (expected := _mistyped(value, types.get(key), takes[key].default)) is not None:
                raise ValueError(f"schedule.{key}: expected {expected}, got {'null' if value is None else repr(value)}")

    def over(self, optimizer: Optimizer, warmup: int, total: int) -> Any:
        """The schedule of ``total`` steps.

        Raises:
            ValueError: when the training is too short for it.
        """
        if self.own is not None:
            return self._own(self.own, optimizer, warmup, total)
        from transformers import get_scheduler

        decay = self.arguments.get("num_decay_steps") or 0
        if isinstance(decay, int) and 0 < decay > total - warmup:
            raise ValueError(
                f"schedule.num_decay_steps: {decay}, after {warmup} steps of warm-up, is more than all {total} steps"
            )
        return get_scheduler(
            self.name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=total,
            scheduler_specific_kwargs=self.arguments,
        )

    def _own(self, make: Callable[..., Any], optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
        takes = inspect.signature(make).parameters
        sizes = {"num_warmup_steps": warmup, "num_training_steps": total}
        made = make(optimizer, **{key: size for key, size in sizes.items() if key in takes}, **self.arguments)
        if not isinstance(made, LambdaLR):
            raise ValueError(
                f"makes a {type(made).__name__}; make a torch.optim.lr_scheduler.LambdaLR, whose factors follow from "
                f"the step alone"
            )
        return made

    def same_until(self, old: tuple[int, int], new: tuple[int, int]) -> int:
        """How many steps have the same learning rate in two lengths of the schedule, each (warm-up, total), before the
        first one that has not; at most the shorter total.

        Example:
            >>> Schedule("constant").same_until((0, 4), (0, 9)), Schedule("cosine").same_until((2, 4), (2, 9))
            (4, 3)
        """
        dummies = [torch.optim.SGD([torch.zeros(1, device="cpu")], lr=1.0) for _ in range(2)]
        shapes = (self.over(dummy, *sizes).lr_lambdas[0] for dummy, sizes in zip(dummies, (old, new), strict=True))
        first, second = shapes
        shorter = min(old[1], new[1])
        return next((step for step in range(shorter) if first(step) != second(step)), shorter)


def _types(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(make)
    except Exception:  # annotations may name what only a type checker imports
        return {}


def _mistyped(value: Any, hint: Any, default: Any) -> str | None:
    """What an argument has to be, in words, where its value is something else."""
    if hint is None:  # as its default
        hint = float if type(default) is int else type(default)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fits = (isinstance(value, (int, float) if one is float else one) for one in kinds if one in _WORDS)
    if set(kinds) == {NoneType} or not _WORDS.keys() >= set(kinds) or any(fits):
        return None
    return " or ".join(_WORDS[one] for one in kinds)


def _named(path: str) -> Callable[..., Any]:
    """The function, or the class, at ``package.module.name``."""
    module, _, name = path.rpartition(".")
    try:
        found = resolve_name(path)
    except Exception as error:  # whatever a stranger's module raises while it is imported
        meant = closest(name, vars(sys.modules[module])) if module in sys.modules else ""
        raise ValueError(f"schedule: cannot import {path}, {type(error).__name__}: {error}{meant}") from error
    if not callable(found):
        raise ValueError(f"schedule: {path} is no function that makes a schedule, but {found!r}")
    return found
