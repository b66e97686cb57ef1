"""What a recipe says of its training that has no effect, or cannot work: refused before a weight is read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import LBFGS, Optimizer, SparseAdam

from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import located

UNKNOWN_STEPS = 10**9
"""For a length that only the data knows."""

_CALLBACKS = {
    "Timer": "it would call a run finished whose time is up; say trainer.max_time",
    "GradientAccumulationScheduler": "the number of micro-batches of a step follows from data.global_batch_size",
}

_SHARDING = ("Sharded", "ModelParallelStrategy")


def check_training(recipe: Mapping[str, Any], model: Any) -> None:
    """Refuse what cannot be trained with; ``model`` may be on the meta device.

    Raises:
        RecipeError: naming the key's path.
    """
    trainer = recipe.get("trainer") or {}
    if trainer.get("accumulate_grad_batches") is not None:
        raise RecipeError(
            f"trainer.accumulate_grad_batches: {trainer['accumulate_grad_batches']} would have no effect; it follows "
            f"from data.global_batch_size, data.micro_batch_size and the number of processes"
        )
    _check_callbacks(trainer)
    if model.stage is None:
        return
    steps = _steps(trainer)
    try:
        optimizer = model.stage.optimizers(model.parts(), steps)["optimizer"]
    except (ValueError, TypeError) as error:
        said = str(error)
        if "Muon only supports 2D" in said:
            said += "; dslight.train.MuonAdamW is Muon for matrices and AdamW for the rest"
        raise RecipeError(located("stage" if said.startswith("schedule") else "stage.optimizer", said)) from None
    _check_optimizer(recipe.get("stage"), optimizer)
    strategy = trainer.get("strategy")
    named = str(strategy.get("class_path") if isinstance(strategy, Mapping) else strategy).rpartition(".")[2]
    if named in _SHARDING and type(optimizer).__module__.partition(".")[0] == "bitsandbytes":
        raise RecipeError(
            f"stage.optimizer: bitsandbytes' {type(optimizer).__name__} takes no parameters that are split over "
            f"processes, as trainer.strategy: {named} does; choose another of the two"
        )


def _check_callbacks(trainer: Mapping[str, Any]) -> None:
    named = trainer.get("callbacks") or []
    for i, callback in enumerate(named if isinstance(named, list) else [named]):
        path = callback.get("class_path") if isinstance(callback, Mapping) else None
        name = str(path).rpartition(".")[2]
        if name in _CALLBACKS:
            raise RecipeError(f"trainer.callbacks.{i}: {name}: {_CALLBACKS[name]}")


def _steps(trainer: Mapping[str, Any]) -> int:
    """The optimizer steps of the training, as far as the recipe says."""
    steps, epochs, time = (trainer.get(key) for key in ("max_steps", "max_epochs", "max_time"))
    if isinstance(steps, int) and steps < -1:
        raise RecipeError(f"trainer.max_steps: must be at least 0, or -1 for no limit; got {steps}")
    ends = steps not in (None, -1) or epochs not in (None, -1)
    if not ends and not trainer.get("fast_dev_run") and (epochs == -1 or time is not None):
        raise RecipeError(
            "trainer.max_steps: the training would have no end, and a schedule needs to know it; "
            "name max_steps or max_epochs"
        )
    try:
        Timer(time)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise RecipeError(f"trainer.max_time: {error}") from None
    return steps if isinstance(steps, int) and steps > 0 and epochs in (None, -1) else UNKNOWN_STEPS


def _check_optimizer(stage: Any, optimizer: Optimizer) -> None:
    kind = type(optimizer)
    if isinstance(optimizer, LBFGS):
        raise RecipeError("stage.optimizer: LBFGS computes the loss several times a step; choose one that does it once")
    if isinstance(optimizer, SparseAdam):
        raise RecipeError("stage.optimizer: SparseAdam takes sparse gradients alone, and no part has any")
    described = stage.get("optimizer") if isinstance(stage, Mapping) else None
    given = (described.get("init_args") or {}) if isinstance(described, Mapping) else {}
    takes = inspect.signature(kind).parameters
    for key in ("lr", "weight_decay"):
        if key in given and key in takes and takes[key].default is not inspect.Parameter.empty:
            raise RecipeError(
                f"stage.optimizer.init_args.{key}: {given[key]} would have no effect; each part has its own, "
                f"stage.train.PART.{key}"
            )
