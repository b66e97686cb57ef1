"""Stages: which parts train, at which learning rate, under which schedule.

A part trains when the stage gives it a learning rate; every other part is frozen. So LLaVA's two stages are two short
sections of a recipe: ``{projector: {lr: 1e-3}}`` and ``{projector: {lr: 2e-5}, language_model: {lr: 2e-5}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class PartTraining:
    """How one part trains.

    Attributes:
        lr: peak learning rate.
        weight_decay: of matrices; vectors and scalars never decay.
    """

    lr: float
    weight_decay: float = 0.0


class Stage:
    """One stage of training.

    Args:
        train: part name -> learning rate and weight decay. Parts that are not named are frozen.
        optimizer: makes the optimizer from parameter groups; learning rate and weight decay come from ``train``.
        schedule: a name that ``transformers.get_scheduler`` knows: ``cosine``, ``linear``, ``constant_with_warmup``,
            ...
        warmup_ratio: share of all steps that the learning rate rises linearly.
        warmup_steps: the same as a number of steps; wins over the ratio.
    """

    def __init__(
        self,
        train: dict[str, PartTraining],
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.AdamW,
        schedule: str = "cosine",
        warmup_ratio: float = 0.03,
        warmup_steps: int | None = None,
    ) -> None:
        from transformers.trainer_utils import SchedulerType

        if not train:
            raise ValueError("train: nothing trains; give at least one part a learning rate")
        for name, how in train.items():
            if not how.lr > 0:
                raise ValueError(f"train.{name}.lr: must be above 0, got {how.lr}; leave the part out to freeze it")
        names = sorted(kind.value for kind in SchedulerType)
        if schedule not in names:
            raise ValueError(f"schedule: {schedule!r} is none of {', '.join(names)}")
        if not 0 <= warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: must be in 0..1, got {warmup_ratio}")
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"warmup_steps: must be at least 0, got {warmup_steps}")
        self.train = train
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_ratio = warmup_ratio
        self.warmup_steps = warmup_steps

    def freeze(self, parts: Mapping[str, nn.Module]) -> None:
        """Freeze every part that the stage does not train; one that an earlier stage froze goes back to training mode.

        Raises:
            ValueError: for a name that is no part, or a part without parameters.
        """
        for name in self.train:
            if name not in parts:
                raise ValueError(f"train.{name}: there is no such part; the parts are {', '.join(parts)}")
            if not any(True for _ in parts[name].parameters()):
                raise ValueError(f"train.{name}: {type(parts[name]).__name__} has no parameters to train")
        for name, part in parts.items():
            if name in self.train:
                part.requires_grad_(True).train()
            elif hasattr(part, "freeze"):
                part.freeze()  # type: ignore[operator]
            else:
                part.requires_grad_(False)

    def optimizers(self, parts: Mapping[str, nn.Module], total_steps: int) -> dict[str, Any]:
        """What Lightning's ``configure_optimizers`` returns: one optimizer, its schedule stepped after every update.

        Args:
            parts: by the names of ``train``; a part without ``param_groups`` gets one group.
            total_steps: updates of the whole training.
        """
        from transformers.optimization import get_scheduler

        groups: list[dict[str, Any]] = []
        for name, how in self.train.items():
            part: Any = parts[name]
            if hasattr(part, "param_groups"):
                made = part.param_groups(how.lr, how.weight_decay)
            else:
                made = [{"params": list(part.parameters()), "lr": how.lr, "weight_decay": how.weight_decay}]
            groups += [{**group, "name": f"{name}.{i}"} for i, group in enumerate(made)]
        optimizer = self.optimizer(groups)
        warmup = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_ratio * total_steps)
        scheduler = get_scheduler(self.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
