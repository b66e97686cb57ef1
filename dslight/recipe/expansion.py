"""How large a recipe becomes: YAML's aliases and ``${...}`` may multiply, so that a page of text asks for terabytes.

Decided here: it is counted before anything is written out. A node that an alias repeats counts as often as it stands
there, and so does what an interpolation names; each is counted once and remembered, so counting takes as long as the
file is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dslight.limits import at_most
from dslight.recipe.errors import RecipeError

_CAP = 1 << 62
_RESOLVER = re.compile(r"\s*([\w.]+):")
_BRACKETS = re.compile(r"[\[\]{}]")
_KEY = re.compile(r"\[([^\[\]]*)\]")
_SHORT = 1000
_FEW = 12
"""Interpolations that cannot make a recipe a hundred times larger, however they are arranged."""


def read(path: Path) -> str:
    """The text of a recipe.

    Raises:
        RecipeError: it is too large to be one.
    """
    size = path.stat().st_size
    at_most("recipe_bytes", size, f"{path}: {size:,} bytes", RecipeError)
    text = path.read_text(encoding="utf-8")
    depth = deepest = 0
    for found in _BRACKETS.finditer(text):  # a parser takes the longer for each the deeper it is
        depth += 1 if found[0] in "[{" else -1
        deepest = max(deepest, depth)
    at_most("recipe_depth", deepest, f"{path}: {deepest:,} brackets within brackets", RecipeError)
    mentions = text.count("${")
    at_most("recipe_references", mentions, f"{path}: {mentions:,} times ${{...}}", RecipeError)
    return text


def check_aliases(text: str, where: str) -> Any:
    """The nodes of a YAML document, in which an aliased one stands once.

    Raises:
        RecipeError: written out, it would have too many values.
        yaml.YAMLError: it is no YAML.
        RecursionError: it is nested too deeply.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = 1  # of one that holds itself, which whoever builds it refuses
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            flat = [one for pair in inner for one in (pair if isinstance(pair, tuple) else (pair,))]
            counts[id(node)] = min(_CAP, 1 + sum(map(count, flat)))
            if counts[id(node)] > _CAP // 2:
                return _CAP
        return counts[id(node)]

    total = count(root) if root is not None else 0
    at_most(
        "recipe_values", total, f"{where}: {_shown(total)} values once its aliases (*) are written out", RecipeError
    )
    return root


def check_expansion(recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe that would be too large once every ``${...}`` is replaced by what it names.

    Raises:
        RecipeError: naming the key that becomes largest.
    """
    if _mentions(recipe) <= _FEW:
        return
    sizes = _Sizes(recipe)
    try:
        values, text = sizes.of("")
    except RecursionError:
        raise RecipeError("${...}: names what names what names ..., too many times to be followed") from None
    worst = max(sizes.followed, key=lambda key: sizes.of(key))
    where = f"{worst}: ${{...}} makes it"
    at_most("recipe_values", values, f"{where} {_shown(values)} values", RecipeError)
    at_most("recipe_text", text, f"{where} {_shown(text)} characters", RecipeError)


def _mentions(node: Any) -> int:
    """How many ``${`` there are."""
    if isinstance(node, Mapping | list):
        return sum(map(_mentions, node.values() if isinstance(node, Mapping) else node))
    return node.count("${") if isinstance(node, str) else 0


class _Sizes:
    """Values and characters of every node, interpolations written out."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = recipe
        self.known: dict[str, tuple[int, int]] = {}
        self.followed: set[str] = set()

    def of(self, key: str) -> tuple[int, int]:
        """Of the node at a dotted key; of none: nothing."""
        if key not in self.known:
            self.known[key] = (0, 0)  # of one that names itself, which OmegaConf refuses
            self.known[key] = self._counted(key)
        return self.known[key]

    def _counted(self, key: str) -> tuple[int, int]:
        node = _at(self.recipe, key)
        if isinstance(node, Mapping | list):
            keys = node if isinstance(node, Mapping) else range(len(node))
            inner = [self.of(f"{key}.{name}" if key else str(name)) for name in keys]
            return _sum([(1, 0), *inner])
        if not isinstance(node, str):
            return 1, 8
        found = list(_references(node))
        if not found:
            return 1, len(node)
        self.followed.add(key)
        return _sum([(1, len(node)), *(self._named(text, key) for text in found)])

    def _named(self, text: str, key: str) -> tuple[int, int]:
        """What the inside of ``${...}`` stands for."""
        inner = [self._named(one, key) for one in _references(text)]
        resolver = _RESOLVER.match(text)
        if resolver:
            given = [part.strip(" '\"") for part in text[resolver.end() :].split(",")]
            variable = os.environ.get(given[0], "") if resolver[1] == "oc.env" else ""
            named = [self.of(part) for part in given if _at(self.recipe, part) is not None]
            return _sum([(1, len(text) + len(variable)), *inner, *named])
        return _sum([self.of(_absolute(self._written_out(text, key), key)), *inner])

    def _written_out(self, text: str, key: str) -> str:
        """A key with the interpolations in it replaced, if they are short texts, as parts of keys are."""
        for one in _references(text):
            target = _at(self.recipe, _absolute(self._written_out(one, key), key))
            for _ in range(100):  # a chain of names
                if not isinstance(target, str) or not target.startswith("${") or not target.endswith("}"):
                    break
                target = _at(self.recipe, _absolute(target[2:-1], key))
            text = text.replace(f"${{{one}}}", str(target)[:_SHORT])
        return text


def _references(text: str) -> Iterator[str]:
    """The insides of the outermost ``${...}``; one that a backslash escapes is counted, too."""
    depth = begin = i = 0
    while i < len(text):
        if text.startswith("${", i):
            depth += 1
            begin = i + 2 if depth == 1 else begin
            i += 2
            continue
        if text[i] == "}" and depth:
            depth -= 1
            if not depth:
                yield text[begin:i]
        i += 1


def _absolute(text: str, key: str) -> str:
    """A key as an interpolation at ``key`` names it: ``.a`` is a sibling, ``..a`` one of its parent."""
    name = _KEY.sub(r".\1", text.strip())
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    base = key.split(".")[:-dots] if dots <= key.count(".") + 1 else []
    return ".".join([*base, name.lstrip(".")])


def _at(recipe: Any, key: str) -> Any:
    node = recipe
    for part in key.split(".") if key else ():
        if isinstance(node, Mapping):
            node = node.get(part, node.get(int(part)) if part.isdecimal() and len(part) < 20 else None)
        elif isinstance(node, list) and part.isdecimal() and len(part) < 20 and int(part) < len(node):
            node = node[int(part)]
        else:
            return None
    return node


def _sum(parts: list[tuple[int, int]]) -> tuple[int, int]:
    return min(_CAP, sum(one for one, _ in parts)), min(_CAP, sum(one for _, one in parts))


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**15 else "more than 10**15"
