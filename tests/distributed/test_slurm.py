"""The shipped batch scripts, driven by a SLURM that starts tasks on this machine and writes down what it is asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launches import HERE, SHARDED, free_port, strategy

SCRIPTS = HERE.parents[1] / "recipes" / "slurm"
TIMEOUT = 280

SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
from pathlib import Path

command = [word for word in sys.argv[1:]]
while command[0].startswith("--"):
    command.pop(0)
count = int(os.environ["SLURM_NTASKS"])
tasks = []
for rank in range(count):
    place = {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_STEP_ID": "0"}}
    reset = lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL)  # tasks are no children of srun's
    tasks.append(subprocess.Popen(command, env=os.environ | place, preexec_fn=reset))
go = Path(os.environ.get("TERM_WHEN", "never"))
while any(task.poll() is None for task in tasks):
    if go.exists():
        go = Path("never")
        for task in tasks:
            task.terminate()
    time.sleep(0.05)
sys.exit(max((128 - c if c < 0 else c) for c in (task.returncode for task in tasks)))
"""


@pytest.fixture
def batch(tmp_path):
    """``batch(script, *arguments, tasks=2, **env)``: what sbatch would run; exit code, output, calls of scontrol."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text(f'PATH="{programs}:{Path(sys.executable).parent}:$PATH"\n')

    def run(script: str, *arguments: str, tasks: int = 2, **env: str) -> tuple[int, str, list[str]]:
        variables = {
            "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "dslight-train", "SLURM_NNODES": "1", "SLURM_NTASKS": f"{tasks}",
            "SLURM_NTASKS_PER_NODE": f"{tasks}", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{free_port()}", "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1", "DSLIGHT_VENV": str(venv.parent), "PYTHONPATH": str(HERE),
            "PROBE_FOLDER": str(tmp_path),
        }  # fmt: skip
        done = subprocess.run(
            ["bash", str(SCRIPTS / script), *arguments],
            env=os.environ | variables | env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        asked = tmp_path / "scontrol.txt"
        return done.returncode, done.stdout, asked.read_text().splitlines() if asked.exists() else []

    return run


@pytest.mark.parametrize("script", ["train.sbatch", "sweep.sbatch"])
def test_the_scripts_are_bash_and_ask_for_what_they_need(script, batch):
    assert subprocess.run(["bash", "-n", str(SCRIPTS / script)], check=False, timeout=30).returncode == 0
    code, output, asked = batch(script)
    assert code != 0
    assert f"sbatch {'--array 0-11 ' if script[0] == 's' else ''}recipes/slurm/{script}" in output
    assert asked == []


@pytest.mark.slow
def test_a_training_that_is_asked_to_go_is_queued_again_and_ends_like_one_left_alone(recipe, fit, batch, tmp_path):
    file = recipe("DeepStackL", optimizer="AdamW")
    whole = fit(file, tmp_path / "whole")
    call = ("train.sbatch", str(file), f"run_dir={tmp_path / 'run'}", strategy(SHARDED), "data.num_workers=0")
    code, output, asked = batch(*call, TERM_WHEN=str(tmp_path / "probe-0.json"))
    assert code == 130, output[-4000:]
    assert asked == ["requeue 4242"]
    assert not (tmp_path / "run" / "result.json").exists()
    (tmp_path / "probe-0.json").unlink()
    code, output, asked = batch(*call, SLURM_RESTART_COUNT="1")
    assert code == 0, output[-4000:]
    assert asked == ["requeue 4242"]  # not once more
    done = type(whole)(code, output, 0.0, tmp_path)
    assert done.probe(0)["start"] > 0
    assert done.losses() == pytest.approx(whole.losses(), abs=1e-5)


@pytest.mark.slow
def test_a_training_that_fails_is_not_queued_again(recipe, batch, tmp_path):
    file = recipe("DeepStackL")
    code, output, asked = batch(
        "train.sbatch", str(file), f"run_dir={tmp_path / 'run'}", strategy(SHARDED), FAIL="nan 2 1"
    )
    assert code == 1, output[-4000:]
    assert "the loss of step 2 is not finite" in output
    assert asked == []


@pytest.mark.slow
def test_a_task_of_an_array_trains_its_run_and_is_queued_again_when_asked_to_go(recipe, batch, tmp_path):
    file = tmp_path / "ablation.yaml"
    base = recipe("DeepStackL")
    file.write_text(f"bases: [{base}]\nname: tiny\nrun_dir: {tmp_path / 'runs'}\ngrid: {{seed: [0, 1, 2]}}\n")
    settings = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "4241", "SLURM_JOB_NAME": "dslight-sweep"}
    code, output, asked = batch(
        "sweep.sbatch", str(file), tasks=1, TERM_WHEN=str(tmp_path / "probe-0.json"), **settings
    )
    assert code == 130, output[-4000:]
    assert asked == ["requeue 4242"]
    (tmp_path / "probe-0.json").unlink()
    code, output, asked = batch("sweep.sbatch", str(file), tasks=1, **settings)
    assert code == 0, output[-4000:]
    assert asked == ["requeue 4242"]
    done = [path.parent.name for path in tmp_path.rglob("result.json")]
    assert done == ["seed=1"]
