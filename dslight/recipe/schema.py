"""What a recipe may say: jsonargparse checks every section against the signatures of the classes that it builds.

So there is no second description of an option to keep in step: a new argument of a class is a new key of the recipe,
and a stranger's class is checked by its own signature.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, Trainer

from dslight.components import Component, Objective
from dslight.components.unread import unread
from dslight.data.datamodule import ShardData
from dslight.data.dense import DenseLabelData
from dslight.diagnostics.settings import Diagnostics
from dslight.limits import check_counts
from dslight.recipe.classes import NoClassError, named
from dslight.recipe.errors import RecipeError
from dslight.recipe.explain import arguments_fault, fault, listing, taken_by
from dslight.recipe.forms import as_written
from dslight.recipe.spelling import check_keys
from dslight.train.optim import Stage
from dslight.vlm import VLM
from dslight.written import importable, unwritten

_TYPED = {"component": Component, "objective": Callable[[int], Objective]}
"""Sections that name a class themselves; the others hold the arguments of one."""

_BASES = {"model": VLM, "data": LightningDataModule}
"""Sections that may name a class of their own, which takes their arguments, and what it has to be."""

_KEYED = re.compile(r"[a-z_][\w.]*: ")
"""A message that begins with the argument to change."""


class Section:
    """One section of a recipe: checked when made, built later.

    Args:
        key: its name in the recipe.
        kind: the type of its value (``component``, ``objective``), else the class whose arguments it holds, if it names
            none itself (``model``, ``data``).
        values: what the recipe says.

    Raises:
        RecipeError: naming the key's path.
    """

    def __init__(self, key: str, kind: Any, values: Mapping[str, Any]) -> None:
        self.key, self.values = key, values
        if key in _BASES and "class_path" in values:
            class_path, values = values["class_path"], {k: v for k, v in values.items() if k != "class_path"}
            library, kind = kind, _own_class(key, class_path)
            for name in _left_over(values, kind, library):
                raise RecipeError(
                    f"{key}.{name}: {class_path} takes no such argument{listing('it takes', taken_by(kind) or ())}; "
                    f"where it comes from a recipe under bases, put a file with `{key}: null` between the two"
                )
        self._wait: tuple[type, ...] = ()
        problem = (fault if key in _TYPED else arguments_fault)(key, kind, values)
        if problem:
            raise RecipeError(problem)
        try:
            self.parser = _parser(key, kind)
        except ValueError as error:  # a class whose arguments have no types
            raise RecipeError(f"{key}.class_path: {str(error).rpartition('supported type. ')[2]}") from error
        copy = deepcopy(dict(values))  # the parser writes into what it is given
        try:
            self.config: Namespace = self.parser.parse_object({key: copy})
        except Exception as error:  # whatever a stranger's module raises while it is imported belongs to this key too
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise RecipeError(f"{key}: {lines[-1].strip()}") from error

    def build(self, wait: Sequence[type] = ()) -> Any:
        """Make the section's objects, anew with each call. The trainer's section gives the Trainer's arguments, for the
        run to complete.

        Args:
            wait: classes whose objects are made without memory (:func:`dslight.components.unread.unread`).
        """
        self._wait = tuple(wait)
        try:
            waiting: Any = [(self._made, kind, True) for kind in wait]
            made = self.parser.instantiate(self.config, instantiators=waiting or None)[self.key]
        except (ValueError, TypeError, OSError, ImportError, StrictDataclassError) as error:
            raise RecipeError(self._located(error)) from error
        if self.key == "trainer":
            # jsonargparse may take an int for a float where both are allowed: then 1 batch becomes 1.0, all of them
            for name, value in self.values.items():
                if type(value) is int:
                    made[name] = value
        return made

    def _made(self, kind: Any, *args: Any, applied_instantiation_links: Any = None, **kwargs: Any) -> Any:
        with unread() if issubclass(kind, self._wait) else nullcontext():
            return kind(*args, **kwargs)

    def _located(self, error: BaseException) -> str:
        """The error's message behind the key path of the innermost class whose ``__init__`` it came out of."""
        while str(error).startswith("Does not validate against any of the Union") and error.__cause__ is not None:
            error = error.__cause__  # what a class says against its arguments, where something else may stand, too
        path, frame = self.key, error.__traceback__
        while frame is not None:
            owner = frame.tb_frame.f_locals.get("self")
            if frame.tb_frame.f_code.co_name == "__init__" and owner is not None:
                path = next((at for at, name in self._classes() if name == type(owner).__name__), path)
            frame = frame.tb_next
        message = str(error) or type(error).__name__
        text = message if message.startswith(f"{self.key}.") else located(path, message)
        return in_recipe(text, {self.key: self.values})

    def _classes(self) -> list[tuple[str, str]]:
        """(key path of its arguments, class name) of every class that the section names."""
        found = []

        def visit(node: Any, path: str) -> None:
            if isinstance(node, Mapping):
                if isinstance(node.get("class_path"), str):
                    found.append(
                        (path if path in _BASES else f"{path}.init_args", node["class_path"].rpartition(".")[2])
                    )
                for key, value in node.items():
                    visit(value, f"{path}.{key}")
            elif isinstance(node, list):
                for index, value in enumerate(node):
                    visit(value, f"{path}.{index}")

        visit(self.values, self.key)
        return found


def _own_class(key: str, class_path: Any) -> type:
    """The class that a whole section names.

    Raises:
        RecipeError: it is not there, or another kind of thing.
    """
    base = _BASES[key]
    try:
        found = named(str(class_path))
    except NoClassError as error:
        raise RecipeError(f"{key}.class_path: {error}") from error
    if not isinstance(found, type) or not issubclass(found, base):
        raise RecipeError(f"{key}.class_path: {class_path} is no subclass of {importable(base)}")
    return found


