"""Stages: which parts train, at which learning rate, under which schedule.

A part trains when the stage gives it a learning rate; every other part is frozen. So LLaVA's two stages are two short
sections of a recipe: ``{projector: {lr: 1e-3}}`` and ``{projector: {lr: 2e-5}, language_model: {lr: 2e-5}}``.

How a part trains besides (layer-wise decay, LoRA, activation checkpointing, compilation) is said beside its learning
rate, so that one line of a recipe tells all about a part. A frozen part can be checkpointed and compiled too, under
``frozen``: gradients pass through the decoder of stage 1 on their way to the projector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dslight.train.lora import LoRA, adapt
from dslight.train.muon import MuonAdamW, tables
from dslight.train.narrow import Range, narrow
from dslight.train.schedule import Schedule
from dslight.train.units import run_units
from dslight.written import Written


@dataclass(frozen=True)
class PartTraining:
    """How one part trains.

    Attributes:
        lr: peak learning rate.
        weight_decay: of matrices; vectors and scalars never decay.
        layer_decay: each layer's learning rate is this times that of the layer behind it (as in BEiT, counted
            as timm does); the embeddings are the layer before the first.
        lora: train low-rank adapters, and leave the weights alone.
        checkpointing: keep only what enters a layer, and compute its activations again in the backward pass.
        compile: ``true``, or a backend of ``torch.compile``: compile the layers, each by itself.
        layers: those that train, as a slice: ``[-6, null]`` are the last six; what is in no layer does not.
        only: shell patterns of the names of parameters that train; with ``layers``, of those in them.
        frozen: shell patterns of names that do not.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.LowResolution(), lm)
        >>> model.train_with({"projector": 1e-3, "vision_encoder": dslight.PartTraining(1e-5, layer_decay=0.9)})
        >>> model.stage.train["projector"] == dslight.PartTraining(lr=1e-3)
        True
    """

    lr: float
    weight_decay: float = 0.0
    layer_decay: float | None = None
    lora: LoRA | None = None
    checkpointing: bool = False
    compile: bool | str = False
    layers: Range | None = None
    only: list[str] | None = None
    frozen: list[str] | None = None

    @property
    def narrowed(self) -> bool:
        """Whether a share of the part trains."""
        return (self.layers, self.only, self.frozen) != (None, None, None)

    def check(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            ValueError: beginning with the attribute.
        """
        if not self.lr > 0:
            raise ValueError(f"lr: must be above 0, got {self.lr}; leave the part out to freeze it")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: must be at least 0, got {self.weight_decay}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: must be above 0 and at most 1, got {self.layer_decay}")
        if self.lora is not None:
            with under("lora"):
                self.lora.check()
            if self.narrowed:
                said = "adapters train alone, where target_modules says; leave out layers, only and frozen"
                raise ValueError(f"lora: {said}")


@dataclass(frozen=True)
class PartFrozen:
    """How a part runs that does not train; see :class:`PartTraining`."""

    checkpointing: bool = False
    compile: bool | str = False


