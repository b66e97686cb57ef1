"""``docs/encoders.md``: which encoders work, through which class, and what the refusals say, as it was tried; the
names of timm are in ``docs/encoders_timm.md``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

HEAD = """# Encoders

What of timm and transformers can be an encoder here, as `python -m benchmarks.encoders` tried it on the meta device: no
weight is read, and a refusal comes before one is. The command remakes this page when a library moves.

- `TimmEncoder` and `HFVisionEncoder`: the layers take and give one stream, so every tap and DeepStack-V work. What a
  model is, is found out by a pass that computes nothing: the list of its layers, tokens before the patches, the grid.
- `TimmFeatureMaps`: one stage's map of a network with stages; it can be read at `final` only.
- `NativeVisionEncoder` and `NaFlexEncoder`: images of any size, each with its own grid; the tables have the smallest.
"""

ALL = """# Encoders of timm, name by name

What [Encoders](encoders.md) counts by families. `python -m benchmarks.encoders` remakes this page.
"""

_COLUMNS = [
    "| name | | pixels | grid | width | layers | before the patches |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]
_PART = re.compile(r"vision part(?: alone, |: )(\S+)")


def pages(found: Mapping[str, Sequence[Row]], names: Mapping[str, int], versions: Mapping[str, str]) -> dict[str, str]:
    """The two pages, by their files' names.

    Args:
        found: verdicts by library.
        names: how many there are.
        versions: of the libraries.
    """
    made = f"With {', '.join(f'{name} {number}' for name, number in versions.items())}."
    rows = {library: sorted(of, key=lambda row: row["name"]) for library, of in found.items()}
    counts = [f"| {name} | {names[name]} | {len(of)} | {_counted(of)} |" for name, of in rows.items()]
    overview = ["| library | names | tried | |", "| --- | ---: | ---: | --- |", *counts]
    short = [HEAD, made, "", *overview, "", *_transformers(rows["transformers"]), *_families(rows["timm"])]
    full = [ALL, made, "", *_table([row for row in rows["timm"] if "class" in row])]
    return {"encoders.md": "\n".join(short) + "\n", "encoders_timm.md": "\n".join(full) + "\n"}


def _counted(rows: Sequence[Row]) -> str:
    counts = Counter(_kind(row) for row in rows)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def _transformers(rows: Sequence[Row]) -> list[str]:
    """What works; whole models by their vision part; what is refused."""
    verdicts = {row["name"]: row for row in rows}
    parts = {row["name"]: found[1] for row in rows if "class" not in row and (found := _PART.search(_said(row)))}
    lines = ["## transformers", "", "By the model type of a vision encoder.", ""]
    lines += [*_table([row for row in rows if "class" in row]), ""]
    lines += [
        "### Whole models",
        "",
        "A checkpoint folder of such a model is taken for its vision part, where that can be read; a `config`",
        "describes the part alone.",
        "",
        "| vision part | | of |",
        "| --- | --- | --- |",
    ]
    for part in sorted(set(parts.values())):
        whole = [name for name, of in parts.items() if of == part]
        verdict = verdicts.get(part)
        if verdict is None:
            said = _cell(verdicts[whole[0]])
            text = f"refused: {said.partition(f'vision part: {part} ')[2] or said}"
        else:
            text = f"`{verdict['class']}`" if "class" in verdict else f"refused: {_cell(verdict)}"
        lines.append(f"| `{part}` | {text} | {', '.join(f'`{name}`' for name in whole)} |")
    rest = [row for row in rows if "class" not in row and row["name"] not in parts]
    return [*lines, "", *_refused([row for row in rest if row["name"] not in parts.values()])]


def _families(rows: Sequence[Row]) -> list[str]:
    """How many of each family of timm work, and what is refused."""
    families: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((_family(row["name"]), row.get("class", "")), []).append(row)
    lines = ["## timm", "", "By the first word of the name; [every name](encoders_timm.md) is on a page of its own."]
    for kind in sorted({kind for _, kind in families if kind}, key=lambda kind: kind != "TimmEncoder"):
        lines += ["", f"### Through {kind}", ""]
        lines += ["| family | names | for example | pixels | widths |", "| --- | ---: | --- | --- | --- |"]
        for (family, of_kind), of in sorted(families.items()):
            if of_kind == kind:
                sides = _range([max(row["pixels"]) for row in of])
                widths = _range([row["width"] for row in of])
                lines.append(f"| {family} | {len(of)} | `{of[0]['name']}` | {sides} | {widths} |")
    return [*lines, "", *_refused([row for row in rows if "class" not in row])]


def _family(name: str) -> str:
    word = name.split("_")[0]
    return re.sub(r"v?\d+[a-z]*$", "", word) or word


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _table(rows: Sequence[Row]) -> list[str]:
    lines = list(_COLUMNS)
    for row in rows:
        size, grid = (" x ".join(map(str, row[key])) for key in ("pixels", "grid"))
        cells = (
            f"`{row['name']}`",
            f"`{row['class']}`",
            size,
            grid,
            row["width"],
            row["layers"] or "",
            row["prefix"] or "",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _refused(rows: Sequence[Row]) -> list[str]:
    said = [f"| `{row['name']}` | {_cell(row)} |" for row in rows]
    return ["### Refused", "", "| name | |", "| --- | --- |", *said, ""]


def _kind(row: Row) -> str:
    return f"through `{row['class']}`" if "class" in row else "in a traceback" if "crashed" in row else "refused"


def _said(row: Row) -> str:
    return str(row.get("crashed") or row["said"])


def _cell(row: Row) -> str:
    """On one line, without what every line says."""
    text = _said(row).replace("|", "\\|")
    text = re.sub(r"^(name|config\.model_type): ", "", text).replace(f"{row['name']} ", "", 1)
    return text.replace(", so there is nothing to tap or to stack on", "")