def _left_over(values: Mapping[str, Any], own: type, library: type) -> list[str]:
    """Keys that the library's class has, and a class of one's own in its place has not."""
    taken = taken_by(own)
    return [name for name in values if taken is not None and name not in taken and name in (taken_by(library) or ())]


@cache
def _parser(key: str, kind: Any) -> ArgumentParser:
    """What reads a section; to find out what a class takes is most of the work."""
    parser = ArgumentParser(exit_on_error=False)
    if key in _TYPED:
        parser.add_argument(f"--{key}", type=kind)
    else:
        parser.add_class_arguments(kind, key, instantiate=kind is not Trainer)
    return parser


def located(path: str, message: object) -> str:
    """``message``, on one line, behind the key ``path`` of the arguments that it may begin with one of."""
    text = " ".join(str(message).split())
    return f"{path}.{text}" if _KEYED.match(text) else f"{path.removesuffix('.init_args')}: {text}"


_COUNTED = ("model", "component", "objective", "data", "stage")
"""Sections in which a number may stand for as many layers, crops or processes."""


def in_recipe(text: str, recipe: Any) -> str:
    """A message that begins with the path of an argument in Python (``model.stacking.start: ...``), with its key in
    ``recipe``: the arguments of a class stand under ``init_args``.
    """
    path, colon, rest = text.partition(": ")
    keys, node = [], recipe
    for key in path.split("."):
        if isinstance(node, Mapping) and "class_path" in node and key not in node and len(keys) > 1:
            keys.append("init_args")
            node = node.get("init_args")
        keys.append(key)
        node = node.get(key) if isinstance(node, Mapping) else None
    return ".".join(keys) + colon + rest


def _of_a_recipe(message: str) -> RecipeError:
    return RecipeError(message.removeprefix("."))


@dataclass(frozen=True)
class Parsed:
    """A composed recipe whose sections were checked against the signatures of what they build: what a command makes of
    it once, and hands on.

    Attributes:
        recipe: as composed.
        sections: by key; each builds its objects, as often as it is asked.
    """

    recipe: Mapping[str, Any]
    sections: Mapping[str, Section]


def parse(recipe: Mapping[str, Any] | Parsed) -> Parsed:
    """Check a composed recipe, section by section, without building anything; what is parsed stays as it is.

    Raises:
        RecipeError: for the first key that is wrong.
    """
    if isinstance(recipe, Parsed):
        return recipe
    with as_written(recipe):
        return Parsed(recipe, _sections(recipe))


def _sections(recipe: Mapping[str, Any]) -> dict[str, Section]:
    for key, what in unwritten(recipe).items():
        raise RecipeError(
            f"{key}: {what} was made in Python, and a recipe cannot name it; give what was made: "
            f"dslight.load(RUN, model=...)"
        )
    check_keys(recipe)
    check_counts({key: recipe[key] for key in _COUNTED if isinstance(recipe.get(key), Mapping)}, "", _of_a_recipe)
    if not 0 <= (recipe.get("seed") or 0) < 2**32:
        raise RecipeError(f"seed: must be in 0..{2**32 - 1}, got {recipe['seed']}")
    for key in ("checkpoint_every", "checkpoint_keep", "validate_every"):
        least, what = recipe.get(key), "checkpoint" if key == "checkpoint_keep" else "step"
        if least is not None and least < 1:
            raise RecipeError(f"{key}: must be at least 1 {what}, got {least}")
    if recipe.get("checkpoint_holds", "trained") not in ("trained", "all"):
        raise RecipeError(f"checkpoint_holds: {recipe['checkpoint_holds']!r} is neither trained nor all")
    if recipe.get("hub_push") is not None and "component" in recipe:
        raise RecipeError(
            "hub_push: is for a `model`; a `component` that is fitted alone is one file, weights/*.safetensors"
        )
    for key in ("val_check_interval", "check_val_every_n_epoch"):
        if recipe.get("validate_every") is not None and (recipe.get("trainer") or {}).get(key) is not None:
            raise RecipeError(f"trainer.{key}: validate_every says when; name one of them")
    for name, path in (recipe.get("weights") or {}).items():
        if not isinstance(path, str | None):
            raise RecipeError(f"weights.{name}: expected the path of a checkpoint, got {path!r}")
    if ("model" in recipe) == ("component" in recipe):
        has = "both" if "model" in recipe else "neither"
        raise RecipeError(f"model: a recipe describes a `model`, or a `component` that is fitted alone; this has {has}")
    alone = "component" in recipe
    if alone and recipe.get("objective") is None:
        raise RecipeError("objective: missing; a `component` is fitted alone with an objective")
    if not alone and "objective" in recipe:
        raise RecipeError(
            "objective: is for a `component` that is fitted alone; a `model` trains on its next-token loss"
        )
    if alone and "diagnostics" in recipe:
        raise RecipeError("diagnostics: are of the stacks of a `model`; a `component` that is fitted alone has none")
    if alone and recipe.get("data") is None:
        raise RecipeError("data: missing; a `component` that is fitted alone needs to know its views (data.views)")
    kinds = {"stage": Stage, "data": DenseLabelData if alone else ShardData, "trainer": Trainer}
    kinds |= _TYPED if alone else {"model": VLM, "diagnostics": Diagnostics}
    return {
        key: Section(key, kind, recipe.get(key) or {})
        for key, kind in kinds.items()
        if key in recipe or key in ("data", "trainer")
    }
