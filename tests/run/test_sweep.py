"""Sweeps with real worker processes. ``fit`` stands for training: it counts steps, saves, resumes, fails on demand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dslight.recipe.ablation import Run, expand
from dslight.recipe.compose import recipe_hash, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.sweep import seconds_left, show, sweep

FIT = "test_sweep.fit"  # the workers import this file by name


def fit(recipe: dict, run_dir: Path, resume: bool) -> None:
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe))
    checkpoint = run_dir / "checkpoint.txt"
    first = int(checkpoint.read_text()) if resume and checkpoint.exists() else 0
    print(f"starting at step {first} in process {os.getpid()} with {os.environ['OMP_NUM_THREADS']} threads")
    os.write(2, b"written below Python\n")
    for step in range(first, recipe["steps"]):
        (run_dir / "progress.json").write_text(
            json.dumps({"step": step, "max_steps": recipe["steps"], "seconds": step})
        )
        if step == recipe.get("fail_at"):
            raise ValueError("the loss is not a number at step 2")
        if step == recipe.get("die_at"):
            os.kill(os.getpid(), signal.SIGKILL)
        if step == recipe.get("exit_at"):
            sys.exit(0)
        try:
            time.sleep(recipe["pause"])
        except KeyboardInterrupt:
            time.sleep(0.3)  # a second interrupt in the middle of saving would lose the checkpoint
            checkpoint.write_text(str(step))
            raise
    result = {"recipe_hash": recipe_hash(recipe), "accuracy": 0.5 + recipe["seed"] / 10}
    (run_dir / "result.json").write_text(json.dumps(result))


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    """``ablation(variants, *overrides)``: an expanded ablation of short runs in this test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(variants: str, *overrides: str):
        Path("effect.yaml").write_text(f"name: effect\nsteps: 4\npause: 0.01\nseed: 0\nvariants: {variants}\n")
        return expand("effect.yaml", overrides)

    return make


def log(run: Run) -> str:
    return (run.run_dir / "log.txt").read_text()


def processes(runs: list[Run]) -> list[str]:
    return [log(run).split("in process ")[1].split()[0] for run in runs]


def test_every_run_is_trained_and_one_worker_trains_several(ablation, capfd):
    effect = ablation("{low: {}, high: {steps: 5}, wide: {steps: 6}}", "grid.seed=[0, 1]")
    assert sweep(effect, jobs=2, fit=FIT) == 0
    assert all((run.run_dir / "result.json").exists() for run in effect.runs)
    assert len(set(processes(effect.runs))) == 2
    assert str(os.getpid()) not in processes(effect.runs)
    assert "written below Python" in log(effect.runs[0])
    about = json.loads((effect.runs[3].run_dir / "run.json").read_text())
    assert about == {"ablation": "effect", "arm": "high", "index": 3, "point": {"seed": 1}}
    printed = capfd.readouterr().out
    assert "high seed=1: accuracy 0.6000, 0.0 min" in printed
    assert "effect: 6 of 6 runs done" in printed
    assert "starting at step" not in printed


