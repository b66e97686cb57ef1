"""A run's folder: everything that one training leaves behind, and what a second call finds there.

    recipe.yaml        as resolved; the run can be repeated from it
    environment.json   versions, git commit, command, the id that loggers know the run by, and what it branched from
    optimizer.txt      its groups: part, parameters, learning rate, weight decay
    logs/attempt-N/    Lightning's CSV of each attempt; an interrupted run has several
    metrics.csv        the attempts joined, without the steps that were done twice
    progress.json      how far the run is, for whoever watches it
    checkpoints/       step-NNNNNNNN.ckpt: the newest ones, the last step's always
    weights/           PART.safetensors of every part that trained
    questions/         SOURCE.jsonl: every validation question with its answer and its score
    submissions/       what official servers read, of the benchmarks that have one
    judged/            what a language model said about the answers, and what it said before (``dslight judge``)
    diagnostics.json   what was measured where the recipe has ``diagnostics``; questions and pictures in diagnostics/
    result.json        written last: the run is finished

Nothing else is a run's; a sweep puts its ``run.json`` and ``log.txt`` beside these. While somebody trains there is a
``.lock`` too (:meth:`RunFolder.held`). What may be deleted of it is said in :mod:`dslight.run.deletion`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4
from zipfile import is_zipfile

from dslight.checkpoints import complete
from dslight.files import locks
from dslight.files.atomic import remove_leftovers, write_atomically
from dslight.files.sheets import cell
from dslight.files.typed import FileError, read_json, read_json_if_there, understood
from dslight.recipe.compose import compose, differences, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.deletion import LOCK, delete_checkpoint, delete_run, is_run, refuse_links
from dslight.run.processes import is_first

PACKAGES = (
    "dslight",
    "torch",
    "lightning",
    "transformers",
    "timm",
    "torchmetrics",
    "omegaconf",
    "jsonargparse",
)

_ID = re.compile(r"[\w-]{1,64}")
_CHECKPOINT = re.compile(r"step-(\d+)\.ckpt")


class HeldError(RecipeError):
    """Somebody trains in the folder; ``holder`` says who."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            f"run_dir: {path} is being trained by {holder}; wait until it has ended, or choose another run_dir"
        )
        self.holder = holder


@dataclass(frozen=True)
class _Known:
    """What is read of ``environment.json``."""

    id: str


