"""``dslight fit``: train what a recipe describes, in a folder of its own, to the end or until somebody stops it.

The same call again continues an interrupted run from its newest checkpoint and returns at once from a finished one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dslight.data.sample import BadSample
from dslight.data.shards import ShardError
from dslight.recipe.build import Experiment, batches_per_step, build
from dslight.recipe.errors import RecipeError
from dslight.run.folder import RunFolder, environment, run_dir, write_atomically
from dslight.vlm import VLM

DEFAULTS: dict[str, Any] = {
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data's own plan gives every rank its share
    "log_every_n_steps": 10,
}
"""Trainer arguments of every run that a recipe does not set itself."""


def fit(recipe: Mapping[str, Any], folder: str | Path | None = None, resume: bool = True) -> dict[str, Any]:
    """Train, validate on everything, and write ``result.json``.

    Args:
        recipe: as composed.
        folder: the run's folder; default: the recipe's.
        resume: continue what is there; false starts anew and deletes it.

    Returns:
        The contents of ``result.json``.

    Raises:
        RecipeError: before anything is trained.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint written.
    """
    from lightning.pytorch.utilities import rank_zero_info

    if "stage" not in recipe:
        raise RecipeError("stage: missing; name the parts that train: stage.train.projector.lr=1e-3")
    place = RunFolder(folder or run_dir(recipe))
    if resume:
        place.refuse_another(recipe)
        done = place.result()
        if done is not None:
            rank_zero_info(f"{place.path}: already trained (--fresh trains it again)")
            return done
    return _train(build(recipe), place, resume)


def make_trainer(experiment: Experiment, folder: RunFolder, callbacks: Sequence[Any] = (), **options: Any) -> Any:
    """Lightning's Trainer as the recipe describes it, with ``callbacks`` beside the recipe's own.

    ``options`` win over both. Micro-batches are accumulated up to the recipe's global batch.

    Raises:
        RecipeError: for Trainer arguments that this machine cannot fulfil, or batch sizes that its ranks cannot share.
    """
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    arguments = {**vars(experiment.trainer.build()), "default_root_dir": str(folder.path)}
    arguments |= {
        key: value for key, value in {**DEFAULTS, **_launched()}.items() if key not in experiment.trainer.values
    }
    arguments |= options
    own = arguments.get("callbacks") or []
    arguments["callbacks"] = [*(own if isinstance(own, list) else [own]), *callbacks]
    try:
        trainer = Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise RecipeError(f"trainer: {error}") from error
    trainer.accumulate_grad_batches = batches_per_step(experiment.data, trainer.world_size)
    return trainer


@contextmanager
def data_errors() -> Iterator[None]:
    """A shard or a sample that turns out to be bad while it is read is the user's to mend, as a wrong recipe is."""
    try:
        yield
    except (ShardError, BadSample) as error:
        raise RecipeError(str(error)) from error


