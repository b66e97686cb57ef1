"""Two of the same in one folder: the second one says so and stops, or does what the first one leaves to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import resolve_name

import pytest
from said import messages

from data_prep.llava import main as llava
from dslight.cli import main
from dslight.data.shards import ShardError, ShardWriter
from dslight.recipe.ablation import expand
from dslight.recipe.compose import compose, to_yaml
from dslight.run import fit as fit_module
from dslight.run.folder import HeldError, RunFolder
from dslight.run.sweep import sweep
from dslight.run.sweep_worker import DONE, _train

pytestmark = pytest.mark.promise("two at once in one folder do not write the same files")

HOLD = """
import sys
from pathlib import Path
from dslight.files.locks import locked
Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
with locked(Path(sys.argv[1]) / ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held():
    """``held(folder)``: another process that is at work there."""
    started = []

    def start(folder: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(folder)]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


# --- fit


@pytest.mark.parametrize("fresh", [[], ["--fresh"]], ids=["", "fresh"])
def test_a_second_fit_says_who_trains_there_and_stops_before_a_model_is_built(
    fresh, held, recipe, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(fit_module, "build", lambda *_, **__: pytest.fail("a model was built"))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(to_yaml(compose(recipe, [f"run_dir={folder}"])))
    other = held(folder)
    assert main(["fit", str(recipe), f"run_dir={folder}", *fresh]) == 1
    (said,) = messages(capsys.readouterr().err).splitlines()
    assert f"run_dir: {folder} is being trained by process {other.pid} on " in said
    assert (folder / "recipe.yaml").exists()


@pytest.mark.slow
def test_two_fits_at_once_train_the_run_once_and_what_they_leave_is_one_runs(recipe, tmp_path):
    folder = tmp_path / "run"
    call = [sys.executable, "-m", "dslight", "fit", str(recipe), f"run_dir={folder}"]
    both = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240) for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes, said
    if codes != [0, 0]:  # the machine was so slow that the second one found the run finished
        first, second = both if codes[0] == 0 else both[::-1]
        refusal = said[both.index(second)][1]
        assert f"is being trained by process {first.pid} on " in refusal
        assert "Traceback" not in refusal
    assert len(list((folder / "logs").iterdir())) == 1
    assert not (folder / ".lock").exists()


def test_a_fit_that_was_killed_holds_nothing(held, recipe, tmp_path, monkeypatch):
    def build(*_, **__):
        raise LookupError("it is built")

    monkeypatch.setattr(fit_module, "build", build)
    other = held(tmp_path / "run")
    other.kill()
    other.wait()
    with pytest.raises(LookupError):
        fit_module.fit(compose(recipe, [f"run_dir={tmp_path / 'run'}"]))


@pytest.mark.parametrize(
    "rank",
    [{"RANK": "1"}, {"SLURM_PROCID": "1"}, {"LOCAL_RANK": "1"}, {"NODE_RANK": "1"}, {"RANK": "3", "LOCAL_RANK": "0"}],
    ids=str,
)
def test_the_first_rank_takes_the_lock_for_all(rank, tmp_path, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    with RunFolder(tmp_path).held():
        assert (tmp_path / ".lock").exists()
        program = f"from dslight.run.folder import RunFolder\nwith RunFolder({str(tmp_path)!r}).held(): print('in')"
        call = [sys.executable, "-c", program]
        others = subprocess.run(call, env=os.environ | rank, capture_output=True, text=True, check=False)
        assert others.stdout == "in\n", others.stderr
        second_job = subprocess.run(call, env=os.environ | {"RANK": "0"}, capture_output=True, text=True, check=False)
        assert f"is being trained by process {os.getpid()}" in second_job.stderr


@pytest.mark.parametrize("place", ["file/run", "nowhere"])
def test_a_folder_that_cannot_be_made_is_named_before_a_model_is_built(place, recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "build", lambda *_, **__: pytest.fail("a model was built"))
    (tmp_path / "file").write_text("")
    folder = Path("/proc/nowhere") if place == "nowhere" else tmp_path / place
    assert main(["fit", str(recipe), f"run_dir={folder}"]) == 1
    assert f"dslight: run_dir: {folder} cannot be written to (" in capsys.readouterr().err


def test_what_is_refused_leaves_no_folder_behind(recipe, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise fit_module.RecipeError("model: no")

    monkeypatch.setattr(fit_module, "build", refuse)
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'runs' / 'arm' / 'run'}"]) == 1
    assert list(tmp_path.iterdir()) == []


# --- sweep

FIT = "test_locks_of_sweeps.fit"
PROGRAM = '''
import json, os, time
from dslight.recipe.compose import recipe_hash, to_yaml

def fit(recipe, run_dir, resume):
    """Counts how often a run is trained."""
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe))
    with (run_dir / "trained.txt").open("a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(recipe["pause"])
    (run_dir / "result.json").write_text(json.dumps({"recipe_hash": recipe_hash(recipe), "accuracy": 0.5}))
'''
SWEEP = "import sys; from dslight.run.sweep import sweep; from dslight.recipe.ablation import expand; "
SWEEP += f"sys.exit(sweep(expand('effect.yaml'), jobs=2, fit={FIT!r}))"


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    """``ablation(variants)``: an ablation of short runs in this test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("test_locks_of_sweeps.py").write_text(PROGRAM)

    def make(variants: str):
        Path("effect.yaml").write_text(f"name: effect\npause: 0.01\nseed: 0\nvariants: {variants}\n")
        return expand("effect.yaml")

    return make


def trained(run) -> list[str]:
    file = run.run_dir / "trained.txt"
    return file.read_text().split() if file.exists() else []


def test_two_sweeps_in_one_folder_share_the_runs(ablation, tmp_path):
    runs = ablation("{" + ", ".join(f"arm{i}: {{pause: 0.{5 + i}}}" for i in range(5)) + "}").runs
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    call = [sys.executable, "-c", SWEEP]
    both = [subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [len(trained(run)) for run in runs] == [1] * 5, said
    assert len({process for run in runs for process in trained(run)}) > 2  # the workers of both
    assert any("effect: 5 of 5 runs done" in text for text in said)


def test_a_run_that_is_done_by_the_time_it_is_held_is_not_trained_again(ablation):
    (run,) = ablation("{one: {}}").runs
    assert [_train(resolve_name(FIT), "effect", run) for _ in range(2)] == [DONE, DONE]
    assert len(trained(run)) == 1


def test_a_run_that_another_process_keeps_is_named_and_the_others_are_trained(ablation, held, capfd):
    effect = ablation("{kept: {pause: 0.02}, free: {}}")
    other = held(effect.runs[0].run_dir)
    assert sweep(effect, fit=FIT) == 1
    printed = capfd.readouterr().out
    assert [trained(run) != [] for run in effect.runs] == [False, True]
    assert list(effect.runs[0].run_dir.iterdir()) == [effect.runs[0].run_dir / ".lock"]
    assert f"kept: being trained by process {other.pid} on " in printed
    assert "effect: 1 of 2 runs done" in printed


def test_a_run_whose_holder_is_gone_meanwhile_is_trained_in_the_end(ablation, held):
    effect = ablation("{kept: {pause: 0.02}, free: {pause: 4}}")
    other = held(effect.runs[0].run_dir)
    timer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(3); os.kill({other.pid}, 9)"])
    assert sweep(effect, fit=FIT) == 0
    timer.wait()
    assert [len(trained(run)) for run in effect.runs] == [1, 1]


def test_a_fresh_sweep_deletes_nothing_while_another_process_trains_one_of_its_runs(ablation, held):
    effect = ablation("{one: {}, two: {pause: 0.02}}")
    assert sweep(effect, fit=FIT) == 0
    held(effect.runs[1].run_dir)
    with pytest.raises(HeldError):
        sweep(effect, fit=FIT, fresh=True)
    assert all((run.run_dir / "result.json").exists() for run in effect.runs)


# --- shards


def test_a_second_writer_of_shards_is_told_who_the_first_one_is(held, tmp_path):
    other = held(tmp_path / "shards")
    with pytest.raises(ShardError, match=f"at work there: process {other.pid} on "), ShardWriter(tmp_path / "shards"):
        pass
    (tmp_path / "data.json").write_text(json.dumps([{"id": 1, "conversations": []}]))
    began = time.monotonic()
    with pytest.raises(SystemExit, match=f"at work there: process {other.pid} on "):
        llava(["--json", str(tmp_path / "data.json"), "--out", str(tmp_path / "shards"), "--workers", "1"])
    assert time.monotonic() - began > 4  # it waits for a writer that is ending
