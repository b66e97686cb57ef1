"""Class paths: what they name, found out with as little of it as possible.

Importing a module runs it, so a class path is code, and whoever names one is trusted. But a slip is not: a module is
not imported to find out that it has no such name, and what turns out to be no class is not called.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

from dslight.recipe.forms import HOMES
from dslight.texts import closest


class NoClassError(Exception):
    """What a class path names is not there."""


def _absent(module_path: str, name: str, names: Iterable[str]) -> NoClassError:
    hint = closest(name, names)
    if not hint and module_path in {*HOMES.values(), "dslight", "dslight.metrics"}:
        hint = f"; a class of your own is named with its package: my_package.{name}"
    return NoClassError(f"{module_path} has no {name}{hint}")


def named(class_path: str) -> Any:
    """The object at ``package.module.Name``.

    Raises:
        NoClassError: there is no such module, or it has no such name.
    """
    module_path, _, name = class_path.rpartition(".")
    if module_path not in sys.modules:
        look(class_path)
    try:
        module = import_module(module_path)
    except Exception as error:  # whatever a stranger's module raises belongs to this key
        raise NoClassError(f"cannot import {class_path}, {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        raise _absent(module_path, name, vars(module))
    return found


def makes(found: Any, base: type) -> bool:
    """Whether ``found`` is a function that says of itself that it returns a ``base``."""
    if not inspect.isfunction(found):
        return False
    try:
        returned = get_type_hints(found).get("return")
    except Exception:  # annotations may name what only a type checker imports
        return False
    return isinstance(returned, type) and issubclass(returned, base)


def look(class_path: str) -> None:
    """See whether the source of a module has such a name, as far as that can be told without running it.

    Raises:
        NoClassError: it has not.
    """
    module_path, _, name = class_path.rpartition(".")
    spec = spec_of(module_path)
    if spec is None:
        raise NoClassError(f"cannot import {class_path}, ModuleNotFoundError: No module named {module_path!r}")
    if spec.origin is None or not spec.origin.endswith(".py"):
        return
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):  # importing it says what is wrong
        return
    names = set(_bound(tree.body))
    if name not in names and not names & {"*", "__getattr__"}:
        raise _absent(module_path, name, sorted(names))


def spec_of(module_path: str) -> ModuleSpec | None:
    """Where a module lies; no package around it is imported for that."""
    top, *inner = module_path.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    path = top
    for word in inner:
        if spec is None:
            return None
        path = f"{path}.{word}"
        known = sys.modules.get(path)
        if known is not None and known.__spec__ is not None:
            spec = known.__spec__
        else:
            spec = PathFinder.find_spec(path, spec.submodule_search_locations)
    return spec


def _bound(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind outside of functions and classes; ``*`` for those that another module brings."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.stmt):
                    yield from _bound([child])
                elif isinstance(child, ast.ExceptHandler | ast.match_case):
                    yield from _bound(child.body)
                else:
                    yield from (one.id for one in ast.walk(child) if isinstance(one, ast.Name))
