"""Scores to compare with that are no runs: given in the ablation file, or read from a JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dslight.files.typed import loaded
from dslight.recipe import report_section
from dslight.report.page import Section, Table
from dslight.report.rows import Unit

Reference = tuple[str, float | None, str]
"""Label, score, where it comes from (or why there is none)."""


def read(entries: Sequence[report_section.Reference]) -> list[Reference]:
    """The entries of ``report.references``.

    Raises:
        FileError: a file is not JSON.
    """
    found: list[Reference] = []
    for entry in entries:
        if entry.file is None or entry.key is None:
            found.append((entry.label, entry.value, "given in the ablation file"))
            continue
        path, node = Path(entry.file), None
        if path.is_file():
            node = loaded(path.read_bytes(), path)
            for part in entry.key.split("."):
                node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, (int, float)) and not isinstance(node, bool):
            found.append((entry.label, float(node), f"{path}: {entry.key}"))
        else:
            why = f"no {entry.key} in {path}" if path.is_file() else f"there is no {path}"
            found.append((entry.label, None, why))
    return found


def section(references: Sequence[Reference], scale: Unit) -> Section:
    """Them with where they come from."""
    lines = [[label, origin, scale(score)] for label, score, origin in references]
    table = Table(["reference", "from", f"score {scale.name}".strip()], lines, names=2)
    return Section("References", [table] if lines else [])
