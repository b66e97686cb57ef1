"""An exponential moving average of the weights that train, sharded or not (EMA; Polyak averaging).

Lightning's ``EMAWeightAveraging`` copies the whole model and does not work where it is sharded. Here each process
averages its share of what trains, and nothing else is held twice. Decided here, as there: validations, checkpoints, the
weights that a run leaves and whoever opens it see the average; the weights that training goes on with are in the
checkpoint, too (of a sharded model gathered by the first rank, which needs the memory of the CPU for them).
"""

from __future__ import annotations

from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from dslight.errors import UserError


class EMA(pl.Callback):
    """Averages the weights that train, and lets the model be the average wherever it is looked at.

    Args:
        decay: of the average, at each update.
        every: optimizer steps between updates.
        start: optimizer steps before the first one, at which the average begins.

    Raises:
        ValueError: for values that mean nothing.
    """

    KEY: ClassVar[str] = "ema"
    """Of a checkpoint: the weights that training goes on with, by name."""

    def __init__(self, decay: float = 0.999, every: int = 1, start: int = 0) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay: must be above 0 and below 1, got {decay}")
        if every < 1 or start < 0:
            raise ValueError(f"every: {every}, start: {start}; at least 1, and at least 0")
        self.decay, self.every, self.start = decay, every, start
        self.averages: dict[str, Tensor] | None = None
        self._training: dict[str, Tensor] | None = None  # the weights of the training, while the model is the average
        self._loaded: dict[str, Tensor] | None = None
        self._at = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse an average that would never begin, or of another one."""
        if stage != "fit":
            return
        if 0 <= trainer.max_steps <= self.start:
            raise UserError(
                f"trainer.callbacks: EMA: start: {self.start}; below trainer.max_steps, {trainer.max_steps}"
            )
        if sum(isinstance(one, EMA) for one in trainer.callbacks) > 1:  # pyright: ignore[reportAttributeAccessIssue]
            raise UserError("trainer.callbacks: EMA stands there more than once; a model is one average")

    # --- averaging

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Of a run that is continued, the model is the average: take it, and go on with the weights of the training."""
        self._at = trainer.global_step
        if self._loaded is not None:
            named = _trained(pl_module)
            self.averages = {name: parameter.detach().clone().float() for name, parameter in named.items()}
            _write(pl_module, {name: _share(self._loaded[name], parameter) for name, parameter in named.items()})
            self._loaded = None

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update behind an optimizer step that is due."""
        step = trainer.global_step
        if step == self._at:
            return
        self._at = step
        if step <= self.start or (step - self.start - 1) % self.every:
            return
        named = _trained(pl_module)
        if self.averages is None:
            self.averages = {name: parameter.detach().clone().float() for name, parameter in named.items()}
            return
        for name, average in self.averages.items():
            average.lerp_(named[name].detach().float(), 1 - self.decay)

    # --- where the model is looked at

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The model is the average."""
        self._show(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The model is that of the training, unless this is over."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._hide(pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From now on the model is the average."""
        self._show(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The model of a checkpoint is the average; the weights of the training are beside it."""
        if self.averages is None:
            return
        named = _trained(pl_module)
        live = self._training or {name: parameter.detach() for name, parameter in named.items()}
        whole = ((name, _whole(tensor)) for name, tensor in live.items())  # all ranks gather, the first one keeps
        checkpoint[self.KEY] = {name: tensor.cpu() for name, tensor in whole if trainer.is_global_zero}
        state = dict(checkpoint["state_dict"])
        first = {id(parameter): name for name, parameter in named.items()}
        names = {name: first.get(id(p)) for name, p in pl_module.named_parameters(remove_duplicate=False)}
        for name, averaged in names.items():  # of a tied one, all names
            old = state.get(name)
            if averaged is not None and old is not None:
                average = self.averages[averaged]
                state[name] = (average if isinstance(old, DTensor) else _whole(average)).to(old.dtype)
        checkpoint["state_dict"] = state

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See :meth:`on_train_start`, where weights are sharded already."""
        self._loaded = checkpoint.get(self.KEY)

    def _show(self, model: nn.Module) -> None:
        if self.averages is not None and self._training is None:
            self._training = {name: parameter.detach().clone() for name, parameter in _trained(model).items()}
            _write(model, self.averages)

    def _hide(self, model: nn.Module) -> None:
        if self._training is not None:
            _write(model, self._training)
            self._training = None


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, sharded ones as this process's share."""
    _reshard(model)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _write(model: nn.Module, values: dict[str, Tensor]) -> None:
    _reshard(model)
    named = dict(model.named_parameters())
    for name, value in values.items():
        named[name].copy_(value)


def _reshard(model: nn.Module) -> None:
    """Let go of gathered weights, which would be used once more after a share was written into."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _share(whole: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)
