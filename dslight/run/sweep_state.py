"""What a sweep writes into a run's folder, and reads there: which run it is, and whether it is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dslight.files.atomic import write_atomically
from dslight.files.typed import FileError, read_json_if_there
from dslight.recipe.ablation import Run
from dslight.recipe.compose import recipe_hash


def is_done(run: Run) -> bool:
    """Whether the run's folder holds the result of this very recipe."""
    result = read_json(run.run_dir / "result.json")
    return result is not None and result.get("recipe_hash") == recipe_hash(run.recipe)


def write_about(ablation: str, run: Run) -> None:
    """``run.json``: which arm and which point of the grid a run's folder is, which the caller holds."""
    about = {"ablation": ablation, "arm": run.arm, "index": run.index, "point": run.point}
    write_atomically(run.run_dir / "run.json", json.dumps(about, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file; ``None`` when there is none, or it is being written at this moment."""
    try:
        return read_json_if_there(path, dict[str, Any])
    except FileError:  # whoever trains the run will say so
        return None