def test_workers_share_the_cores_unless_the_user_has_said_how_many(ablation, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    effect = ablation("{low: {}, high: {steps: 5}}")
    sweep(effect, jobs=2, fit=FIT)
    assert f"with {max(1, cores // 2)} threads" in log(effect.runs[0])
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    sweep(effect, jobs=2, fit=FIT, fresh=True)
    assert "with 3 threads" in log(effect.runs[0])


def test_a_failed_run_does_not_stop_the_others_and_is_listed_with_its_log(ablation, capfd):
    effect = ablation("{bad: {fail_at: 2}, silent: {exit_at: 1}, good: {}}")
    assert sweep(effect, jobs=1, fit=FIT) == 1
    printed = capfd.readouterr().out
    assert "FAILED bad (runs/effect/bad/log.txt)" in printed
    assert "    ValueError: the loss is not a number at step 2" in printed
    assert "FAILED silent (runs/effect/silent/log.txt)" in printed
    assert "effect: 1 of 3 runs done" in printed
    assert "good: accuracy 0.5000" in printed


def test_a_killed_worker_fails_its_run_and_is_replaced(ablation, capfd):
    effect = ablation("{killed: {die_at: 1}, one: {}, two: {steps: 5}}")
    assert sweep(effect, jobs=1, fit=FIT) == 1
    printed = capfd.readouterr().out
    assert "killed: FAILED: its worker was killed by SIGKILL, as when memory runs out" in printed
    assert "effect: 2 of 3 runs done" in printed
    killed, one, two = processes(effect.runs)
    assert killed != one == two


def test_finished_runs_are_skipped_and_failed_ones_are_tried_again(ablation, capfd):
    variants = "{good: {}, bad: {fail_at: 3}}"
    effect = ablation(variants)
    assert sweep(effect, fit=FIT) == 1
    before = log(effect.runs[0])
    assert sweep(effect, fit=FIT) == 1
    assert log(effect.runs[0]) == before
    assert log(effect.runs[1]).count("starting at step") == 2
    assert "effect: 1 of 2 runs are done already" in capfd.readouterr().out


def test_a_result_of_another_recipe_is_refused_by_key_and_fresh_starts_again(ablation):
    sweep(ablation("{low: {}, high: {pause: 0}}"), fit=FIT)
    changed = ablation("{low: {}, high: {pause: 0, width: 3}}", "steps=5")
    with pytest.raises(RecipeError) as caught:
        sweep(changed, fit=FIT)
    assert str(caught.value).splitlines() == [
        "2 of 2 run folders were started from another recipe; set another run_dir, or start them again with fresh",
        "  low (runs/effect/low)",
        "    steps: 4 -> 5",
        "  high (runs/effect/high)",
        "    steps: 4 -> 5",
        "    width: (absent) -> 3",
    ]
    assert sweep(changed, fit=FIT, fresh=True) == 0
    assert log(changed.runs[0]).count("starting at step") == 1


def test_a_started_run_of_another_recipe_is_refused_before_its_checkpoint_is_used(ablation):
    sweep(ablation("{low: {fail_at: 1}}"), fit=FIT)
    with pytest.raises(RecipeError, match="fail_at: 1 -> "):
        sweep(ablation("{low: {}}"), fit=FIT)


def test_fresh_does_not_delete_a_folder_that_no_sweep_has_made(ablation):
    effect = ablation("{low: {}}")
    effect.runs[0].run_dir.mkdir(parents=True)
    (effect.runs[0].run_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="is not the folder of a run"):
        sweep(effect, fit=FIT, fresh=True)
    assert (effect.runs[0].run_dir / "thesis.txt").exists()


def test_the_list_says_which_runs_are_done(ablation):
    effect = ablation("{good: {}, bad: {fail_at: 1}, later: {steps: 5}}")
    sweep(effect, index=0, fit=FIT)
    sweep(effect, index=1, fit=FIT)
    assert [line.split() for line in show(effect).splitlines()] == [
        ["0", "done", "good", "runs/effect/good"],
        ["1", "started", "bad", "runs/effect/bad"],
        ["2", "-", "later", "runs/effect/later"],
    ]


def test_an_index_runs_only_that_run(ablation):
    effect = ablation("{a: {}, b: {steps: 5}, c: {steps: 6}}")
    assert sweep(effect, index=1, fit=FIT) == 0
    assert [run.run_dir.exists() for run in effect.runs] == [False, True, False]
    with pytest.raises(RecipeError, match="index: 3, but effect has 3 runs, counted from 0"):
        sweep(effect, index=3, fit=FIT)
    with pytest.raises(RecipeError, match="jobs: 0 workers"):
        sweep(effect, jobs=0, fit=FIT)


def test_the_dearest_runs_start_first(ablation, capfd):
    sweep(ablation("{a: {}, b: {cost: 3, steps: 5}, c: {cost: 2, steps: 6}}"), fit=FIT)
    lines = [line for line in capfd.readouterr().out.splitlines() if "accuracy" in line]
    assert [line.split()[1] for line in lines] == ["b:", "c:", "a:"]


def test_a_function_that_cannot_be_imported_is_an_error_and_not_a_failed_run(ablation):
    with pytest.raises(RuntimeError, match=r"a worker could not start(.|\n)*No module named 'nowhere'"):
        sweep(ablation("{low: {}}"), fit="nowhere.fit")


COMMAND = "import sys; from dslight.run.sweep import sweep; from dslight.recipe.ablation import expand; "
COMMAND += f"sys.exit(sweep(expand('effect.yaml', sys.argv[1:]), jobs=2, fit='{FIT}'))"


def start(*overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", COMMAND, *overrides]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background starts deaf to it
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(process_id: str) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def running(effect) -> bool:
    """Both of the first two runs are past their first step."""
    texts = [run.run_dir / "progress.json" for run in effect.runs[:2]]
    return all(path.exists() and '"step": 0' not in path.read_text() != "" for path in texts)


def test_ctrl_c_saves_and_the_same_command_continues(ablation):
    effect = ablation("{a: {pause: 0.2, steps: 50}, b: {pause: 0.3, steps: 50}, c: {}}")
    process = start()
    wait_for(lambda: running(effect))
    assert all(os.getpgid(int(worker)) != process.pid for worker in processes(effect.runs[:2]))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole foreground group
    printed = process.communicate(timeout=240)[0]
    assert process.returncode == 130
    assert "effect: 0 of 3 runs finished; the same command continues" in printed
    assert "a: interrupted" in printed
    steps = [int((run.run_dir / "checkpoint.txt").read_text()) for run in effect.runs[:2]]
    assert all(1 <= step < 49 for step in steps)
    assert not any(map(alive, processes(effect.runs[:2])))
    assert not effect.runs[2].run_dir.exists()

    for run, step in zip(effect.runs, steps, strict=False):  # spare the test the rest of the steps
        (run.run_dir / "checkpoint.txt").write_text(str(step + 40 if step < 9 else 48))
    process = start()
    assert "effect: 3 of 3 runs done" in process.communicate(timeout=240)[0]
    assert process.returncode == 0
    assert log(effect.runs[0]).count("starting at step") == 2


def test_workers_save_and_end_when_the_parent_is_killed(ablation):
    effect = ablation("{a: {pause: 0.2, steps: 50}, b: {pause: 0.3, steps: 50}}")
    process = start()
    wait_for(lambda: running(effect))
    process.kill()
    process.communicate()
    wait_for(lambda: not any(map(alive, processes(effect.runs))))
    assert all((run.run_dir / "checkpoint.txt").exists() for run in effect.runs)


def test_the_estimate_uses_costs_and_what_has_been_measured(ablation):
    cheap, dear, more = ablation("{cheap: {}, dear: {cost: 3, steps: 5}, more: {cost: 2, steps: 6}}").runs
    assert seconds_left([(cheap, {})], [dear], [], jobs=1) is None
    half_way = (cheap, {"step": 5, "max_steps": 10, "seconds": 50})
    assert seconds_left([half_way], [dear, more], [], jobs=1) == 50 + 300 + 200
    assert seconds_left([half_way], [dear, more], [], jobs=2) == (50 + 300 + 200) / 2
    assert seconds_left([half_way, (dear, {})], [], [(100.0, cheap)], jobs=2) == 300
