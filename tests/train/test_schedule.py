"""Schedules with arguments, at their values."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from dslight.train.optim import PartTraining, Stage
from dslight.train.schedule import Schedule

WSD = {"name": "warmup_stable_decay", "num_decay_steps": 4, "decay_type": "linear", "min_lr_ratio": 0.1}


def rates(schedule, steps: int, warmup: int = 0) -> list[tuple[float, ...]]:
    """The learning rate of each of two parts at each step, and after the last one."""
    parts = {name: nn.Linear(2, 2) for name in ("first", "second")}
    train = {"first": PartTraining(lr=1e-2), "second": PartTraining(lr=1e-4)}
    made = Stage(train, schedule=schedule, warmup_steps=warmup).optimizers(parts, steps)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(steps + 1):
        seen.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("name", ["cosine_with_min_lr", "cosine_warmup_with_min_lr"])
def test_the_least_rate_is_a_share_of_each_parts(name):
    seen = rates({"name": name, "min_lr_rate": 0.2}, 10)
    assert seen[0] == pytest.approx((1e-2, 1e-4), rel=0.02)  # the second one begins one step ahead
    assert min(seen) == pytest.approx((2e-3, 2e-5), rel=0.1)


def test_warm_up_then_a_plateau_then_a_decay_over_the_last_steps():
    seen = [first / 1e-2 for first, _ in rates(WSD, 10, warmup=2)]
    assert seen[2:7] == pytest.approx([1.0] * 5)
    assert seen[7:] == pytest.approx([0.775, 0.55, 0.325, 0.1])
    assert seen[0] < seen[1] < 1


def test_a_name_alone_is_the_schedule_without_arguments():
    assert rates("linear", 4) == rates({"name": "linear"}, 4)
    assert [first / 1e-2 for first, _ in rates("linear", 4)] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_a_plateau_needs_room_between_the_others():
    with pytest.raises(
        ValueError, match=r"^schedule\.num_decay_steps: 4, after 7 steps of warm-up, is more than all 10"
    ):
        rates(WSD, 10, warmup=7)


def test_a_schedule_may_be_described_where_modules_have_no_memory():
    with torch.device("meta"):
        assert Stage({"first": PartTraining(lr=1.0)}, schedule=WSD).schedule.name == "warmup_stable_decay"


def halving(optimizer, num_warmup_steps, every=2):
    return LambdaLR(optimizer, lambda step: 0.0 if step < num_warmup_steps else 0.5 ** (step // every))


@pytest.mark.parametrize("named", [partial(halving, every=2), {"name": f"{__name__}.halving", "every": 2}])
def test_a_function_of_ones_own_is_a_schedule_of_each_part(named):
    seen = rates(named, 4, warmup=1)
    assert seen == [(0, 0), (1e-2, 1e-4), (5e-3, 5e-5), (5e-3, 5e-5), (2.5e-3, 2.5e-5)]
    assert Schedule(named).same_until((1, 4), (1, 9)) == 4
    assert Schedule(named).same_until((1, 4), (2, 9)) == 1


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("no.such.thing", r"^schedule: cannot import no\.such\.thing, ModuleNotFoundError"),
        ("math.pi", r"^schedule: math\.pi is no function"),
        ({"name": "torch.optim.lr_scheduler.StepLR", "step_size": 2}, r"StepLR: makes a StepLR; make a .*LambdaLR"),
        (
            {"name": f"{__name__}.halving", "evry": 2},
            r"^schedule\.evry: there is no such argument; did you mean every\?; .*halving takes every",
        ),
        ({"name": f"{__name__}.halving", "every": "two"}, r"^schedule\.every: expected a number, got 'two'"),
        ({"name": f"{__name__}.halvin"}, r"^schedule: cannot import .*halvin, .*; did you mean halving\?"),
        (partial(halving, every=0), r"^schedule: .*raises ZeroDivisionError"),
        ("cosin", r"^schedule: 'cosin' is none of .*; did you mean cosine\?"),
        ("halving", r"^schedule: 'halving' is none of .*; a function of your own is named with its package"),
        (
            {"name": "cosine_with_min_lr", "min_lr_rate": "low"},
            r"^schedule\.min_lr_rate: expected a number or null",
        ),
    ],
)
def test_what_makes_no_schedule_is_refused(named, why):
    with pytest.raises(ValueError, match=why):
        Stage({"first": PartTraining(lr=1.0)}, schedule=named)


def test_a_function_of_ones_own_is_tried_also_where_it_has_the_name_of_a_known_one():
    def cosine(optimizer, num_warmup_steps, num_training_steps):
        return None

    with pytest.raises(ValueError, match="schedule: cosine: "):
        Schedule(cosine)