class RunFolder:
    """The folder at ``path``; nothing is written until :meth:`open` is called."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "weights"
        self.result_file = self.path / "result.json"
        self._id: str | None = None

    def id(self, fresh: bool = False) -> str:
        """What loggers know the run by in all of its attempts: as ``environment.json`` says, a new one where it says
        nothing or the run begins anew.
        """
        if self._id is None and not fresh:
            with suppress(OSError, FileError):
                found = read_json(self.path / "environment.json", _Known).id
                self._id = found if _ID.fullmatch(found) else None  # loggers make a name or an address of it
        self._id = self._id or uuid4().hex[:8]
        return self._id

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only one who trains here; of a job's processes the first one is, for all of them.

        Raises:
            HeldError: naming the process that trains here already.
            RecipeError: the folder cannot be made or written to.
        """
        if not is_first():
            yield
            return
        with ExitStack() as stack:
            try:
                made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
                self.path.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_empty, made)  # what was refused leaves nothing behind
                stack.enter_context(locks.locked(self.path / LOCK, again=True))
            except locks.HeldError as error:
                raise HeldError(self.path, error.holder) from error
            except OSError as error:
                raise RecipeError(f"run_dir: {self.path} cannot be written to ({error.strerror})") from error
            yield

    def clear(self) -> None:
        """Delete the files of a run, but the lock of who does so; what else is here stays and is named.

        Raises:
            RecipeError: the folder is no run's, or a symbolic link lies in it; nothing is deleted then.
        """
        if self.path.is_symlink() or self.path.exists():
            delete_run(self.path)

    def refuse_another(self, recipe: Mapping[str, Any]) -> None:
        """Raise when the folder holds a run of another recipe.

        Raises:
            RecipeError: naming the keys that differ.
        """
        if not self.recipe_file.exists():
            return
        changed = differences(compose(self.recipe_file), recipe)
        if changed and (self.has_trained() or not is_run(self.path)):
            raise RecipeError(
                f"run_dir: {self.path} holds a run of another recipe:\n  " + "\n  ".join(changed[:12]) + "\n"
                "choose another run_dir, or start it anew with --fresh (which deletes what is there)"
            )

    def has_trained(self) -> bool:
        """Whether a step was done here, of which something is left. A run that died before it protects nothing."""
        left = (self.result_file, self.path / "progress.json", self.path / "metrics.csv")
        says = any(file.exists() and file.read_bytes().strip() for file in left)  # a log without a row is of no step
        return says or bool(self._saved()) or any(self.weights.glob("*"))

    def open(self, recipe: Mapping[str, Any], fresh: bool = False) -> None:
        """Begin the run of ``recipe`` here, or find it begun. ``fresh`` deletes the files that a run has left here.

        Raises:
            RecipeError: it is a symbolic link, or one of its folders is; for ``fresh`` also where it is no run's.
        """
        refuse_links(self.path)
        if fresh and self.recipe_file.exists():
            self.clear()
        self._remove_leftovers()
        if not self.recipe_file.exists() or (not self.has_trained() and differences(compose(self.recipe_file), recipe)):
            self.path.mkdir(parents=True, exist_ok=True)
            about = {**environment(), "id": self.id(fresh)}
            write_atomically(self.path / "environment.json", json.dumps(about, indent=2))
            write_atomically(self.recipe_file, to_yaml(recipe))

    def result(self) -> dict[str, Any] | None:
        """The finished run's result, or ``None``.

        Raises:
            FileError: the file holds something else.
        """
        return read_json_if_there(self.result_file, dict[str, Any])

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return next((path for _, path in reversed(self._saved()) if is_complete(path)), None)

    def complete_checkpoints(self) -> list[tuple[int, Path]]:
        """Steps and complete checkpoints, the newest last."""
        return [(step, path) for step, path in self._saved() if is_complete(path)]

    def partial(self, step: int) -> Path:
        """Where the checkpoint of a step is written to until it is whole."""
        return self.checkpoints / f".step-{step:08d}.partial"

    def discard(self, step: int) -> None:
        """Remove what was written of a checkpoint, as far as it can be."""
        with suppress(OSError, RecipeError):
            delete_checkpoint(self.partial(step))

    def finish(self, step: int) -> None:
        """Give a whole checkpoint its name; an older one of the same step gives way."""
        path, partial = self.checkpoints / f"step-{step:08d}.ckpt", self.partial(step)
        if partial.is_dir():
            complete.seal(partial)
        delete_checkpoint(path)
        partial.rename(path)

    def keep(self, count: int) -> None:
        """Delete all but the ``count`` newest checkpoints, and what was cut off while it was written."""
        for path in [path for _, path in self._saved()[:-count]] + list(self.checkpoints.glob(".step-*.partial")):
            delete_checkpoint(path)

    def set_aside(self, after: int, why: str = "damaged, or cut off while it was written") -> None:
        """Rename the checkpoints behind step ``after``, from which the run goes on, to ``*.incomplete``, and say so and
        ``why``.
        """
        for step, path in self._saved():
            if step > after:
                print(f"{path}: {why}; kept as *.incomplete, and the run goes on from step {after}")
                delete_checkpoint(path.with_suffix(".incomplete"))
                path.rename(path.with_suffix(".incomplete"))
        for path in self.checkpoints.glob(".step-*.partial"):
            delete_checkpoint(path)

    def _saved(self) -> list[tuple[int, Path]]:
        """Steps and checkpoints, the newest last."""
        found = ((_CHECKPOINT.fullmatch(path.name), path) for path in self.checkpoints.glob("*.ckpt"))
        return sorted((int(match[1]), path) for match, path in found if match)

    def next_attempt(self) -> int:
        """The number of this attempt, from 0."""
        return len(list((self.path / "logs").glob("attempt-*")))

    def _remove_leftovers(self) -> None:
        """Remove what killed processes have left, which may be what has filled the disk."""
        for folder in (self.path, *(path for path in self.path.glob("*") if path.is_dir())):
            remove_leftovers(folder)
        for path in self.checkpoints.glob(".step-*.partial"):
            delete_checkpoint(path)

    def join_logs(self) -> None:
        """Write ``metrics.csv`` out of all attempts. A later attempt wins from the step on at which it trained.

        Raises:
            FileError: naming a log that is none.
        """
        rows: list[dict[str, str]] = []
        found = [
            (re.fullmatch(r"attempt-([0-9]+)", path.parent.name), path) for path in self.path.glob("logs/*/metrics.csv")
        ]
        for _, file in sorted((int(match[1]), path) for match, path in found if match):
            with understood(file), file.open(newline="") as text:
                new = [row for row in csv.DictReader(text) if _whole(row)]
            trained = [int(row["step"]) for row in new if any(row[key] for key in row if key.startswith("train/"))]
            if trained:  # an attempt that had only to be validated repeats no step
                rows = [row for row in rows if int(row["step"]) < min(trained)]
            rows += new
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
        for row in ({name: name for name in columns}, *rows):
            writer.writerow({name: cell(value) for name, value in row.items()})
        write_atomically(self.path / "metrics.csv", text.getvalue())


def _whole(row: Mapping[Any, Any]) -> bool:
    """Whether a row of a log has a step and all of its cells; the last one of a killed process may not."""
    return bool(re.fullmatch("[0-9]{1,18}", str(row.get("step")))) and None not in row and None not in row.values()


def is_complete(checkpoint: Path) -> bool:
    """Whether all of a checkpoint is there: a file that torch wrote to its end, or a folder with all that it lists (see
    :mod:`dslight.checkpoints.complete`). Nothing of it is unpickled.
    """
    return is_zipfile(checkpoint) if checkpoint.is_file() else complete.is_complete(checkpoint)


def _remove_empty(folders: Iterable[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def run_dir(recipe: Mapping[str, Any]) -> Path:
    """Where the run of ``recipe`` lives: its ``run_dir``, else ``runs/<name>``."""
    if recipe.get("run_dir"):
        return Path(recipe["run_dir"])
    if not recipe.get("name"):
        raise RecipeError("name: missing; it names the run's folder (runs/<name>), unless there is a run_dir")
    return Path("runs") / recipe["name"]


def environment() -> dict[str, Any]:
    """Versions, git commit and command line."""
    return {"versions": versions(), "git_commit": git_commit(), "python": sys.version.split()[0], "command": sys.argv}


def versions() -> dict[str, str]:
    """Of the packages that a result may depend on."""
    return {name: metadata.version(name) for name in PACKAGES}


def git_commit() -> str | None:
    """Of the folder that the program was started in, ``-dirty`` when it has changes; ``None`` outside of git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
