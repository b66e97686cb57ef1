"""What a branch takes over of the checkpoint of another run: all that fits its own recipe.

Weights, the step, the states of the optimizer by name, the position in the data. Learning rates, weight decay and the
schedule are the branch's own, as if it had always had them: at step s, the schedule stands at s. So a decay from the
trunk of a warmup-stable-decay run is a recipe with the trunk's peak rate, a new length and its number of decay steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from dslight.train.ema import EMA
from dslight.train.optim import Stage

_STEPS = ("optim_progress", "scheduler_progress", "epoch_loop.state_dict")
"""How the names of Lightning's counts of steps end; the others are of epochs and batches."""


class FirstRates(pl.Callback):
    """Sets the learning rates of the first step after a checkpoint, which its own schedule had set at the end of the
    step before.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set them by the schedule that is there now."""
        for config in trainer.lr_scheduler_configs:
            schedule: Any = config.scheduler
            shapes = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, peak, shape in shapes:
                group["lr"] = peak * shape(schedule.last_epoch)


class Branch(FirstRates):
    """Adapts the checkpoint that a run begins from, and names what begins anew.

    Args:
        of: the checkpoint's run, for messages.
    """

    def __init__(self, of: str) -> None:
        self.of = of

    def adapt(self, checkpoint: dict[str, Any], trainer: pl.Trainer, model: Any, data: Any) -> dict[str, Any]:
        """The checkpoint as the branch's own; called when it is read, before anything is restored."""
        anew: list[str] = []
        self._data(checkpoint, trainer, data, anew)
        self._optimizer(checkpoint, model, anew)
        checkpoint["callbacks"] = {}
        if not any(isinstance(callback, EMA) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            checkpoint["state_dict"] |= checkpoint.pop(EMA.KEY, {})  # the weights that were trained, not their average
        if trainer.is_global_zero:
            carried = "weights, step, optimizer and position in the data are carried over"
            print(f"branch of {self.of}: " + (f"begins anew: {'; '.join(anew)}" if anew else carried), flush=True)
        return checkpoint

    def _data(self, checkpoint: dict[str, Any], trainer: Any, data: Any, anew: list[str]) -> None:
        key = type(data).__qualname__
        state = (checkpoint.get(key) or {}).get("train")
        differs = "it says no position" if state is None else data.differs(state) if hasattr(data, "differs") else None
        if differs is None:
            return
        anew.append(f"the data, at their first sample ({differs})")
        checkpoint.pop(key, None)
        loops = checkpoint["loops"]
        fresh, old = trainer.fit_loop.state_dict(), loops["fit_loop"]
        kept = {name: state for name, state in old.items() if name.endswith(_STEPS)}
        loops["fit_loop"] = {**fresh, **kept}

    def _optimizer(self, checkpoint: dict[str, Any], model: Any, anew: list[str]) -> None:
        stage: Stage = model.stage
        optimizer = stage.optimizers(model.parts(), 10**9)["optimizer"]
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [
            {**group, "params": [names[id(p)] for p in group["params"]], "initial_lr": group["lr"]}
            for group in optimizer.param_groups
        ]
        old = checkpoint["optimizer_states"][0]
        states: Mapping[str, Any] = old["state"]
        if _options(old["param_groups"]) != _options(groups):
            anew.append(f"all states of the optimizer (another one: {type(optimizer).__name__})")
            states = {}
        wanted = [name for group in groups for name in group["params"]]
        lacking = [name for name in wanted if name not in states]
        if states and lacking:
            more = f" and {len(lacking) - 2} more" if len(lacking) > 2 else ""
            anew.append(f"the optimizer's states of {', '.join(lacking[:2])}{more}")
        checkpoint["optimizer_states"] = [
            {"state": {name: states[name] for name in wanted if name in states}, "param_groups": groups}
        ]
        step = checkpoint["global_step"]
        checkpoint["lr_schedulers"] = [{"last_epoch": step, "_step_count": step + 1, "lr_lambdas": []}]


def _options(groups: Sequence[Mapping[str, Any]]) -> set[str]:
    """What the groups say of themselves, which tells optimizers apart."""
    return {key for group in groups for key in group} - {"params", "name", "initial_lr"}
