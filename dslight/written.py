"""Objects written down: the constructor call that made a part, as a recipe has it (``class_path``, ``init_args``).

So a model that was composed in Python leaves the same ``recipe.yaml`` as one that was composed in YAML. What no recipe
can name (a class of a notebook, a lambda) is written as ``{made_in_python: NAME}``: whoever reads it knows what is
missing, and two calls can still be told apart.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

UNWRITTEN = "made_in_python"
"""The key of what a recipe cannot name."""


class Written:
    """Remembers how it was made. The last base of a class, so that signatures are still those of ``__init__``."""

    _made: Mapping[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Note the arguments as they are now, before anything is made of them."""
        made = super().__new__(cls)
        object.__setattr__(made, "_made", _call(cls, args, kwargs))
        return made

    def made_of(self, arguments: Mapping[str, Any]) -> None:
        """Note the arguments as a recipe said them, in place of what its parser made of them."""
        object.__setattr__(self, "_made", {**self._made, "init_args": written(arguments)})


def written(value: Any) -> Any:
    """``value`` as a recipe says it: plain containers, numbers and texts.

    Example:
        >>> from functools import partial
        >>> from textwrap import TextWrapper
        >>> written([("a", 1), partial(TextWrapper, width=9)])
        [['a', 1], {'class_path': 'textwrap.TextWrapper', 'init_args': {'width': 9}}]
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): written(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [written(one) for one in value]
    if isinstance(value, Written):
        return deepcopy(dict(value._made))
    if isinstance(value, partial):
        named = value.func if isinstance(value.func, type) and not value.args else None
        return _unnamed(value.func) if named is None else _call(named, (), value.keywords)
    if isinstance(value, type):
        return _call(value, (), {})
    if dataclasses.is_dataclass(value):
        fields = {field.name: (getattr(value, field.name), field.default) for field in dataclasses.fields(value)}
        return {name: written(one) for name, (one, default) in fields.items() if one is not default and one != default}
    if inspect.isfunction(value) and (path := importable(value)):
        return path
    if getattr(value, "shape", None) == ():  # a number of numpy or torch
        return value.item()
    return _unnamed(value)


def written_behind(value: Any, given: int) -> Any:
    """``value`` without its first ``given`` arguments, which the library gives itself."""
    made = written(value)
    first = list(inspect.signature(type(value)).parameters)[:given]
    arguments = {name: one for name, one in made.pop("init_args", {}).items() if name not in first}
    return {**made, "init_args": arguments} if arguments else made


def importable(named: Any) -> str | None:
    """The shortest path by which others import a class or a function, ``None`` where they cannot. Of this library's,
    the room that recipes name.
    """
    packages = str(named.__module__).split(".")
    if packages[0] == "__main__" or "<locals>" in named.__qualname__:
        return None
    for length in range(1 + (packages[0] == "dslight"), len(packages) + 1):
        home = ".".join(packages[:length])
        try:
            found = getattr(import_module(home), named.__name__, None)
        except ImportError:  # it was run, not imported
            return None
        if found is named:
            return f"{home}.{named.__name__}"
    return None


def unwritten(node: Any, at: str = "") -> dict[str, str]:
    """Where a recipe says ``made_in_python`` -> what it was.

    Example:
        >>> unwritten({"model": {"stacking": {"made_in_python": "Mine"}}})
        {'model.stacking': 'Mine'}
    """
    if isinstance(node, Mapping):
        if UNWRITTEN in node:
            return {at: str(node[UNWRITTEN])}
        items: Any = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return {}
    return {
        path: what for key, one in items for path, what in unwritten(one, f"{at}.{key}" if at else str(key)).items()
    }


def _unnamed(value: Any) -> dict[str, Any]:
    return {UNWRITTEN: getattr(value, "__qualname__", type(value).__qualname__)}


def _call(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a class; its arguments by name."""
    try:
        given = inspect.signature(cls).bind_partial(*args, **kwargs)
    except (TypeError, ValueError):  # the constructor says what is wrong
        return _unnamed(cls)
    named: dict[str, Any] = {}
    for name, value in given.arguments.items():
        kind = given.signature.parameters[name].kind
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return _unnamed(cls)
    arguments = {"init_args": {name: written(value) for name, value in named.items()}} if named else {}
    path = importable(cls)
    return {**_unnamed(cls), **arguments} if path is None else {"class_path": path, **arguments}
