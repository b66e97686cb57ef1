"""The forms in which a recipe may name a class, and the one that everything behind composing reads.

    stacking: {DeepStackL: {crops: 4}}        # short, of this library, or {my_package.Mine: {...}}
    projector: MLPProjector                   # without arguments
    train: {projector: 1.0e-3}                # of a stage: a part's learning rate alone, for {lr: 1.0e-3}
    stacking: {class_path: dslight.components.DeepStackL, init_args: {crops: 4}}      # in full
    model: {my_package.MyVLM: {stacking: ..., scale: 2}}   # a subclass of dslight.VLM; so a data module under data

What ``model`` and ``data`` name takes its arguments beside its ``class_path``, so that ``model.stacking`` and
``data.train`` are the same keys whoever's class reads them.

A short form is written out where a layer is read, so it merges with a full one, and
``model.stacking.DeepStackL.crops=4`` is an override. Where a key was short, messages say it so again
(:func:`as_written`). Arguments that have got a better name are renamed here, too, with a word about it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dslight.recipe.errors import RecipeError

HOMES = {
    "model": "dslight.components",
    "component": "dslight.components",
    "objective": "dslight.components",
    "data.views": "dslight.data.images",
    "data.template": "dslight.data.conversation",
    "stage.optimizer": "torch.optim",
    "trainer.callbacks": "lightning.pytorch.callbacks",
    "trainer.logger": "lightning.pytorch.loggers",
    "trainer.strategy": "lightning.pytorch.strategies",
}
"""Where classes are named -> the package of those that are named without theirs."""

WHOLE = ("model", "data")
"""Sections whose class takes its arguments beside its ``class_path``; without one it is this library's."""

RENAMED = {("DeepStackL", "num_stacks"): "crops", ("DeepStackV", "num_stacks"): "crops"}
"""(class, old argument) -> its name now."""

_LEARNING_RATE = re.compile(r"stage\.train\.[^.]+")
_CLASS = re.compile(r"([A-Za-z_]\w*\.)*[A-Z]\w*")
_SCHEDULE = re.compile(r"(?!name$)([A-Za-z_]\w*\.)*[A-Za-z_]\w*")
_OF_OURS = {"lightning.pytorch.strategies.Sharded": "dslight.train.Sharded"}


class Recipe(dict[str, Any]):
    """A composed recipe; ``short`` are the keys under which its files named a class in short, and how, ``inherited``
    the sources of ``data.val`` that a base names, and that base.
    """

    short: Mapping[str, str] = {}
    inherited: Mapping[str, str] = {}


def written_out(values: Mapping[str, Any], short: dict[str, str]) -> dict[str, Any]:
    """``values`` with every class in full; ``short`` is told where one was not."""
    return {key: _written_out(value, str(key), short) for key, value in values.items()}


def renamed(node: Mapping[str, Any], class_path: Any, at: str) -> Mapping[str, Any]:
    """The section of a class, its arguments under their names of now."""
    arguments = node.get("init_args")
    if not isinstance(class_path, str) or not isinstance(arguments, Mapping):
        return node
    name = class_path.rpartition(".")[2]
    old = {key: RENAMED[name, key] for key in arguments if (name, key) in RENAMED}
    for was, now in old.items():
        if now in arguments:
            raise RecipeError(f"{at}.init_args.{was}: is the old name of {now}, which is set too; leave it out")
        warnings.warn(f"{at}.init_args.{was}: {name} calls it {now} now", FutureWarning, stacklevel=2)
    return {**node, "init_args": {old.get(key, key): value for key, value in arguments.items()}} if old else node


def arguments_of(recipe: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """What a composed recipe says of a part of its model; nothing where the model makes that part by itself."""
    named = recipe["model"].get(part)
    return (named.get("init_args") or {}) if isinstance(named, Mapping) else {}


@contextmanager
def as_written(recipe: Mapping[str, Any]) -> Iterator[None]:
    """A :class:`RecipeError` about an argument of a class that was named in short says its key as it was written."""
    try:
        yield
    except RecipeError as error:
        text = str(error)
        for key, name in sorted(getattr(recipe, "short", {}).items(), key=lambda one: -len(one[0])):  # the inner first
            if not _is_named(recipe, key, name):  # but in full by now
                continue
            text = re.sub(rf"^{re.escape(key)}\.(class_path|init_args)\b", f"{key}.{name}", text)
        if text == str(error):
            raise
        raise RecipeError(text) from error


def _is_named(node: Any, key: str, name: str) -> bool:
    """Whether the class at ``key`` of a recipe is the one that was called ``name``."""
    for word in key.split("."):
        inner = node.get("init_args") if isinstance(node, Mapping) and word not in node else node
        if isinstance(inner, list):
            node = inner[int(word)] if word.isdigit() and int(word) < len(inner) else None
        else:
            node = inner.get(word) if isinstance(inner, Mapping) else None
    path = str(node.get("class_path")) if isinstance(node, Mapping) else ""
    return path.rpartition(".")[2] == name.rpartition(".")[2]


def _written_out(value: Any, at: str, short: dict[str, str]) -> Any:
    home = next((home for key, home in HOMES.items() if f"{at}.".startswith(f"{key}.")), None)
    if re.fullmatch(r"data\.val\..+\.metric", at):
        home = "dslight.metrics"
    if at in WHOLE:
        home, value = None, _flat(value, at, short)
    if at == "stage.schedule" and (named := _short(value, at, _SCHEDULE)) is not None:
        value = {"name": named[0], **(named[1] or {})}
    if isinstance(value, list):
        return [_written_out(one, f"{at}.{i}", short) for i, one in enumerate(value)]
    if home is not None and (named := _short(value, at)) is not None:
        name, arguments = named
        path = name if "." in name else f"{home}.{name}"
        short[at] = name
        value = {"class_path": _OF_OURS.get(path, path), **({"init_args": arguments} if arguments else {})}
    if _LEARNING_RATE.fullmatch(at) and isinstance(value, int | float) and not isinstance(value, bool):
        return {"lr": value}
    if not isinstance(value, Mapping):
        return value
    value = renamed(value, value.get("class_path"), at)
    return {key: _written_out(one, f"{at}.{key}", short) for key, one in value.items()}


def _flat(value: Any, at: str, short: dict[str, str]) -> Any:
    """A whole section with its class, if it names one, beside the arguments."""
    if (named := _short(value, at)) is not None:
        name, arguments = named
        short[at] = name
        return {"class_path": name if "." in name else f"dslight.{name}", **(arguments or {})}
    if isinstance(value, Mapping) and isinstance(arguments := value.get("init_args") or {}, Mapping):
        return {**{key: one for key, one in value.items() if key != "init_args"}, **arguments}
    return value


def _short(value: Any, at: str, names: re.Pattern[str] = _CLASS) -> tuple[str, Any] | None:
    """The class and the arguments of a short form; ``None``: it is none."""
    if isinstance(value, str):
        return (value, None) if at in _NAMED_ALONE and names.fullmatch(value) else None
    if not isinstance(value, Mapping) or len(value) != 1:
        return None
    ((name, arguments),) = value.items()
    is_class = isinstance(name, str) and names.fullmatch(name) and isinstance(arguments, Mapping | None)
    return (name, arguments) if is_class else None


_NAMED_ALONE = {
    *(f"model.{part}" for part in ("vision_encoder", "projector", "stacking", "language_model")),
    *("model", "data", "component", "objective", "data.views", "data.template", "stage.optimizer", "trainer.strategy"),
}
"""Keys whose value may be a class's name alone."""
