"""From a composed recipe to an experiment, in which model and data meet.

A recipe is first built on the ``meta`` device, where modules have shapes but no memory: whether the parts fit each
other, the stage and the views is known in seconds, even for 13B parameters, and before a weight or a sample is read.
Only then is it built for real.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_info
from torch.nn.modules.module import register_module_module_registration_hook

from dslight.checkpoints import load_checkpoint, parts_in
from dslight.checkpoints.elsewhere import KEY, put_back
from dslight.checkpoints.read import files_of, unpickled
from dslight.components import (
    Component,
    HFCausalLM,
    HFVisionEncoder,
    NaFlexEncoder,
    NativeVisionEncoder,
    TimmEncoder,
)
from dslight.data.datamodule import ShardData
from dslight.data.shards import ShardError
from dslight.errors import WeightsError
from dslight.limits import at_most, limit
from dslight.recipe.checks import chat_habits, check_experiment
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.recipe.forms import arguments_of, as_written
from dslight.recipe.schema import Parsed, located, parse
from dslight.recipe.waiting import KINDS, parts_that_wait, read
from dslight.vlm import VLM

_FROM_FILES = (HFCausalLM, HFVisionEncoder, NativeVisionEncoder, NaFlexEncoder, TimmEncoder)
"""Parts that read all of their weights from where ``pretrained`` says."""


def check(recipe: Mapping[str, Any] | Parsed, trains: bool = True) -> Experiment:
    """The experiment on the meta device: all shapes, no memory, no weights, no data.

    Args:
        recipe: as composed, or parsed already.
        trains: whether it is to be trained as it is, and not to be filled with what was trained.

    Raises:
        RecipeError: naming the key's path, the value and the limit.
    """
    parsed = parse(recipe)
    with as_written(parsed.recipe):
        with torch.device("meta"), _counting_modules():
            experiment = _assemble(parsed)
        count = sum(parameter.numel() for parameter in experiment.model.parameters())
        at_most("parameters", count, f"model: {count:,} parameters", RecipeError)
        for rows, cols in experiment.grids:
            views = (1 + rows * cols) * (1 + experiment.fine**2) - 1
            at_most("crops", views, f"data.views: {rows} x {cols} crops, {views:,} with all of theirs", RecipeError)
        check_experiment(experiment, trains)
    return experiment


def build(
    recipe: Mapping[str, Any] | Parsed, opens: Literal["fit", "validate"] | None = "fit", restored: bool = False
) -> Experiment:
    """The experiment for real: checked, seeded, with its weights, connected to its data.

    Where the strategy shards, an encoder or decoder whose weights all come from a file is made without memory, and read
    share by share once it is sharded (:mod:`dslight.components.unread`).

    Args:
        recipe: as composed, or parsed already.
        opens: what the shards are wanted for: those that it needs have to be there.
        restored: all weights will come from a sharded run's checkpoint.

    Raises:
        RecipeError: as :func:`check`, and for files that are not there. All are looked for before a weight is read.
    """
    parsed = parse(recipe)
    recipe = parsed.recipe
    checked, tokenizer = _ready(parsed, opens)
    given = {part: path for path, parts in _weights(recipe, checked.model).values() for part in parts}
    waiting = parts_that_wait(parsed, checked.model, given, restored)
    experiment = _seeded(parsed, waiting)
    if odd := [name for name in waiting if any(b.is_meta for b in experiment.model.parts()[name].buffers())]:
        waiting = {name: path for name, path in waiting.items() if name not in odd}  # buffers made of parameters
        experiment = _seeded(parsed, waiting)
    model = experiment.model
    for name, (path, parts) in _weights(recipe, model).items():
        try:
            report = load_checkpoint(model, path, parts, read=False)
            if now := [part for part in parts if part not in waiting]:
                load_checkpoint(model, path, now)
        except WeightsError as error:
            raise RecipeError(f"weights.{name}: {error}") from error
        rank_zero_info(f"weights.{name}: {report}")
    _check_elsewhere(recipe, model, waiting)
    if isinstance(model, VLM) and waiting:
        model.read_weights = partial(read, model, waiting)
    connect(experiment, tokenizer)
    experiment.files = _files(recipe, model, given)
    return experiment


def _check_elsewhere(recipe: Mapping[str, Any], model: VLM | Component, waiting: Mapping[str, Any]) -> None:
    """Whether what ``weights.model`` leaves to other files is what it was there; what ``weights`` names is not asked.

    Raises:
        RecipeError: naming the part.
    """
    path, named = (recipe.get("weights") or {}).get("model"), recipe.get("weights") or {}
    if path is None or Path(path).suffix != ".ckpt":
        return
    try:
        said = unpickled(Path(path)).get(KEY) or {}
        asked = {part: one for part, one in said.items() if part not in named and part not in waiting}
        put_back({}, asked, model.state_dict(), path)
    except WeightsError as error:
        raise RecipeError(f"weights.model: {error}") from error


def _files(recipe: Mapping[str, Any], model: VLM | Component, given: Mapping[str, str]) -> dict[str, str | None]:
    """See :class:`Experiment`. ``given``: part -> path, what ``weights`` says."""
    found: dict[str, str | None] = {part: str(Path(path).resolve()) for part, path in given.items()}
    for name, part in model.parts().items() if isinstance(model, VLM) else ():
        arguments = arguments_of(recipe, name)
        whole = isinstance(part, _FROM_FILES) and not arguments.get("extra_layers")
        if name not in given and whole and arguments.get("pretrained"):
            found[name] = None
    return found


def _seeded(parsed: Parsed, waiting: Iterable[str]) -> Experiment:
    seed_everything(parsed.recipe.get("seed", 0), verbose=False)
    return _assemble(parsed, [KINDS[name] for name in waiting])


def ready(recipe: Mapping[str, Any] | Parsed, opens: Literal["fit", "validate"] | None = "fit") -> Any:
    """Check a recipe and look for every file that it needs; returns the tokenizer (``None`` for a component alone).

    Raises:
        RecipeError: as :func:`check`, and for files that are not there: the shards first.
    """
    return _ready(parse(recipe), opens)[1]


def _ready(parsed: Parsed, opens: Literal["fit", "validate"] | None) -> tuple[Experiment, Any]:
    recipe, checked = parsed.recipe, check(parsed, trains=opens == "fit")
    if opens is not None and checked.of_shards:
        try:
            checked.data.setup(opens)
        except (ValueError, OSError, ShardError) as error:
            raise RecipeError(str(error)) from error
    tokenizer = _tokenizer(checked.model)
    for name, path in (recipe.get("weights") or {}).items():
        try:
            if path is not None:
                files_of(path)
        except WeightsError as error:
            raise RecipeError(f"weights.{name}: {error}") from error
    _weights(recipe, checked.model)
    if opens != "validate":
        chat_habits(checked, tokenizer)
    if opens == "fit" and tokenizer is not None and isinstance(checked.data, ShardData):
        try:
            checked.data.check_vocabulary(tokenizer)
        except ValueError as error:
            raise RecipeError(str(error)) from None
    return checked, tokenizer


def _weights(recipe: Mapping[str, Any], model: VLM | Component) -> dict[str, tuple[str, list[str]]]:
    """What is read from where: key below ``weights`` -> (path, parts).

    ``weights.model`` gives every part that has no weights of its own; a part that it has no tensors of (released
    checkpoints come without their vision encoder) begins as its ``pretrained`` says.

    Raises:
        RecipeError: for a part that has neither.
    """
    named = dict(recipe.get("weights") or {})
    found = {name: (path, [name]) for name, path in named.items() if name != "model" and path is not None}
    if named.get("model") is None:
        return found
    try:
        held = parts_in(named["model"])
    except WeightsError as error:
        raise RecipeError(f"weights.model: {error}") from error
    asked = []
    for name, part in model.parts().items():
        if name in named or not any(True for _ in part.parameters()):
            continue
        arguments = arguments_of(recipe, name)
        if name in held:
            asked.append(name)
        elif not arguments.get("pretrained"):
            raise RecipeError(
                f"weights.model: {named['model']} has no tensor of the {name}; name a file for it (weights.{name}), "
                f"give it a `pretrained`, or let it begin as it is initialised: weights.{name}=null"
            )
    return {"model": (named["model"], asked), **found}


def _assemble(parsed: Parsed, wait: Sequence[type] = ()) -> Experiment:
    made = parsed.sections
    if "model" in made:
        model = made["model"].build(wait)
    else:
        model = made["component"].build()
        model.objective = made["objective"].build()(model.width)
    if "stage" in made:
        apply_stage(model, made["stage"].build())
    looks = made["diagnostics"].build() if "diagnostics" in made else None
    return Experiment(parsed.recipe, model, made["data"].build(), made["trainer"], looks, parsed=parsed)


def apply_stage(model: VLM | Component, stage: Any) -> None:
    """Let a stage say what trains.

    Raises:
        RecipeError: for what it cannot say of these parts.
    """
    try:
        model.train_with(stage)
    except ValueError as error:
        raise RecipeError(f"stage.{error}") from None


@contextmanager
def _counting_modules() -> Iterator[None]:
    """Give up building what turns out to have no end."""
    most, count = limit("modules"), 0

    def counted(module: Any, name: str, submodule: Any) -> None:
        nonlocal count
        count += 1
        if count > most:  # this alone is asked every time
            at_most("modules", count, f"{type(module).__name__}: {count:,} modules and more")

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()


def _tokenizer(model: VLM | Component) -> Any:
    if not isinstance(model, VLM):
        return None
    try:
        return model.language_model.load_tokenizer()
    except (ValueError, OSError) as error:
        raise RecipeError(located("model.language_model.init_args", error)) from error


def connect(experiment: Experiment, tokenizer: Any = None) -> None:
    """Tell the data what only the model knows, and the model what only the data knows."""
    model, data = experiment.model, experiment.data
    if isinstance(model, VLM) and experiment.of_shards:
        model.tokenizer = tokenizer or model.tokenizer
        model.connect(data)
    elif experiment.of_shards:
        data.connect(image_size=experiment.encoder.image_size, patches=experiment.encoder.grid)
