"""A loss that is not finite ends the run before the step is taken, on all ranks, with the rank, the module and the
samples.

The loss is summed over ranks anyway, so it is not finite on all of them as soon as it is on one, and nothing has to be
communicated while all is well. Then, and only then, all ranks run the step's batches once more and look at the output
of every module.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dslight.upstream.torch import leaves


class LossError(RuntimeError):
    """A loss that is not finite."""


class FiniteLoss(pl.Callback):
    """Looks before every optimizer step.

    Raises:
        LossError: on all ranks with the same message. The step is not taken, so the newest checkpoint is from before.
    """

    def __init__(self) -> None:
        self._batches: list[Any] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the micro-batches of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
        self._batches.append(batch)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Keep the loss of this rank."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Look."""
        everywhere = getattr(pl_module, "step_loss", None)  # that of all ranks, where the model knows it
        if bool(torch.isfinite(torch.stack(self._losses).sum() if everywhere is None else everywhere)):
            return
        mine = [self._found(pl_module, i, alone=everywhere is None) for i in range(len(self._losses))]
        found = [f"rank {trainer.global_rank}: {text}" for text in mine if text]
        if everywhere is not None and trainer.world_size > 1:
            shares: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(shares, found)
            found = [line for share in shares for line in share]
        raise LossError(f"the loss of step {trainer.global_step + 1} is not finite; " + "; ".join(found))

    def _found(self, model: nn.Module, i: int, alone: bool) -> str:
        """What is wrong with micro-batch ``i`` on this rank; nothing, if its loss is finite."""
        loss, batch = self._losses[i].item(), self._batches[i]
        # a rank that does not know of the others cannot run what they would have to run too
        where = "" if alone and dist.is_initialized() else first_not_finite(model, batch)
        if torch.isfinite(self._losses[i]):
            return ""
        keys = ", ".join(getattr(batch, "keys", ())) or "unknown"
        return f"loss {loss}, {where or 'all outputs of modules are finite'}, samples {keys}"


def first_not_finite(model: nn.Module, batch: Any) -> str:
    """Run a batch and say which module is the first whose output is not finite; empty, if all are."""
    found: list[str] = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        if not found and not _finite(leaves(output)):
            broken = [key for key, p in module.named_parameters(recurse=False) if not _finite([p])]
            found.append(f"first in the output of {name}" + (f", whose {broken[0]} is not finite" if broken else ""))

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name:
                hook = module.register_forward_hook(lambda m, args, output, name=name: look(name, m, output))
                hooks.callback(hook.remove)
        model(batch)
    return "".join(found)


def _finite(values: list[Any]) -> bool:
    return all(bool(v.isfinite().all()) for v in values if isinstance(v, Tensor) and v.is_floating_point())
