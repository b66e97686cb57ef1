"""What a recipe may say: jsonargparse checks every section against the signatures of the classes that it builds.

So there is no second description of an option to keep in step: a new argument of a class is a new key of the recipe, and a
stranger's class is checked by its own signature. jsonargparse's messages are put into one form here, ``key.path: what``, with the
closest known name for a misspelt one.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer

from dslight.components import Component, Objective
from dslight.data.datamodule import ShardData
from dslight.data.dense import DenseLabelData
from dslight.recipe.errors import RecipeError
from dslight.train.optim import Stage
from dslight.vlm import VLM

KEYS = {
    "name": str,
    "seed": int,
    "run_dir": str,
    "model": dict,
    "component": dict,
    "objective": dict,
    "weights": dict,
    "stage": dict,
    "data": dict,
    "trainer": dict,
    "checkpoint_every": int,
}
"""The top level of a recipe. ``model`` describes a VLM, ``component`` a part that is fitted alone with an ``objective``; ``weights``
names a safetensors file per part; ``checkpoint_every`` counts optimizer steps."""


class Section:
    """One section of a recipe: checked when made, built later.

    Args:
        key: its name in the recipe.
        add: tells a parser what the section may hold, under the name ``key``.
        values: what the recipe says.

    Raises:
        RecipeError: naming the key's path.
    """

    def __init__(self, key: str, add: Callable[[ArgumentParser], Any], values: Mapping[str, Any]) -> None:
        self.key, self.values = key, values
        self.parser = ArgumentParser(exit_on_error=False)
        add(self.parser)
        try:
            self.config: Namespace = self.parser.parse_object({key: deepcopy(dict(values))})  # it writes into what it is given
        except Exception as error:  # whatever a stranger's module raises while it is imported belongs to this key too
            raise RecipeError(explain(key, str(error), values)) from error

    def build(self) -> Any:
        """Make the section's objects. The trainer's section gives the Trainer's arguments, to be completed by the run."""
        make = getattr(self.parser, "instantiate", None) or self.parser.instantiate_classes
        try:
            return make(self.config)[self.key]
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise RecipeError(f"{self._blame(error)}.{error}") from error

    def _blame(self, error: BaseException) -> str:
        """The key path of the innermost class whose ``__init__`` the error came out of."""
        path, frame = self.key, error.__traceback__
        while frame is not None:
            owner = frame.tb_frame.f_locals.get("self")
            if frame.tb_frame.f_code.co_name == "__init__" and owner is not None:
                path = next((at for at, name in self._classes() if name == type(owner).__name__), path)
            frame = frame.tb_next
        return path

    def _classes(self) -> list[tuple[str, str]]:
        """(key path of its arguments, class name) of every class that the section names."""
        found = []

        def visit(node: Any, path: str) -> None:
            if isinstance(node, Mapping):
                if isinstance(node.get("class_path"), str):
                    found.append((f"{path}.init_args", node["class_path"].rsplit(".", 1)[-1]))
                for key, value in node.items():
                    visit(value, f"{path}.{key}")
            elif isinstance(node, list):
                for index, value in enumerate(node):
                    visit(value, f"{path}.{index}")

        visit(self.values, self.key)
        return found


