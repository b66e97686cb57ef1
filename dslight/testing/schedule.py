"""What a schedule promises: factors of the learning rate by step alone, so that a run can be resumed and extended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from dslight.train.schedule import Schedule
from dslight.written import importable


class ScheduleContract:
    """The promises of a schedule; subclass it and define :meth:`make`.

    Attributes:
        warmup, total: steps of the training that it is tried with.
    """

    warmup = 5
    total = 40

    def make(self) -> str | Mapping[str, Any] | Callable[..., Any]:
        """What stands at ``stage.schedule``: a function, a ``functools.partial`` of one, or as a recipe says it."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the schedule to test")

    def test_it_is_a_schedule(self) -> None:
        Schedule(self.make())  # says itself what is wrong

    def test_a_recipe_can_name_it(self) -> None:
        made = self.make()
        named = made.func if isinstance(made, partial) else made
        assert not callable(named) or importable(named) is not None, (
            f"{named}: keep the function in a module, and not inside another one"
        )

    def test_every_step_has_a_rate(self) -> None:
        factors = self._factors()
        wrong = [step for step, factor in enumerate(factors) if not (math.isfinite(factor) and factor >= 0)]
        assert not wrong, f"the factor of step {wrong[0]} is {factors[wrong[0]]}: a number from 0 on"
        assert max(factors) > 0, f"all {self.total} steps have a rate of 0"

    def test_no_rate_is_above_that_of_the_part(self) -> None:
        peak = max(self._factors())
        assert peak < 1.001, f"its highest factor is {peak:g}: a part's lr is the peak, so go up to 1"

    def test_the_rate_follows_from_the_step_alone(self) -> None:
        forwards, of = self._factors(), self._lambda()
        backwards = [float(of(step)) for step in reversed(range(self.total))][::-1]
        assert forwards == backwards, (
            "asked in another order, steps have other rates: a run that is resumed would not go on as it was; "
            "compute them from the step, and keep nothing"
        )

    def test_all_parts_follow_it_alike(self) -> None:
        groups = [{"params": [torch.zeros(1)], "lr": lr} for lr in (1.0, 1e-3)]
        made = Schedule(self.make()).over(torch.optim.SGD(groups), self.warmup, self.total)
        first, second = ([float(of(step)) for step in range(self.total)] for of in made.lr_lambdas)
        assert first == second, "parameter groups have schedules of their own: a part's share is its lr"

    def _lambda(self) -> Callable[[int], float]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        return Schedule(self.make()).over(optimizer, self.warmup, self.total).lr_lambdas[0]

    def _factors(self) -> list[float]:
        of = self._lambda()
        return [float(of(step)) for step in range(self.total)]
