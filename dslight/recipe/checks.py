"""Whether the parts, the stage, the data and the strategy of an experiment go together: refused before a weight is read
where they do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from dslight.components import Component
from dslight.components.kept_features import refuse as refuse_features
from dslight.data.conversation import default_template
from dslight.data.datamodule import ShardData, micro_size, no_thoughts
from dslight.data.plan import accumulation
from dslight.data.templates.habits import Habits, check_habits
from dslight.metrics.benchmarks import BENCHMARKS, row_of
from dslight.metrics.benchmarks import of as benchmark_of
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.recipe.schema import in_recipe, located
from dslight.recipe.training import check_training
from dslight.texts import closest
from dslight.train.strategy import copies_of
from dslight.upstream.transformers import attention_of
from dslight.vlm import VLM

_FILE_NAME = re.compile(r"\w[\w.-]*")


def check_experiment(experiment: Experiment, trains: bool = True) -> None:
    """What the parts, the stage, the data and the strategy are to each other.

    Raises:
        RecipeError: naming the key's path, the value and the limit.
    """
    recipe, model = experiment.recipe, experiment.model
    if isinstance(model, VLM) and experiment.of_shards:
        try:
            model.check_views(experiment.data.views)
        except ValueError as error:
            text = str(error)
            key = text if text.startswith("data.") else f"model.{text}"
            raise RecipeError(in_recipe(key, recipe)) from None
        _check_packing(model, experiment.data)
    if isinstance(model, VLM) and trains:
        _check_newline(model, recipe)
    for name in recipe.get("weights") or {}:
        parts = model.parts()
        if name not in parts and not (name == "model" and isinstance(model, VLM)):
            raise RecipeError(
                f"weights.{name}: there is no such part{closest(name, parts)}; the parts are {', '.join(parts)}"
            )
    if experiment.of_shards:
        _check_data(experiment.data)
    check_training(recipe, model)
    _check_features(model, experiment.data)
    _check_diagnostics(experiment)
    _check_mesh(recipe)


def chat_habits(experiment: Experiment, tokenizer: Any) -> Habits | None:
    """What the tokenizer's own chat template does, where the data are written with it.

    Raises:
        RecipeError: no answer can be learnt with it.
    """
    data = experiment.data
    if tokenizer is None or not isinstance(data, ShardData) or not data.sources:
        return None
    if (data.template or default_template(tokenizer)) != "tokenizer":
        return None
    try:
        return check_habits(tokenizer, data.thinking)
    except ValueError as error:
        raise RecipeError(str(error)) from error


def world_size(recipe: Mapping[str, Any]) -> int:
    """The number of processes that the recipe's trainer names; 1 where it leaves that to the machine."""
    trainer = recipe.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    return devices * nodes if isinstance(devices, int) and isinstance(nodes, int) and devices > 0 else 1


def _check_mesh(recipe: Mapping[str, Any]) -> None:
    trainer = recipe.get("trainer") or {}
    strategy = trainer.get("strategy")
    sizes = (strategy.get("init_args") or {}) if isinstance(strategy, Mapping) else {}
    if "devices" in trainer and "replicate" in sizes:
        try:
            copies_of(sizes["replicate"], world_size(recipe), trainer.get("num_nodes", 1))
        except ValueError as error:
            raise RecipeError(f"trainer.strategy.init_args.{error}") from None
    data, tensor = sizes.get("data_parallel_size"), sizes.get("tensor_parallel_size")
    if "devices" not in trainer or not isinstance(data, int) or not isinstance(tensor, int):
        return
    if data * tensor != world_size(recipe):
        raise RecipeError(
            f"trainer.strategy.init_args.data_parallel_size: {data} x tensor_parallel_size {tensor} is not the "
            f"number of processes, {world_size(recipe)} (trainer.devices x trainer.num_nodes)"
        )


