"""A valid document with each of its values replaced in turn, by what a careless program or person may have written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

VALUES = {
    "null": "null",
    "7": "7",
    "-1": "-1",
    "1e400": "1e400",
    "a long text": json.dumps("x" * 10_000),
    "a list": "[]",
    "a mapping": "{}",
    "nested": "[" * 10_000 + "]" * 10_000,
}
"""By name, as JSON writes them; YAML reads them too."""

_HERE = "\u0001here\u0001"


def broken(document: Any, most: int | None = None) -> Iterator[tuple[str, str, str]]:
    """(path of the key, name of the value, text) of each variant; of more than ``most``, a sample."""
    found = [(path, name) for path in paths(document) for name in VALUES]
    if most is not None and len(found) > most:
        found = random.Random(0).sample(found, most)
    for path, name in found:
        text = json.dumps(replaced(document, path, _HERE)).replace(json.dumps(_HERE), VALUES[name])
        yield ".".join(map(str, path)), name, text


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value, inner ones too; the document itself is the empty one."""
    yield at
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from paths(value, (*at, key))


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    items = dict(node) if isinstance(node, dict) else list(node)
    items[path[0]] = replaced(items[path[0]], path[1:], value)
    return items
