"""What may be deleted: files that this program wrote, known by their names in a folder that bears its mark.

A folder is a run's if its ``environment.json`` (or a sweep's ``run.json``) is one of ours; a ``recipe.yaml`` alone says
nothing, since people write those. Of a run's folder only the files go that :data:`OWN` lists; what else lies there
stays and is named. Nothing is deleted through a symbolic link, or beside one: what it points to may be anybody's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dslight.recipe.errors import RecipeError

_SHARDS = r"\.metadata|meta\.pt|complete\.json|__\d+_\d+\.distcp"
OWN = re.compile(
    "|".join(
        (
            r"(recipe\.yaml|metrics\.csv|(optimizer|log)\.txt)",
            r"(environment|progress|result|scores|run|diagnostics)\.json",
            r"logs/attempt-\d+/(metrics\.csv|hparams\.yaml|checkpoints/[^/]+\.ckpt)",
            rf"checkpoints/(step-\d+\.(ckpt|incomplete)|\.step-\d+\.partial)(/({_SHARDS}))?",
            r"weights/[^/]+\.safetensors",
            r"questions/(limited/)?[^/]+\.jsonl",
            r"submissions/[^/]+/.+",
            r"judged/[^/]+\.jsonl?",
            r"diagnostics/(questions\.jsonl|[^/]+-\d+\.png)",
            r"([^/]+/)*\.[^/]+\.([0-9a-f]{8}\.tmp|\d+\.partial)",
        )
    )
)
"""The files of a run, relative to its folder, and what a killed process leaves of them."""

LOCK = ".lock"
"""Held by whoever trains in a run's folder, or deletes what is in it."""

MARK = ".being-written-by-dslight"
"""In a folder that is not whole yet."""

_SHOWN = 5


def is_run(folder: Path) -> bool:
    """Whether this program made the folder."""
    environment, about = (_read(folder / name) for name in ("environment.json", "run.json"))
    versions = environment.get("versions")
    return (isinstance(versions, dict) and "dslight" in versions) or {"ablation", "arm", "index"} <= about.keys()


def check_run(folder: Path) -> list[Path]:
    """The files of a run's folder that may go; nothing is deleted.

    Raises:
        RecipeError: the folder is no run's, or a symbolic link; or one lies in it.
    """
    if folder.is_symlink():
        raise RecipeError(f"{folder}: is a symbolic link, through which nothing is deleted; name the folder itself")
    if not is_run(folder) and any(path.name != LOCK for path in folder.iterdir()):
        raise RecipeError(
            f"{folder}: is not the folder of a run (it has no environment.json or run.json of dslight), so nothing in "
            f"it is deleted; delete it yourself, or choose another run_dir"
        )
    files = []
    for path in _files(folder):
        if path.is_symlink():
            raise RecipeError(f"{path}: is a symbolic link, beside which nothing is deleted; remove the link first")
        if OWN.fullmatch(path.relative_to(folder).as_posix()):
            files.append(path)
    return files


def refuse_links(folder: Path) -> None:
    """Raise for a run's folder, or one in it, that is a symbolic link: old checkpoints would be deleted through it.

    Raises:
        RecipeError: naming the link.
    """
    for path in (folder, *(folder / name for name in ("checkpoints", "logs", "weights", "questions", "diagnostics"))):
        if path.is_symlink():
            raise RecipeError(
                f"run_dir: {path} is a symbolic link, through which nothing is written or deleted; name the folder "
                f"that it leads to as run_dir"
            )


def delete_run(folder: Path) -> None:
    """Delete the files of a run, and say what else lies there and stays.

    Raises:
        RecipeError: as :func:`check_run`, before anything is deleted.
    """
    for path in check_run(folder):
        path.unlink(missing_ok=True)
    for root, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(root):
            os.rmdir(root)
    stays = [str(path.relative_to(folder)) for path in _files(folder)] if folder.exists() else []
    if stays := [name for name in stays if name != LOCK]:
        more = f" and {len(stays) - _SHOWN} more" if len(stays) > _SHOWN else ""
        print(f"{folder}: kept, as dslight did not write it: {', '.join(sorted(stays)[:_SHOWN])}{more}")


def delete_checkpoint(path: Path) -> None:
    """Delete one checkpoint of a run, a file or a sharded folder; what is not there is deleted already.

    Raises:
        RecipeError: it is a symbolic link, or holds what no checkpoint has; nothing is deleted then.
    """
    if path.is_symlink():
        raise RecipeError(f"{path}: is a symbolic link, through which nothing is deleted; remove the link first")
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    entries = list(path.iterdir())
    for entry in entries:
        known = re.fullmatch(rf"{_SHARDS}|\.[^/]+\.(partial|tmp)", entry.name)
        if not known or entry.is_symlink() or not entry.is_file():
            raise RecipeError(f"{entry}: is no file of a checkpoint, so {path} is not deleted; move it away first")
    for entry in entries:
        entry.unlink()
    path.rmdir()


def begin_folder(out: Path) -> Path:
    """A new folder beside ``out``, which will take its name when it is whole; what a killed process left of one goes.

    Raises:
        RecipeError: what lies there was not made here.
    """
    partial = out.with_name(f".{out.name}.partial")
    if partial.is_symlink() or partial.exists():
        if partial.is_symlink() or not (partial / MARK).is_file():
            raise RecipeError(f"OUT: {partial} is in the way, and dslight did not write it; move it away")
        give_up_folder(partial)
    partial.mkdir(parents=True)
    (partial / MARK).touch()
    return partial


def give_up_folder(partial: Path) -> None:
    """Delete what was written of a folder, as far as it can be."""
    shutil.rmtree(partial, ignore_errors=True)  # which does not follow links


def end_folder(partial: Path, out: Path) -> None:
    """Give a whole folder its name; one that is empty gives way."""
    (partial / MARK).unlink()
    if out.exists():
        out.rmdir()
    partial.rename(out)


def _files(folder: Path) -> Iterator[Path]:
    """All files below, and all links, which are not followed."""
    for root, folders, names in os.walk(folder):
        yield from (Path(root, name) for name in names)
        yield from (Path(root, name) for name in folders if os.path.islink(os.path.join(root, name)))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
