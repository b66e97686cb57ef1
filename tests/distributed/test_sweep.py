"""An ablation whose runs take several processes: what torchrun started trains them one after the other."""

from __future__ import annotations

import csv
import json
import socket
import threading
from pathlib import Path

import pytest
from launches import fork, launch


@pytest.fixture(scope="module")
def ablation(recipe, tmp_path_factory) -> Path:
    """Two arms of two steps."""
    values = json.loads(recipe().read_text())
    values["trainer"] |= {"max_steps": 2}
    values["trainer"].pop("callbacks")
    values["variants"] = {"second": {}, "first": {"model": {"stacking": {"init_args": {"start": 0}}}}}
    file = tmp_path_factory.mktemp("ablation") / "ablation.yaml"
    file.write_text(json.dumps(values))
    return file


def sweep(folder: Path, ablation: Path, *more: str, ranks: int = 1):
    call = ["sweep", str(ablation), f"run_dir={folder / 'runs'}", *more]
    return fork(folder, call, ranks)


def losses(folder: Path) -> dict[str, list[float]]:
    found = {}
    for arm in ("second", "first"):
        (about,) = (folder / "runs" / arm).rglob("run.json")
        with (about.parent / "metrics.csv").open() as rows:
            found[arm] = [float(row["train/loss"]) for row in csv.DictReader(rows) if row["train/loss"]]
    return found


@pytest.fixture(scope="module")
def alone(ablation, tmp_path_factory) -> Path:
    """Swept by one process."""
    folder = tmp_path_factory.mktemp("alone")
    ended = sweep(folder, ablation)
    assert ended.code == 0, ended.output[-4000:]
    return folder


def check(folder: Path, alone: Path) -> None:
    one, several = losses(alone), losses(folder)
    assert several.keys() == one.keys()
    for arm, expected in one.items():
        assert len(expected) == 2
        assert several[arm] == pytest.approx(expected, abs=1e-5)
        (about,) = (folder / "runs" / arm).rglob("run.json")
        assert json.loads(about.read_text())["arm"] == arm
    assert one["second"] != one["first"]


def test_two_processes_train_every_run_together_with_the_losses_of_one(ablation, alone, tmp_path):
    ended = launch(tmp_path, ["-m", "dslight", "sweep", str(ablation), f"run_dir={tmp_path / 'runs'}"], 2)
    assert ended.code == 0, ended.output[-4000:]
    check(tmp_path, alone)
    assert ended.output.count("run 1 of 2") == 1
    again = sweep(tmp_path, ablation, ranks=2)
    assert again.code == 0
    assert "2 of 2 runs are done already" in again.output
    refused = sweep(tmp_path, ablation, "--jobs", "2", ranks=2)
    assert refused.code != 0
    assert "--jobs: 2 runs at a time cannot share them; torchrun started 2 processes" in refused.output


@pytest.mark.slow
def test_two_agents_train_every_run_together_with_the_losses_of_one(ablation, alone, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ended = {}

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