class Stage(Written):
    """One stage of training.

    Args:
        train: part name -> learning rate and weight decay. Parts that are not named are frozen.
        optimizer: makes the optimizer from parameter groups; learning rate and weight decay come from ``train``.
        schedule: a name that ``transformers.get_scheduler`` knows: ``cosine``, ``linear``, ``constant_with_warmup``,
            ...; or one with arguments, or of your own, see :class:`dslight.train.schedule.Schedule`.
        warmup_ratio: share of all steps that the learning rate rises linearly.
        warmup_steps: the same as a number of steps; wins over the ratio.
        frozen: part name -> checkpointing and compilation of a part that does not train.

    Example:
        >>> from functools import partial
        >>> sgd = partial(torch.optim.SGD, momentum=0.9)
        >>> stage = dslight.Stage({"projector": dslight.PartTraining(1e-3)}, optimizer=sgd, schedule="constant")
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.LowResolution(), lm)
        >>> model.train_with(stage)
        >>> {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        {'projector'}
    """

    def __init__(
        self,
        train: dict[str, PartTraining],
        optimizer: Callable[[Iterable[Any]], Optimizer] = torch.optim.AdamW,
        schedule: str | dict[str, Any] | Callable[..., Any] = "cosine",
        warmup_ratio: float = 0.03,
        warmup_steps: int | None = None,
        frozen: dict[str, PartFrozen] | None = None,
    ) -> None:
        if not train:
            raise ValueError("train: nothing trains; give at least one part a learning rate")
        for name, how in train.items():
            with under(f"train.{name}"):
                if not isinstance(how, PartTraining):
                    raise ValueError(f"expected a PartTraining, got {how!r}; write dslight.PartTraining(lr=...)")
                how.check()
        for name in sorted(train.keys() & (frozen or {})):
            raise ValueError(f"frozen.{name}: it trains (train.{name}); say there how it runs")
        if not 0 <= warmup_ratio < 1:
            raise ValueError(f"warmup_ratio: must be in 0..1, got {warmup_ratio}")
        if warmup_steps is not None and warmup_steps < 0:
            raise ValueError(f"warmup_steps: must be at least 0, got {warmup_steps}")
        self.train = train
        self.frozen = frozen or {}
        self.optimizer = optimizer
        self.schedule = Schedule(schedule)
        self.warmup_ratio = warmup_ratio
        self.warmup_steps = warmup_steps

    @classmethod
    def of(cls, stage: Stage | Mapping[str, Any]) -> Stage:
        """A stage as it is; a mapping as ``train``, where a number is a learning rate and a mapping a
        :class:`PartTraining`.

        Example:
            >>> stage = Stage.of({"projector": 1e-3, "language_model": {"lr": 2e-5, "checkpointing": True}})
            >>> stage.train["projector"].lr
            0.001
        """
        if isinstance(stage, Stage):
            return stage
        return cls({name: _training(how) for name, how in stage.items()})

    def freeze(self, parts: Mapping[str, nn.Module]) -> None:
        """Freeze every part that the stage does not train, and prepare those that it does: one that an earlier stage
        froze goes back to training mode, one with ``lora`` gets its adapters, and layers run as the stage says.

        Raises:
            ValueError: for a name that is no part, a part without parameters, or what a part cannot do.
        """
        for section, name in [("train", name) for name in self.train] + [("frozen", name) for name in self.frozen]:
            if name not in parts:
                raise ValueError(f"{section}.{name}: there is no such part; the parts are {', '.join(parts)}")
        for name, how in self.train.items():
            if not any(True for _ in parts[name].parameters()):
                raise ValueError(f"train.{name}: {type(parts[name]).__name__} has no parameters to train")
            if how.layer_decay is not None and not getattr(parts[name], "shard_units", []):
                raise ValueError(f"train.{name}.layer_decay: {type(parts[name]).__name__} has no layers")
        for name, part in parts.items():
            how = self.train.get(name)
            if how is None and hasattr(part, "freeze"):
                part.freeze()  # type: ignore[operator]
            elif how is None:
                part.requires_grad_(False)
            elif how.lora is None:
                part.requires_grad_(True).train()
                if how.narrowed:
                    with under(f"train.{name}"):
                        narrow(part, how.layers, how.only, how.frozen)
            else:
                with under(f"train.{name}.lora"):
                    adapt(part, how.lora)
                part.train()
            runs = how or self.frozen.get(name, PartFrozen())
            with under(f"{'frozen' if how is None else 'train'}.{name}"):
                run_units(part, runs.checkpointing, runs.compile)

    def optimizers(self, parts: Mapping[str, nn.Module], total_steps: int) -> dict[str, Any]:
        """What Lightning's ``configure_optimizers`` returns: one optimizer, its schedule stepped after every update.

        Args:
            parts: by the names of ``train``; a part without ``param_groups`` gets one group.
            total_steps: updates of the whole training.
        """
        groups: list[dict[str, Any]] = []
        for name, how in self.train.items():
            part: Any = parts[name]
            more = {} if how.layer_decay is None else {"layer_decay": how.layer_decay}
            if hasattr(part, "param_groups"):
                made = part.param_groups(how.lr, how.weight_decay, **more)
            else:
                trained = [parameter for parameter in part.parameters() if parameter.requires_grad]
                made = [{"params": trained, "lr": how.lr, "weight_decay": how.weight_decay}]
            groups += [{**group, "name": f"{name}.{group.get('name', i)}"} for i, group in enumerate(made)]
        optimizer = self.optimizer(groups)
        if isinstance(optimizer, MuonAdamW):
            optimizer.leave_to_adamw(table for name in self.train for table in tables(parts[name]))
        warmup = self.warmup_steps if self.warmup_steps is not None else round(self.warmup_ratio * total_steps)
        scheduler = self.schedule.over(optimizer, warmup, total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _training(how: Any) -> PartTraining:
    if isinstance(how, PartTraining):
        return how
    settings = dict(how) if isinstance(how, Mapping) else {"lr": how}
    lora = settings.get("lora")
    return PartTraining(**{**settings, "lora": LoRA(**lora) if isinstance(lora, Mapping) else lora})


@contextmanager
def under(path: str) -> Iterator[None]:
    """A ``ValueError`` of a part, behind the key that asked for it."""
    try:
        yield
    except ValueError as error:
        joint = "." if re.match(r"[\w.]+: ", str(error)) else ": "
        raise ValueError(f"{path}{joint}{error}") from None
