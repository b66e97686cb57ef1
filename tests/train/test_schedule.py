"""Schedules with arguments, at their values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dslight.train.optim import PartTraining, Stage

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
