"""An ablation whose runs take several processes: what torchrun started trains them one after the other."""

from __future__ import annotations

import csv
import json
import threading
from pathlib import Path

import pytest
from launches import fork, free_port, launch


@pytest.fixture(scope="module")
def arm(recipe, tmp_path_factory) -> Path:
    """A run of two steps."""
    values = json.loads(recipe().read_text())
    values["trainer"] |= {"max_steps": 2}
    values["trainer"].pop("callbacks")
    file = tmp_path_factory.mktemp("arm") / "arm.yaml"
    file.write_text(json.dumps(values))
    return file


@pytest.fixture(scope="module")
def ablation(arm, tmp_path_factory) -> Path:
    """Two arms."""
    values = json.loads(arm.read_text())
    values["variants"] = {"second": {}, "first": {"model": {"stacking": {"init_args": {"start": 0}}}}}
    file = tmp_path_factory.mktemp("ablation") / "ablation.yaml"
    file.write_text(json.dumps(values))
    return file


@pytest.fixture(scope="module")
def alone(arm, fit, tmp_path_factory) -> dict[str, list[float]]:
    """The losses of each, trained by one process."""
    root = tmp_path_factory.mktemp("alone")
    found = {"second": fit(arm, root / "second"), "first": fit(arm, root / "first", "model.stacking.init_args.start=0")}
    assert [done.code for done in found.values()] == [0, 0]
    return {name: list(done.losses().values()) for name, done in found.items()}


def sweep(folder: Path, ablation: Path, *more: str, torchrun: list[str] | None = None):
    return fork(folder, ["sweep", str(ablation), f"run_dir={folder / 'runs'}", *more], 2, torchrun)


def losses(folder: Path) -> dict[str, list[float]]:
    found = {}
    for arm in ("second", "first"):
        (about,) = (folder / "runs" / arm).rglob("run.json")
        assert json.loads(about.read_text())["arm"] == arm
        with (about.parent / "metrics.csv").open() as rows:
            found[arm] = [float(row["train/loss"]) for row in csv.DictReader(rows) if row["train/loss"]]
    return found


def check(folder: Path, alone: dict[str, list[float]]) -> None:
    several = losses(folder)
    for arm, expected in alone.items():
        assert len(expected) == 2
        assert several[arm] == pytest.approx(expected, abs=1e-5)
    assert alone["second"] != alone["first"]


def test_two_processes_train_every_run_together_with_the_losses_of_one(ablation, alone, tmp_path):
    place = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    ended = sweep(tmp_path, ablation, torchrun=place)
    assert ended.code == 0, ended.output[-4000:]
    check(tmp_path, alone)
    assert ended.output.count("run 1 of 2") == 1
    again = sweep(tmp_path, ablation)
    assert again.code == 0
    assert "2 of 2 runs are done already" in again.output
    refused = sweep(tmp_path, ablation, "--jobs", "2")
    assert refused.code != 0
    assert "--jobs: 2 runs at a time cannot share them; torchrun started 2 processes" in refused.output


@pytest.mark.slow
def test_two_agents_train_every_run_together_with_the_losses_of_one(ablation, alone, tmp_path):
    port, ended = free_port(), {}

    def agent(rank: int) -> None:
        where = ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        call = ["-m", "dslight", "sweep", str(ablation), f"run_dir={tmp_path / 'runs'}", "trainer.num_nodes=2"]
        ended[rank] = launch(tmp_path / f"agent-{rank}", call, 1, where)

    agents = [threading.Thread(target=agent, args=(rank,)) for rank in (0, 1)]
    for thread in agents:
        thread.start()
    for thread in agents:
        thread.join()
    assert [ended[rank].code for rank in (0, 1)] == [0, 0], ended[0].output[-3000:] + ended[1].output[-3000:]
    check(tmp_path, alone)
