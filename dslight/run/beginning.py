"""Where a run begins that does not begin anew: at its own newest checkpoint, further along (``--extend``), or at a
checkpoint of another run (``--branch``).

Decided here:

* *Extend.* The same recipe with more steps. A schedule continues where its learning rates, up to the checkpoint, are
  the same for the old number of steps and the new one: constant ones and ``inverse_sqrt`` anywhere,
  ``warmup_stable_decay`` from a checkpoint before its decay, cosine and linear nowhere. The warm-up stays as long as it
  was. Whatever cannot continue is refused; nothing is planned anew silently.
* *Branch.* Another recipe, in a folder of its own, from the weights, the states and the step of a run. What does not
  fit begins anew and is named (:mod:`dslight.train.branch`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dslight.errors import UserError
from dslight.files.atomic import write_atomically
from dslight.files.typed import read_json
from dslight.recipe.compose import compose, differences, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.folder import RunFolder

_LENGTH = ("trainer.max_steps", "trainer.max_epochs", "stage.warmup_steps", "stage.warmup_ratio")
_AT = re.compile(r"(.+)@(\d+)")


@dataclass(frozen=True)
class Beginning:
    """How a run begins.

    Attributes:
        recipe: as it is kept.
        checkpoint: to begin from; ``None``: the newest of the run's own, if there is one.
        of: the run that it branches from.
        open: makes the folder ready; the first rank calls it once all ranks have read what is there.
    """

    recipe: Mapping[str, Any]
    checkpoint: Path | None = None
    of: str | None = None
    open: Callable[[], None] | None = None


def beginning(
    place: RunFolder, recipe: Mapping[str, Any], resume: bool = True, extend: bool = False, branch: str | None = None
) -> Beginning | None:
    """How the run of ``recipe`` at ``place`` begins; ``None``: anew, or where it was interrupted.

    Args:
        place: the run's folder.
        recipe: as composed.
        resume: continue what is there.
        extend: for more steps.
        branch: ``RUN`` or ``RUN@STEP``.

    Raises:
        RecipeError: as :func:`extended` and :func:`branched`; for several of these at once.
    """
    if (not resume) + extend + (branch is not None) > 1:
        raise RecipeError("--fresh, --extend, --branch: name one of them")
    if extend:
        return extended(place, recipe)
    return branched(place, recipe, branch) if resume else None


# --- extend


def extended(place: RunFolder, recipe: Mapping[str, Any]) -> Beginning:
    """The run at ``place``, to go on to the ``trainer.max_steps`` of ``recipe``.

    Raises:
        RecipeError: there is no such run, more than its length differs, or its schedule cannot continue.
    """
    if not place.recipe_file.exists():
        raise RecipeError(f"--extend: {place.path} holds no run; train it first, without --extend")
    old = compose(place.recipe_file)
    if others := [line for line in differences(old, recipe) if line.partition(": ")[0] not in _LENGTH]:
        raise RecipeError(
            f"--extend: {place.path} holds a run of another recipe; only its length may differ:\n  "
            + "\n  ".join(others[:12])
            + "\nto go on with other settings, branch from it into a folder of its own: --branch RUN[@STEP]"
        )
    steps = _length(recipe)
    if steps is None:
        raise RecipeError("--extend: trainer.max_steps is missing; name how many steps the run is to have in all")
    if _length(old) == steps:  # it was extended before, and interrupted
        return Beginning(old)
    before = _length(old) or _trained(place)
    if before is None:
        raise RecipeError(f"--extend: {place.path} has not ended, and its length is in epochs; let it end first")
    if steps <= before:
        raise RecipeError(f"trainer.max_steps: {steps}; --extend needs more than the {before} that the run has")
    stage = dict(recipe.get("stage") or {})
    warmup = stage.get("warmup_steps")
    stage["warmup_steps"] = warmup = round(stage.get("warmup_ratio", 0.03) * before) if warmup is None else warmup
    made = {**recipe, "stage": stage}
    checkpoint = _continued(place, stage, warmup, before, steps)

    def change() -> None:
        place.result_file.unlink(missing_ok=True)
        place.set_aside(int(checkpoint.stem.partition("-")[2]), "of the end that the run had before it was extended")
        write_atomically(place.recipe_file, to_yaml(made))

    return Beginning(made, checkpoint, open=change)


def _continued(place: RunFolder, stage: Mapping[str, Any], warmup: int, before: int, steps: int) -> Path:
    """The newest checkpoint at which the schedule of ``before`` steps is that of ``steps``."""
    from dslight.train.schedule import Schedule

    schedule = Schedule(stage.get("schedule", "cosine"))
    try:
        same = schedule.same_until((warmup, before), (warmup, steps))
    except ValueError as error:
        raise RecipeError(f"stage.{error}") from None
    saved = place.complete_checkpoints()
    found = [path for step, path in saved if step <= same]
    if found:
        return found[-1]
    if not saved:
        raise RecipeError(f"--extend: {place.checkpoints} has no complete checkpoint to go on from")
    raise RecipeError(
        f"--extend: {schedule.name} has other learning rates over {steps} steps than over {before} from step "
        f"{same + 1} on, and the first checkpoint is of step {saved[0][0]}; what continues are constant, "
        f"constant_with_warmup and inverse_sqrt, and warmup_stable_decay from a checkpoint before its decay. Or "
        f"branch, with a schedule of its own: --branch {place.path}"
    )


def _length(recipe: Mapping[str, Any]) -> int | None:
    """The optimizer steps that a recipe names, where nothing else ends the training before."""
    trainer = recipe.get("trainer") or {}
    steps = trainer.get("max_steps")
    ends = trainer.get("max_epochs") in (None, -1)
    return steps if ends and isinstance(steps, int) and steps > 0 else None


def _trained(place: RunFolder) -> int | None:
    result = place.result()
    return None if result is None else int(result["steps"])


# --- branch


def branched(place: RunFolder, recipe: Mapping[str, Any], source: str | None) -> Beginning | None:
    """The run at ``place``, to begin from ``source`` (``RUN`` or ``RUN@STEP``), or from what it began from in an
    earlier attempt; ``None``: it begins anew, or has a checkpoint of its own.

    Raises:
        RecipeError: there is no such checkpoint; the run at ``place`` began elsewhere.
    """
    known = _branch_of(place)
    if source is None and known is None:
        return None
    if source is not None:
        run, step = _named(source)
        checkpoint = _checkpoint(run, step)
        wanted = {"run": str(run.resolve()), "step": int(checkpoint.stem.partition("-")[2])}
        if run.resolve() == place.path.resolve():
            raise RecipeError(f"--branch: {run} is the run's own folder; name another run_dir, or use --extend")
        if place.recipe_file.exists() and known is None and place.has_trained():
            raise RecipeError(
                f"--branch: {place.path} holds a run that began anew; choose another run_dir, or start it with --fresh"
            )
        if known is not None and (known["run"] != wanted["run"] or step not in (None, known["step"])):
            raise RecipeError(
                f"--branch: {place.path} began from {known['run']}@{known['step']}; choose another run_dir"
            )
        known = known or wanted
    assert known is not None
    if place.latest_checkpoint() is not None or place.result_file.exists():
        return None
    place.refuse_another(recipe)
    checkpoint = _checkpoint(Path(known["run"]), known["step"])
    return Beginning(recipe, checkpoint, of=f"{known['run']}@{known['step']}", open=lambda: _note(place, known))


def _note(place: RunFolder, known: Mapping[str, Any]) -> None:
    file = place.path / "environment.json"
    about = read_json(file, dict[str, Any])
    write_atomically(file, json.dumps({**about, "branch": dict(known)}, indent=2))


def _branch_of(place: RunFolder) -> dict[str, Any] | None:
    with suppress(OSError, UserError):
        found = read_json(place.path / "environment.json", dict[str, Any]).get("branch")
        if isinstance(found, dict) and isinstance(found.get("run"), str) and isinstance(found.get("step"), int):
            return found
    return None


def _named(source: str) -> tuple[Path, int | None]:
    match = None if Path(source).exists() else _AT.fullmatch(source)
    return (Path(match[1]), int(match[2])) if match else (Path(source), None)


def _checkpoint(run: Path, step: int | None) -> Path:
    saved = dict(RunFolder(run).complete_checkpoints())
    if not saved:
        raise RecipeError(f"--branch: {run} is no run, or has no complete checkpoint")
    if step is not None and step not in saved:
        raise RecipeError(
            f"--branch: {run} has no complete checkpoint of step {step}; there are those of "
            f"{', '.join(map(str, saved))} (checkpoint_every, checkpoint_keep)"
        )
    found = saved[max(saved) if step is None else step]
    if found.is_dir():
        raise RecipeError(f"--branch: {found} is sharded, and branches begin from whole checkpoints")
    return found
