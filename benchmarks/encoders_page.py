"""``docs/encoders.md``: which encoders work, through which class, and what the refusals say, as it was tried."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Encoders

What of timm and transformers can be an encoder here, as `python -m benchmarks.encoders` tried it on the meta device: no
weight is read, and a refusal comes before one is. The command remakes this page when a library moves.

- `TimmEncoder` and `HFVisionEncoder`: the layers take and give one stream, so every tap and DeepStack-V work. What a
  model is, is found out by a pass that computes nothing: the list of its layers, tokens before the patches, the grid.
- `TimmFeatureMaps`: one stage's map of a network with stages; it can be read at `final` only.
- `NativeVisionEncoder` and `NaFlexEncoder`: images of any size, each with its own grid; the table has the smallest.
"""


def page(
    found: Mapping[str, Sequence[Mapping[str, Any]]], names: Mapping[str, int], versions: Mapping[str, str]
) -> str:
    """The page.

    Args:
        found: verdicts by library.
        names: how many there are.
        versions: of the libraries.
    """
    lines = [HEAD, f"With {', '.join(f'{name} {number}' for name, number in versions.items())}.", ""]
    for library, rows in found.items():
        counts = Counter(_kind(row) for row in rows)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        lines += [f"## {library}", "", f"{names[library]} names, {len(rows)} tried: {said}.", ""]
        lines += [
            "| name | | pixels | grid | width | layers | before the patches |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in sorted((row for row in rows if "class" in row), key=lambda row: row["name"]):
            size, grid = (" x ".join(map(str, row[key])) for key in ("pixels", "grid"))
            layers = row["layers"] or ""
            cells = (f"`{row['name']}`", row["class"], size, grid, row["width"], layers, row["prefix"] or "")
            lines.append(f"| {' | '.join(map(str, cells))} |")
        lines += ["", f"### Refused of {library}", "", "| name | |", "| --- | --- |"]
        for row in sorted((row for row in rows if "class" not in row), key=lambda row: row["name"]):
            lines.append(f"| `{row['name']}` | {_cell(row)} |")
        lines.append("")
    return "\n".join(lines)


def _kind(row: Mapping[str, Any]) -> str:
    return f"through {row['class']}" if "class" in row else "in a traceback" if "crashed" in row else "refused"


def _cell(row: Mapping[str, Any]) -> str:
    """On one line, without what every line says."""
    text = str(row.get("crashed") or row["said"]).replace("|", "\\|")
    text = re.sub(r"^(name|config\.model_type): ", "", text).replace(f"{row['name']} ", "", 1)
    return text.replace(", so there is nothing to tap or to stack on", "")
