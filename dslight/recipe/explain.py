"""The first thing that is wrong with a section of a recipe, as ``key.path: what, the value, what is possible``.

jsonargparse decides what is accepted, but its messages lose the key's path inside lists and mappings, and it passes
over a misspelt key whose value is an empty mapping. So the section is walked along the same signatures: names and
classes are looked up here, and every leaf is put to jsonargparse alone. What the walk cannot judge (``**kwargs``,
functions, class names without their module) it leaves to jsonargparse.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from dslight.recipe.classes import NoClassError, makes, named
from dslight.texts import closest
from dslight.written import importable

_LONGEST_LIST = 15
"""Names that a message lists; of more (Lightning's Trainer has 37) only the closest one helps."""
_WORDS = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
    dict: "a mapping",
}


def arguments_fault(path: str, owner: Callable[..., Any], values: Mapping[str, Any], given: int = 0) -> str | None:
    """What is wrong with ``values`` as arguments of ``owner``, a class; ``None`` when nothing is found.

    Args:
        path: the key of ``values`` in the recipe.
        owner: the class.
        values: argument name -> what the recipe says.
        given: how many of the first arguments the program fills in itself.
    """
    taken = list(inspect.signature(owner).parameters.items())
    if given and _lacks_room(taken, values, given):
        return (
            f"{path}: {owner.__name__} is called with {given} arguments of the library's{_as_in_base(owner, given)}, "
            f"so its constructor has to take them before its own"
        )
    parameters = dict(taken[given:])
    named = {name: p for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    takes = taken_by(owner) if len(named) < len(parameters) else list(named)
    for name in values:
        if takes is not None and name not in takes:
            return f"{path}.{name}: there is no such argument{closest(name, takes)}{listing('it takes', takes)}"
    for name, parameter in named.items():
        if parameter.default is parameter.empty and values.get(name) is None:
            return f"{path}.{name}: missing; {getattr(owner, '__name__', owner)} needs it"
    types = _types(owner)
    if len(named) < len(parameters):  # handed on by **kwargs
        above = reversed(getattr(owner, "__mro__", ()))
        types = {name: kind for one in above for name, kind in _types(one).items()} | types
    for name, value in values.items():
        if name in types and (problem := fault(f"{path}.{name}", types[name], value)):
            default = named[name].default if name in named and value is None else None
            return problem if default is None else f"{problem}; its default is {default!r}"
    return None


@cache
def taken_by(owner: Any) -> list[str] | None:
    """The arguments of a class, those too that it hands on by ``**kwargs``; ``None`` where that cannot be told."""
    try:
        found = ArgumentParser(exit_on_error=False).add_class_arguments(owner, "x")
    except Exception:  # no types, or a source that cannot be read
        return None
    return [name.removeprefix("x.") for name in found]


def fault(path: str, kind: Any, value: Any) -> str | None:
    """What is wrong with ``value`` where ``kind``, a type, is expected; ``None`` when nothing is found."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:  # which is a class to Python 3.11
        return None
    if origin in (Union, UnionType):
        return _union_fault(path, kind, value)
    if origin is dict and isinstance(value, Mapping):
        return next(filter(None, (fault(f"{path}.{key}", inner[1], item) for key, item in value.items())), None)
    if origin in (list, collections.abc.Iterable) and isinstance(value, list):
        return next(filter(None, (fault(f"{path}.{i}", inner[0], item) for i, item in enumerate(value))), None)
    if origin is collections.abc.Callable and isinstance(inner[0], list) and isinstance(inner[-1], type):
        if isinstance(value, str):
            return _class_fault(path, inner[-1], {"class_path": value}, len(inner[0]), at=path)
        if isinstance(value, Mapping):
            return _class_fault(path, inner[-1], value, len(inner[0]))
    if isinstance(kind, type) and isinstance(value, Mapping) and kind not in _WORDS:
        if dataclasses.is_dataclass(kind) and ("class_path" not in value or kind.__module__.startswith("dslight.data")):
            return arguments_fault(path, kind, value) or _own_fault(kind, value)
        return _class_fault(path, kind, value)
    return (
        None
        if _accepted(kind, value)
        else f"{path}: expected {words(kind)}, got {_said(value)}{_closest_choice(kind, value)}"
    )


def _said(value: Any) -> str:
    return "null" if value is None else repr(value)


def _own_fault(kind: Callable[..., Any], values: Mapping[str, Any]) -> str | None:
    """What a dataclass itself says against its values, each of which may be as it is."""
    try:
        kind(**values)
    except ValueError as error:
        return str(error)
    except Exception:  # of values that jsonargparse converts first
        return None
    return None


def words(kind: Any) -> str:
    """A type, for people."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        *first, last = (words(one) for one in inner)
        return f"{', '.join(first)} or {last}"
    if origin is Literal:
        return ", ".join(map(str, inner[:-1])) + " or " * (len(inner) > 1) + str(inner[-1])
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)} values"
    if origin in (list, tuple, collections.abc.Iterable):
        return "a list"
    if origin is dict:
        return "a mapping"
    if origin is collections.abc.Callable and inner[-1] is not Any and isinstance(inner[-1], type):
        return words(inner[-1])
    if origin is collections.abc.Callable:
        return "a function"
    if dataclasses.is_dataclass(kind):
        return f"a mapping with {', '.join(field.name for field in dataclasses.fields(kind))}"
    if isinstance(kind, type):
        return _WORDS.get(kind) or f"the class_path and init_args of a {kind.__name__}"
    return str(kind)


