"""What a plan did not look at, because it is not here: weights, data, tokenizers and checkpoints that a recipe names.

A plan needs none of them, so that a 13B recipe can be read on a laptop; but its numbers say nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dslight.data.shards import MANIFEST, is_remote


def unseen(recipe: Mapping[str, Any]) -> list[str]:
    """A line for each file or folder that a composed recipe names and that is not on this machine."""
    return [f"not looked at: {key} {why}" for key, why in _missing(recipe)]


def _missing(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, path in (recipe.get("weights") or {}).items():
        if isinstance(path, str) and not Path(path).exists():
            yield f"weights.{name}", f"({path} is not here)"
    for section in ("model", "component"):
        yield from _pretrained(section, recipe.get(section))
    data = recipe.get("data") or {}
    for key, sources in (("train", data.get("train")), ("val", data.get("val"))):
        numbered = enumerate(sources) if isinstance(sources, list) else (sources or {}).items()
        for name, source in numbered:
            root = source.get("root") if isinstance(source, Mapping) else source
            if isinstance(root, str) and not is_remote(root) and not (Path(root) / MANIFEST).is_file():
                yield f"data.{key}.{name}", f"(no shards at {root})"


def _pretrained(path: str, node: Any) -> Iterator[tuple[str, str]]:
    """Checkpoints and tokenizers of the parts; a hub's name may be in its cache, and is not asked for."""
    if isinstance(node, list):
        for i, one in enumerate(node):
            yield from _pretrained(f"{path}.{i}", one)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        at = f"{path}.{key}"
        if key in ("pretrained", "tokenizer") and isinstance(value, str) and not Path(value).exists():
            what = "counted as its config says" if key == "pretrained" and node.get("config") else "not on this disk"
            yield at, f"({value}: {what})"
        else:
            yield from _pretrained(at, value)
