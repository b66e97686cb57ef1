"""Scores to compare with that are no runs: given in the ablation file, or read from a JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dslight.recipe.errors import RecipeError
from dslight.report.page import Table
from dslight.report.table import Unit

Reference = tuple[str, float | None, str]
"""Label, score, where it comes from (or why there is none)."""


def read(entries: Sequence[Mapping[str, Any]]) -> list[Reference]:
    """The entries of ``report.references``.

    Raises:
        RecipeError: one without a label, or without a value and a place to find it.
    """
    found: list[Reference] = []
    for entry in entries:
        if "label" not in entry or not ("value" in entry or {"file", "key"} <= set(entry)):
            raise RecipeError(
                f"report.references: {dict(entry)!r} must have a label and a value, or a label, a file and a key"
            )
        if "value" in entry:
            found.append((entry["label"], float(entry["value"]), "given in the ablation file"))
            continue
        path, node = Path(entry["file"]), None
        if path.is_file():
            node = json.loads(path.read_text(encoding="utf-8"))
            for part in str(entry["key"]).split("."):
                node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, (int, float)):
            found.append((entry["label"], float(node), f"{path}: {entry['key']}"))
        else:
            found.append(
                (entry["label"], None, f"no {entry['key']} in {path}" if path.is_file() else f"there is no {path}")
            )
    return found


def table(references: Sequence[Reference], scale: Unit) -> Table | None:
    """Them with where they come from; ``None`` for none."""
    if not references:
        return None
    return Table(
        ["reference", "from", f"score {scale.name}".strip()],
        [[label, origin, scale(score)] for label, score, origin in references],
        names=2,
    )
