"""What a finished training leaves behind: ``result.json``, the answers, and the weights of every part that trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dslight.files.atomic import write_atomically
from dslight.recipe.compose import recipe_hash
from dslight.recipe.experiment import Experiment
from dslight.run.answers import write_answers
from dslight.run.folder import RunFolder, environment
from dslight.train.callbacks import Pace
from dslight.vlm import VLM


def write_result(
    experiment: Experiment, folder: RunFolder, trainer: Any, pace: Pace, scores: Mapping[str, float]
) -> dict[str, Any]:
    """Write everything; all ranks take part, the first one writes, and ``result.json`` comes last."""
    save_parts(experiment, folder, trainer)
    sources = write_answers(experiment, folder, trainer)
    result = {
        "name": experiment.recipe.get("name"),
        "seed": experiment.recipe.get("seed", 0),
        "recipe_hash": recipe_hash(experiment.recipe),
        "scores": dict(scores),
        "sources": sources,
        **_headline(experiment, scores),
        **_ledger(experiment),
        "step_seconds": pace.step_seconds,
        "steps": trainer.global_step,
        "train_seconds": pace.train_seconds,
        **{key: value for key, value in environment().items() if key in ("versions", "git_commit")},
    }
    if trainer.is_global_zero:
        write_atomically(folder.result_file, json.dumps(result, indent=2))
    return result


def _headline(experiment: Experiment, scores: Mapping[str, float]) -> dict[str, Any]:
    """The first source's headline score, under the name that tables use."""
    if isinstance(experiment.model, VLM) and experiment.model.metrics:
        source, metric = next(iter(experiment.model.metrics.items()))
        key = f"val/{source}/{metric.headline}"
        return {"headline": key, "accuracy": scores.get(key)}
    return {}


def _ledger(experiment: Experiment) -> dict[str, Any]:
    """What went in: tokens, context, parameters."""
    model = experiment.model
    parameters = {
        "total": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if not isinstance(model, VLM) or experiment.slots is None or not experiment.of_shards:
        return {"parameters": parameters}
    patches = experiment.encoder.grid[0] * experiment.encoder.grid[1]
    passed = [experiment.views_of(run) for run in model.stacking.passes(experiment.largest_grid)]
    views = sum(rows * columns for each in passed for rows, columns in each)
    return {
        "parameters": parameters,
        "visual_tokens": patches * views,
        "stacked_tokens": len(experiment.context) * model.stacking.num_stacks,
        "context_length": len(experiment.context),
    }


def save_parts(experiment: Experiment, folder: RunFolder, trainer: Any) -> None:
    """Write the weights of every part that trained, whole, whatever the sharding.

    All ranks take part, the first one writes.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import FSDPModule

    from dslight.components.component import save_weights
    from dslight.train.lora import merged

    model: Any = experiment.model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    sharded = isinstance(model, FSDPModule)
    for name in model.stage.train:
        part = model.parts()[name]
        state: dict[str, Any] = get_model_state_dict(part, options=options) if sharded else part.state_dict()
        if trainer.is_global_zero:
            own = {k: v for k, v in merged(part, state).items() if not k.startswith("objective.")}
            save_weights(own, folder.weights / f"{name}.safetensors")