def _union_fault(path: str, kind: Any, value: Any) -> str | None:
    """The fault of the member that ``value`` was meant for: the one in which the fault lies deepest."""
    members = [one for one in get_args(kind) if isinstance(value, (Mapping, list)) and _nests(one, value)]
    if not members:
        return (
            None
            if _accepted(kind, value)
            else f"{path}: expected {words(kind)}, got {_said(value)}{_closest_choice(kind, value)}"
        )
    faults = [fault(path, one, value) for one in members]
    return None if None in faults else max(filter(None, faults), key=lambda text: text.split(": ")[0].count("."))


def _nests(kind: Any, value: Any) -> bool:
    origin = get_origin(kind)
    if isinstance(value, Mapping):
        return origin in (dict, collections.abc.Callable) or (
            isinstance(kind, type) and kind not in (str, int, float, bool, NoneType)
        )
    return origin in (list, tuple, collections.abc.Iterable)


def _class_fault(path: str, base: type, value: Mapping[str, Any], given: int = 0, at: str = "") -> str | None:
    for key in value:
        if key not in ("class_path", "init_args", "dict_kwargs"):
            hint = closest(key, ("class_path", "init_args")) or "; put the arguments of a class under init_args"
            return f"{path}.{key}: beside class_path there is only init_args{hint}"
    class_path = value.get("class_path")
    at = at or f"{path}.class_path"
    if not isinstance(class_path, str):
        return f"{at}: missing; name a {base.__name__}{listing('there are', _concrete(base))}"
    if "." not in class_path:
        return None
    try:
        found = named(class_path)
    except NoClassError as error:
        return f"{at}: {error}"
    if makes(found, base) and (given or _accepted(base, value)):
        return None
    if not isinstance(found, type) or not issubclass(found, base):
        return f"{at}: {class_path} is no {base.__name__}{listing('there are', _concrete(base))}"
    if inspect.isabstract(found):
        return f"{at}: {class_path} is abstract{listing('there are', _concrete(found))}"
    arguments = value.get("init_args") or {}
    if not isinstance(arguments, Mapping):
        return f"{path}.init_args: expected a mapping, got {arguments!r}"
    return arguments_fault(f"{path}.init_args", found, arguments, given)


def _lacks_room(taken: Sequence[tuple[str, inspect.Parameter]], values: Mapping[str, Any], given: int) -> bool:
    """Whether a constructor has no place for the first arguments: too few, or its own stand there (with defaults)."""
    if any(p.kind is p.VAR_POSITIONAL for _, p in taken):
        return False
    return len(taken) < given or any(name in values and p.default is not p.empty for name, p in taken[:given])


def _as_in_base(owner: Callable[..., Any], given: int) -> str:
    bases = [base for base in getattr(owner, "__mro__", ())[1:] if base.__module__.startswith("dslight.")]
    return f" first ({', '.join(list(inspect.signature(bases[0]).parameters)[:given])})" if bases else " first"


def _concrete(base: type) -> list[str]:
    """The paths of the subclasses that this library brings, of a base of its own."""
    found, queue = [], [base] if base.__module__.startswith("dslight.") else []
    while queue:
        one = queue.pop()
        queue += type.__subclasses__(one)
        if not inspect.isabstract(one) and one is not base and one.__module__.startswith("dslight."):
            found.append(importable(one) or one.__name__)
    return sorted(found)


def _types(owner: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(owner.__init__ if isinstance(owner, type) else owner)
    except Exception:  # a stranger's annotations may name what only a type checker imports
        return {}


def _accepted(kind: Any, value: Any) -> bool:
    """Whether jsonargparse takes ``value`` for ``kind``."""
    try:
        parser = _parser(kind)
    except Exception:  # no type that a parser can hold is left to the whole section's parser
        return True
    try:
        parser.parse_object({"value": deepcopy(value)})
    except Exception:
        return False
    return value is not None or kind in (Any, NoneType) or NoneType in get_args(kind)


@cache
def _parser(kind: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def _closest_choice(kind: Any, value: Any) -> str:
    choices = [one for part in (kind, *get_args(kind)) if get_origin(part) is Literal for one in get_args(part)]
    return closest(str(value), map(str, choices))


def listing(before: str, names: Iterable[str]) -> str:
    """``; it takes a, b``, where that is not too long to help."""
    names = list(names)
    return f"; {before} {', '.join(names)}" if 0 < len(names) <= _LONGEST_LIST else ""
