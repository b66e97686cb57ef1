"""What the page of ``dslight watch`` shows of runs: how far they are, how long they will take, and their curves.

Only files that runs write anyway are read, and none is written, so that a sweep on this machine or on a shared disk can
be watched while it runs.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dslight.files.typed import FileError, read_json_if_there
from dslight.recipe.errors import RecipeError
from dslight.texts import printable

POINTS = 300
"""Of a curve that is shown, at most."""
SILENT = 180.0
"""Seconds after which a run that writes nothing is said to stand still."""
DEPTH = 4
"""Folders below the one that is named in which runs are looked for."""


def folders_of(paths: Sequence[Path]) -> Callable[[], list[tuple[str, Path]]]:
    """Names and folders of the runs below ``paths``, looked for anew each time: a sweep makes them one by one.

    Args:
        paths: runs, folders of runs, or ablation files.

    Raises:
        RecipeError: a path is not there, or an ablation is none.
    """
    from dslight.recipe.ablation import expand

    planned: list[Path] = []
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            planned += [run.run_dir for run in expand(path).runs]
        elif not path.is_dir():
            raise RecipeError(f"RUNS: there is no folder {path}")

    def find() -> list[tuple[str, Path]]:
        found = list(planned)
        for path in paths:
            if path.is_dir():
                found += sorted(_runs_in(path, DEPTH))
        return list(zip(_names(found), found, strict=True))

    return find


def watched(name: str, folder: Path) -> dict[str, Any]:
    """A run, for the page: its state, step, seconds to go and curves; nothing where it has not begun."""
    progress = _json(folder / "progress.json")
    result = _json(folder / "result.json")
    curves = _curves(folder)
    step, steps = _number(progress, "step"), _number(progress, "max_steps")
    seconds, loss = _number(progress, "seconds"), _number(progress, "loss")
    if step is not None and loss is not None:
        curves.setdefault("train/loss", {}).setdefault(int(step), loss)
    if losses := curves.get("train/loss"):
        loss = losses[max(losses)]
    state, left = "waiting", None
    if result:
        state, step = "finished", _number(result, "steps") or step
        steps = step
    elif progress:
        silent = time.time() - (folder / "progress.json").stat().st_mtime > SILENT
        state = "silent" if silent else "training"
        if step and steps and seconds:
            left = seconds / step * max(steps - step, 0)
    elif folder.is_dir():
        state = "starting"
    scores = result.get("scores") if result else None
    return {
        "name": printable(name), "state": state, "step": step, "steps": steps, "left": left, "loss": loss,
        "scores": {printable(key): value for key, value in (scores or {}).items() if _finite(value)}
        if isinstance(scores, dict)
        else {},
        "curves": {printable(key): _thinned(sorted(points.items())) for key, points in curves.items()},
    }  # fmt: skip


def _runs_in(folder: Path, depth: int) -> list[Path]:
    if (folder / "recipe.yaml").is_file() and not folder.is_symlink():
        return [folder]
    if depth == 0:
        return []
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    return [run for path in inside for run in _runs_in(path, depth - 1)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Their paths without what all of them begin with."""
    parts = [folder.parts for folder in folders]
    shared = 0
    while len(parts) > 1 and all(len(each) > shared + 1 for each in parts) and len({p[shared] for p in parts}) == 1:
        shared += 1
    return [
        "/".join(each[shared:]) if len(parts) > 1 else folder.name for each, folder in zip(parts, folders, strict=True)
    ]


def _curves(folder: Path) -> dict[str, dict[int, float]]:
    """What was logged: key -> step -> value. A later attempt wins from the step on at which it began."""
    found: dict[str, dict[int, float]] = {}
    attempts = sorted(folder.glob("logs/attempt-*/metrics.csv"), key=lambda file: (len(file.parent.name), file))
    for file in attempts:
        rows = list(_rows(file))
        first = min((step for step, row in rows if row.get("train/loss")), default=None)
        if first is not None:
            kept = {key: {at: one for at, one in points.items() if at < first} for key, points in found.items()}
            found = {key: points for key, points in kept.items() if points}
        for step, row in rows:
            for key, text in row.items():
                if key.startswith(("train/", "val/")) and (value := _float(text)) is not None:
                    found.setdefault(key, {})[step] = value
    return found


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with file.open(newline="", errors="replace") as text:
            rows = [row for row in csv.DictReader(text) if None not in row]
    except (OSError, csv.Error):
        return []
    return [(int(step), row) for row in rows if (step := str(row.get("step"))).isdecimal() and len(step) < 19]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most :data:`POINTS` of them, the last one included."""
    every = math.ceil(len(points) / POINTS)
    return points if every < 2 else [*points[:-1:every], points[-1]]


def _json(file: Path) -> dict[str, Any]:
    try:
        return read_json_if_there(file, dict[str, Any]) or {}
    except (FileError, OSError):  # it is being written
        return {}


def _number(of: dict[str, Any], key: str) -> float | None:
    value = of.get(key)
    return value if _finite(value) else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