def _launched() -> dict[str, int]:
    """Trainer arguments that torchrun has decided already: how many processes there are, and on how many nodes."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {}
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"devices": devices, "num_nodes": int(os.environ["WORLD_SIZE"]) // devices}


def _train(experiment: Experiment, folder: RunFolder, resume: bool) -> dict[str, Any]:
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import ModelParallelStrategy

    from dslight.train.callbacks import Pace, SaveAtEnd, StopCleanly

    pace = Pace(folder.path / "progress.json")
    stop = StopCleanly(folder.checkpoints)
    callbacks: list[Any] = [pace, stop]
    if experiment.recipe.get("trainer", {}).get("enable_checkpointing", True):
        every = experiment.recipe.get("checkpoint_every", 1000)
        periodic = ModelCheckpoint(
            dirpath=folder.checkpoints,
            filename="step-{step:08d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every,
            save_on_train_epoch_end=False,
        )
        callbacks += [periodic, SaveAtEnd(folder.checkpoints, every)]
    logger = CSVLogger(folder.path, name="logs", version=f"attempt-{folder.next_attempt() if resume else 0}")
    extra = {} if experiment.trainer.values.get("logger") else {"logger": logger}
    trainer = make_trainer(experiment, folder, callbacks, **extra)
    if trainer.is_global_zero:  # the other ranks write nothing, and nobody trains before all are there
        folder.open(experiment.recipe, fresh=not resume)
    checkpoint = folder.latest_checkpoint() if resume else None
    if checkpoint is not None:
        if checkpoint.is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
            raise RecipeError(
                f"trainer.strategy: {checkpoint} is sharded; to continue from it, name "
                f"lightning.pytorch.strategies.ModelParallelStrategy, on one process too (with data_parallel_size: 1)"
            )
        if trainer.is_global_zero:
            print(f"continuing from {checkpoint}")
    model = experiment.model
    try:
        with data_errors():
            trainer.fit(model, datamodule=experiment.data, ckpt_path=checkpoint)
            if stop.asked:  # in the validation after the last step
                raise KeyboardInterrupt
            trainer.limit_val_batches = 1.0
            scores = (
                trainer.validate(model, datamodule=experiment.data, verbose=False) if _validates(experiment) else []
            )
    except SystemExit as left:  # how Lightning leaves after Ctrl-C
        raise KeyboardInterrupt from left
    finally:
        if trainer.is_global_zero:
            folder.join_logs()
    merged = {key: value for one in scores for key, value in one.items()}
    save_parts(experiment, folder, trainer)
    answers = _gather_answers(model, trainer) if isinstance(model, VLM) else []
    result = {
        "name": experiment.recipe.get("name"),
        "seed": experiment.recipe.get("seed", 0),
        "recipe_hash": _hash(experiment),
        "scores": merged,
        **_headline(experiment, merged),
        **_ledger(experiment, pace),
        "step_seconds": pace.step_seconds,
        "steps": trainer.global_step,
        "train_seconds": pace.train_seconds,
        **{key: value for key, value in environment().items() if key in ("versions", "git_commit")},
    }
    if trainer.is_global_zero:
        if isinstance(model, VLM):
            lines = [json.dumps(answer) for answer in answers]
            write_atomically(folder.path / "answers.jsonl", "\n".join(lines) + "\n")
        write_atomically(folder.result_file, json.dumps(result, indent=2))
    return result


def _gather_answers(model: VLM, trainer: Any) -> list[dict[str, Any]]:
    """The answers of all ranks, in the order of the questions: a rank's share of a source is contiguous."""
    import torch.distributed as dist

    if trainer.world_size == 1:
        return model.answers
    shares: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(shares, model.answers)
    order = list(model.metrics)
    return sorted((answer for share in shares for answer in share), key=lambda answer: order.index(answer["source"]))


def _validates(experiment: Experiment) -> bool:
    return bool(experiment.data.val_sources)


def _hash(experiment: Experiment) -> str:
    from dslight.recipe.compose import recipe_hash

    return recipe_hash(experiment.recipe)


def _headline(experiment: Experiment, scores: Mapping[str, float]) -> dict[str, Any]:
    """The first source's headline score, under the name that tables use."""
    if isinstance(experiment.model, VLM) and experiment.model.metrics:
        source, metric = next(iter(experiment.model.metrics.items()))
        key = f"val/{source}/{metric.headline}"
        return {"headline": key, "accuracy": scores.get(key)}
    return {}


def _ledger(experiment: Experiment, pace: Any) -> dict[str, Any]:
    """What went in: tokens, context, parameters."""
    model = experiment.model
    parameters = {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if not isinstance(model, VLM) or experiment.slots is None:
        return {"parameters": parameters}
    patches = experiment.encoder.grid[0] * experiment.encoder.grid[1]
    grid = experiment.largest_grid
    crops = grid[0] * grid[1] if model.stacking.uses_crops else 0
    return {
        "parameters": parameters,
        "visual_tokens": patches * (1 + crops),
        "stacked_tokens": patches * model.stacking.num_stacks,
        "context_length": pace.longest_row,
    }


def save_parts(experiment: Experiment, folder: RunFolder, trainer: Any) -> None:
    """Write the weights of every part that trained, whole, whatever the sharding.

    All ranks take part, the first one writes.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    from dslight.components.component import save_weights

    model: Any = experiment.model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    sharded = isinstance(model, FSDPModule)
    for name in model.stage.train:
        part = model.parts()[name]
        state: dict[str, Any] = get_model_state_dict(part, options=options) if sharded else part.state_dict()
        if trainer.is_global_zero:
            own = {k: v for k, v in state.items() if not k.startswith("objective.")}
            save_weights(own, folder.weights / f"{name}.safetensors")