def sections(recipe: Mapping[str, Any]) -> dict[str, Section]:
    """Check a composed recipe, section by section, without building anything.

    Raises:
        RecipeError: for the first key that is wrong.
    """
    for key, value in recipe.items():
        if key not in KEYS:
            raise RecipeError(f"{key}: a recipe has no such key{_closest(key, KEYS)}; it has {', '.join(KEYS)}")
        if value is not None and not isinstance(value, KEYS[key]):
            raise RecipeError(f"{key}: expected {_words(KEYS[key])}, got {value!r}")
    if ("model" in recipe) == ("component" in recipe):
        raise RecipeError("model: a recipe describes either a `model` or a `component` that is fitted alone; this has " + (
            "both" if "model" in recipe else "neither"))  # fmt: skip
    alone = "component" in recipe
    made: dict[str, Callable[[ArgumentParser], Any]] = {
        "stage": lambda parser: parser.add_class_arguments(Stage, "stage"),
        "data": lambda parser: parser.add_class_arguments(DenseLabelData if alone else ShardData, "data"),
        "trainer": lambda parser: parser.add_class_arguments(Trainer, "trainer", instantiate=False),
    }
    if alone:
        made["component"] = lambda parser: parser.add_subclass_arguments(Component, "component", required=True)
        made["objective"] = lambda parser: parser.add_argument("--objective", type=Callable[[int], Objective])
        if "objective" not in recipe:
            raise RecipeError("objective: missing; a `component` is fitted alone with an objective")
    else:
        made["model"] = lambda parser: parser.add_class_arguments(VLM, "model")
    return {key: Section(key, add, recipe.get(key) or {}) for key, add in made.items() if key in recipe or key == "trainer"}


def _words(kind: type) -> str:
    return {str: "a string", int: "a whole number", dict: "a mapping"}[kind]


# --- messages ----------------------------------------------------------------------------------------------------------------

_NESTED = re.compile(r"Parser key \"(?P<key>[^\"]+)\":")
_UNKNOWN = re.compile(r"(?:[Oo]ption|does not accept option) '(?P<name>[^']+)'(?: is not accepted)?")
_REQUIRED = re.compile(r"(?:the following arguments are required|Key is required but not included[^\"]*):? \"?(?P<names>[^\n\"]+)")


def explain(section: str, message: str, values: Any) -> str:
    """jsonargparse's message as ``key.path: what is wrong``."""
    path = _path(section, [match["key"] for match in _NESTED.finditer(message)], values)
    last = message.strip().splitlines()[-1].strip() if message.strip() else "not accepted"
    if unknown := _UNKNOWN.search(message):
        name = unknown["name"].removeprefix(f"{section}.")
        node = _node(values, path.split(".")[1:])
        if isinstance(node, Mapping) and "class_path" in node and "init_args" in node:
            path, accepted = f"{path}.init_args", _arguments(node["class_path"])
        else:
            accepted = _accepted(section, path)
        listing = f"; it takes {', '.join(accepted)}" if accepted else ""
        return f"{path}.{name}: there is no such argument{_closest(name, accepted)}{listing}"
    if required := _REQUIRED.search(message):
        first = required["names"].split(",")[0].strip()
        return f"{first if first.startswith(section) else f'{path}.{first}'}: missing"
    return f"{path}: {last}"


def _path(section: str, keys: Iterable[str], values: Any) -> str:
    """Join jsonargparse's nested keys; below a class lie its ``init_args``."""
    path = section
    for key in keys:
        key = key.removeprefix(f"{section}.") if path == section else key
        if key in (section, ""):
            continue
        node = _node(values, path.split(".")[1:])
        if isinstance(node, Mapping) and "class_path" in node and key.split(".")[0] not in node:
            path += ".init_args"
        path += f".{key}"
    return path


def _node(values: Any, keys: Iterable[str]) -> Any:
    for key in keys:
        if isinstance(values, Mapping) and key in values:
            values = values[key]
        elif isinstance(values, list) and key.isdigit() and int(key) < len(values):
            values = values[int(key)]
        else:
            return None
    return values


def _arguments(class_path: str) -> list[str]:
    from jsonargparse._util import import_object

    try:
        return [name for name in inspect.signature(import_object(class_path)).parameters if name != "self"]
    except Exception:  # only a courtesy: the message stands without the list
        return []


def _accepted(section: str, path: str) -> list[str]:
    kinds = {"model": VLM, "stage": Stage, "trainer": Trainer, "data": ShardData}
    if path == section and section in kinds and section != "trainer":
        return list(inspect.signature(kinds[section]).parameters)
    return []


def _closest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