def _check_newline(model: VLM, recipe: Mapping[str, Any]) -> None:
    weights, stage = recipe.get("weights") or {}, recipe.get("stage")
    loaded = weights.get("model") or weights.get("stacking")
    if model.stacking.newline is None or not stage or loaded or "stacking" in (stage.get("train") or {}):
        return
    raise RecipeError(
        "model.stacking.init_args.newline: the newline token starts at zero and would stay there; give "
        "stage.train.stacking a learning rate, or load one (weights.model, weights.stacking)"
    )


def _check_diagnostics(experiment: Experiment) -> None:
    looks, model = experiment.diagnostics, experiment.model
    if looks is None or not isinstance(model, VLM):
        return
    if not experiment.of_shards:
        raise RecipeError("diagnostics: are of questions of dslight.Data, and data names another class")
    if not experiment.data.val_sources:
        raise RecipeError("diagnostics: ask questions, and data.val names none")
    config = getattr(getattr(model.language_model, "model", None), "config", None)
    attention = "eager" if config is None else attention_of(config)
    if looks.heat_maps and looks.heat == "attention" and attention != "eager":
        raise RecipeError(
            f"diagnostics.heat: attention, but {attention} gives no weights; set "
            f"model.language_model.init_args.attention: eager, or choose gradient_x_input"
        )


def _check_packing(model: VLM, data: Any) -> None:
    if not data.order.pack:
        return
    if model.stacking.blocks:
        raise RecipeError(
            f"data.order.pack: {type(model.stacking).__name__} attends to the images of a whole row, so a document "
            f"would see those of the others in it; do not pack, or choose a stacking that adds"
        )
    try:
        model.language_model.check_packing()
    except ValueError as error:
        raise RecipeError(str(error)) from None


def _check_features(model: VLM | Component, data: Any) -> None:
    if isinstance(model, VLM) and getattr(data, "keep_features", None) is not None:
        try:
            refuse_features(model.vision_encoder, model.stacking, model.stage is not None)
        except ValueError as error:
            raise RecipeError(str(error)) from None


def _check_data(data: Any) -> None:
    for key in ("global_batch_size", "micro_batch_size", "val_batch_size"):
        size = getattr(data, key)
        if size is not None and size < 1:
            raise RecipeError(f"data.{key}: must be at least 1, got {size}")
    batches_per_step(data, world_size=1)
    for name, source in data.val_sources.items():
        if not _FILE_NAME.fullmatch(name):
            raise RecipeError(f"data.val.{name}: names a file of the run's folder; use letters, digits, _, - and .")
        if source.loss:
            _check_loss(name, source)
            continue
        if (named := benchmark_of(name, source.benchmark)) not in BENCHMARKS:
            raise RecipeError(
                f"data.val.{name}.benchmark: there is no {named!r}{closest(named, BENCHMARKS)}; "
                f"there are {', '.join(sorted(BENCHMARKS))}"
            )
        if source.frames is not None and source.frames < 1:
            raise RecipeError(f"data.val.{name}.frames: must be at least 1, got {source.frames}")
        if source.thinking is not None and data.template not in (None, "tokenizer"):
            raise RecipeError(no_thoughts(name, data.template))
        try:
            row_of(name, source)
        except (ValueError, TypeError) as error:
            raise RecipeError(located(f"data.val.{name}", error)) from None


def _check_loss(name: str, source: Any) -> None:
    for key in ("benchmark", "protocol", "suffix", "max_new_tokens", "metric", "frames", "thinking"):
        if getattr(source, key) is not None:
            raise RecipeError(f"data.val.{name}.{key}: has no effect beside loss, for which nothing is asked")


def batches_per_step(data: Any, world_size: int) -> int:
    """Micro-batches of a rank per optimizer step, when ``world_size`` ranks share the global batch.

    Raises:
        RecipeError: when the batch sizes do not divide.
    """
    micro = micro_size(data.global_batch_size, data.micro_batch_size, world_size)
    try:
        return accumulation(data.global_batch_size, world_size, micro)
    except ValueError as error:
        raise RecipeError(str(error)) from None
