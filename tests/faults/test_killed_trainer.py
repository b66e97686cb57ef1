"""A trainer is killed, or asked to go, and run again: every optimizer step sees the records it would have seen."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from itertools import cycle, product
from pathlib import Path

import pytest
from training import EPOCHS, GLOBAL, PER_EPOCH, STEPS, epochs_of, launch, newest, per_step

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> dict[int, Counter]:
    """An uninterrupted run on one rank."""
    out = tmp_path_factory.mktemp("whole")
    assert launch(data=data, out=out) == [0]
    found = per_step(out)
    assert sorted(found) == list(range(STEPS))
    assert all(sum(keys.values()) == GLOBAL for keys in found.values())
    return found


def killed(out: Path, **settings) -> Path:
    """A run that ends by SIGKILL."""
    assert -signal.SIGKILL in launch(out=out, **settings)
    return out


def resumed(out: Path, after: Path, **settings) -> Path:
    """A run that continues ``after``'s newest checkpoint to the end; anew, where there is none."""
    codes = launch(out=out, resume=newest(after), **settings)
    assert set(codes) == {0}, codes
    return out


SHAPES = list(product((1, 2, 4), (0, 1, 4)))
"""Ranks, and data workers of each."""


@pytest.mark.parametrize(
    ("kills", "shapes"),
    [(2, [(1, 0)]), pytest.param(20, SHAPES, marks=[SLOW, pytest.mark.timeout(1800)])],
    ids=["2", "20"],
)
@pytest.mark.fault(11)
def test_killed_at_a_random_batch_the_same_world_resumes_with_the_same_steps(
    kills, shapes, data, whole, tries, tmp_path
):
    rng = random.Random(kills)
    for i, (world, workers) in zip(range(kills), cycle(shapes), strict=False):
        micro, every = rng.choice([size for size in (1, 2, 4, 8) if size * world <= GLOBAL]), rng.choice([1, 2, 3])
        where, at = rng.choice(["train", "backward"]), rng.randrange(STEPS * GLOBAL // (micro * world))
        shape = {"world": world, "workers": workers, "micro": micro, "every": every}
        with tries.one():
            first = killed(tmp_path / f"{i}a", data=data, kill=(where, at), **shape)
            second = resumed(tmp_path / f"{i}b", first, data=data, **shape)
            assert per_step(first, second) == whole, (shape, where, at)


@pytest.mark.parametrize(
    ("runs", "kills"),
    [
        (((1, 8, 0), (2, 2, 1)), (4,)),
        pytest.param(((2, 4, 0), (1, 4, 1)), (7,), marks=SLOW),
        pytest.param(((4, 2, 0), (2, 4, 1), (4, 1, 0)), (3, 4), marks=SLOW),
        pytest.param(((1, 2, 4), (1, 8, 0)), (21,), marks=SLOW),
        pytest.param(((1, 8, 0), (1, 4, 4)), (11,), marks=SLOW),
        pytest.param(((2, 1, 1), (1, 8, 4), (2, 4, 0)), (17, 3), marks=SLOW),
    ],
    ids=lambda value: "->".join("x".join(map(str, run)) for run in value) if isinstance(value[0], tuple) else "",
)
@pytest.mark.fault(12)
def test_killed_it_resumes_on_other_ranks_with_other_workers_and_micro_batches(runs, kills, data, whole, tmp_path):
    """Each run is (ranks, micro-batch, workers); all but the last are killed."""
    outs: list[Path] = []
    for i, (world, micro, workers) in enumerate(runs):
        out, more = tmp_path / str(i), {"data": data, "world": world, "micro": micro, "workers": workers}
        last = i == len(runs) - 1
        resume = newest(outs[-1]) if outs else None
        if last:
            assert set(launch(out=out, resume=resume, **more)) == {0}
        else:
            killed(out, resume=resume, kill=("train", kills[i]), **more)
        outs.append(out)
    assert per_step(*outs) == whole


@pytest.mark.parametrize(
    ("kill", "begins"),
    [
        (("validation", 1), 2 * PER_EPOCH),  # in the validation at the end of the second epoch
        (("epoch end", 0), PER_EPOCH),
        pytest.param(("train", 1), 1, marks=SLOW),  # after the first step
        pytest.param(("train", 0), 0, marks=SLOW),  # before it
        pytest.param(("train", PER_EPOCH - 1), PER_EPOCH - 1, marks=SLOW),
        pytest.param(("train", PER_EPOCH), PER_EPOCH, marks=SLOW),  # the sized loader has just been stopped
        pytest.param(("train", STEPS - 1), STEPS - 1, marks=SLOW),  # before the last step
        pytest.param(("validation", 0), PER_EPOCH, marks=SLOW),
        pytest.param(("epoch end", 1), 2 * PER_EPOCH, marks=SLOW),
        pytest.param(("validation", 2), STEPS, marks=SLOW),  # nothing is left
        pytest.param(("train end", 0), STEPS, marks=SLOW),
    ],
    ids=lambda value: f"{value[0]} {value[1]}" if isinstance(value, tuple) else "",
)
@pytest.mark.fault(13)
def test_no_epoch_is_empty_or_repeated_after_a_kill_at_a_boundary(kill, begins, data, whole, tmp_path):
    first = killed(tmp_path / "killed", data=data, kill=kill)
    second = resumed(tmp_path / "resumed", first, data=data)
    assert sorted(per_step(second)) == list(range(begins, STEPS))
    assert per_step(first, second) == whole


@pytest.mark.parametrize("save", ["step", "epoch end", "validation"])
@pytest.mark.fault(13)
def test_a_finished_run_goes_on_for_another_epoch(save, data, whole, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert launch(data=data, out=first, save=save, epochs=EPOCHS - 1) == [0]
    assert resumed(second, first, data=data)
    assert sorted(per_step(second)) == list(range(STEPS - PER_EPOCH, STEPS))
    assert per_step(first, second) == whole


@pytest.mark.parametrize("kill", [None, pytest.param(("train", PER_EPOCH + 2), marks=SLOW)], ids=["", "killed"])
@pytest.mark.fault(13)
def test_loaders_that_are_made_anew_every_epoch_show_what_one_loader_shows(kill, data, whole, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    launch(data=data, out=first, kill=kill, reload=1)
    if kill:
        resumed(second, first, data=data, reload=1)
    assert per_step(first, second) == whole


@pytest.fixture(scope="module")
def longer(data, tmp_path_factory) -> dict[int, Counter]:
    """An uninterrupted run of five epochs."""
    out = tmp_path_factory.mktemp("longer")
    assert launch(data=data, out=out, epochs=5) == [0]
    return per_step(out)


@pytest.mark.parametrize(
    ("save", "limit", "kills"),
    [
        ("step", "max_epochs", (3, 4)),
        ("step", "max_epochs", (5, 5, 5, 5)),  # each time exactly at the end of an epoch
        ("step", "max_epochs", (5, 2, 1, 2, 4)),
        ("epoch end", "max_epochs", (6, 6, 7)),
        pytest.param("validation", "max_epochs", (6, 6, 7), marks=SLOW),
        pytest.param("step", "max_epochs", (1, 1, 1, 1), marks=SLOW),
        pytest.param("step", "max_epochs", (1,) * 24, marks=SLOW),
        pytest.param("step", "max_steps", (5, 5, 5, 5), marks=SLOW),
        pytest.param("step", "max_steps", (5, 2, 1, 2, 4), marks=SLOW),
        pytest.param("step", "max_steps", (1,) * 24, marks=SLOW),
        pytest.param("epoch end", "max_steps", (6, 6, 7), marks=SLOW),
        pytest.param("validation", "max_steps", (6, 6, 7), marks=SLOW),
    ],
    ids=str,
)
@pytest.mark.fault(14)
def test_a_resumed_run_is_killed_and_resumed_again_and_again(save, limit, kills, data, longer, tries, tmp_path):
    """Killed before these batches, counted from where each run begins."""
    outs: list[Path] = []
    more = {"epochs": 5} if limit == "max_epochs" else {"steps": 5 * PER_EPOCH}
    for i, at in enumerate([*kills, None]):
        kill = None if at is None else ("train", at)
        resume = newest(outs[-1]) if outs else None
        outs.append(tmp_path / str(i))
        with tries.one():
            codes = launch(data=data, out=outs[-1], save=save, kill=kill, resume=resume, **more)
            assert codes == [0 if kill is None else -signal.SIGKILL]
            assert epochs_of(*outs) == {step: step // PER_EPOCH for step in epochs_of(*outs)}
    assert per_step(*outs) == longer


@pytest.mark.parametrize(
    ("where", "at", "micro"),
    [
        ("train", 7, 8),  # the batch is in hand, and no gradient of it is kept
        ("backward", 4 * PER_EPOCH - 1, 2),  # of the last batch of an epoch
        pytest.param("backward", 0, 8, marks=SLOW),
        pytest.param("backward", PER_EPOCH - 1, 8, marks=SLOW),
        pytest.param("train", 4 * PER_EPOCH, 2, marks=SLOW),
        *(pytest.param("train", 28 + i, 2, marks=SLOW) for i in range(4)),
        *(pytest.param("backward", 28 + i, 2, marks=SLOW) for i in range(4)),
    ],
)
@pytest.mark.fault(15)
def test_what_an_exception_saves_inside_a_step_repeats_that_step(where, at, micro, data, whole, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert launch(data=data, out=first, save="exception", micro=micro, kill=(where, at)) == [1]
    resumed(second, first, data=data, micro=micro)
    assert min(per_step(second)) == at * micro // GLOBAL
    assert per_step(first, second) == whole


# --- asked to go
# -----------------------------------------------------------------------------------------------------------

SHOTS = [
    ("train 4 0 SIGTERM", 1),  # at the first of four micro-batches
    pytest.param("train 4 1 SIGTERM", 2, marks=SLOW),  # one of two ranks alone is told
    pytest.param("validate 6 0 SIGTERM", 1, marks=SLOW),
    pytest.param("train 0 0 SIGTERM", 1, marks=SLOW),
]


@pytest.fixture(scope="module")
def witnessed(recipe, tmp_path_factory):
    """The steps of ``dslight fit`` uninterrupted, from the plan, and a way to run it."""
    from dslight.data.plan import PlanSource, TrainPlan
    from dslight.data.shards import ShardReader
    from dslight.recipe.compose import compose

    values = compose(recipe, [])
    reader = ShardReader(values["data"]["train"][0])
    plan = TrainPlan(
        (PlanSource(reader.manifest.digest, len(reader)),), seed=values["data"].get("seed", 0), global_batch=8
    )
    rows = [*plan.epoch(0), *plan.epoch(1)]
    return {step: Counter(reader.index.key(row) for row in rows[step * 8 : step * 8 + 8]) for step in range(9)}


@pytest.mark.parametrize(("shot", "ranks"), SHOTS, ids=lambda value: str(value))
@pytest.mark.fault(15)
def test_a_run_that_gets_sigterm_saves_after_the_step_and_loses_no_batch(
    shot, ranks, recipe, witnessed, dslight, tmp_path
):
    call = ["fit", str(recipe), f"run_dir={tmp_path / 'run'}"]
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    ended = dslight(*call, ranks=ranks, WITNESS=str(first), FAULT=shot)
    assert all(code not in (0, None, -signal.SIGTERM) for code in ended.codes), ended.outputs
    saved = int(shot.split()[1]) + 1  # in a validation: after the step that follows it
    assert f"step-{saved:08d}.ckpt" in {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    done = dslight(*call, ranks=ranks, WITNESS=str(second))
    assert set(done.codes) == {0}, done.outputs
    assert min(per_step(second)) == saved
    assert per_step(first, second) == witnessed
    assert json.loads((tmp_path / "run" / "result.json").read_text())
