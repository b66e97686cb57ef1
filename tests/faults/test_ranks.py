"""One rank of several meets what the others do not, or there is too little for all of them; nobody waits for ever."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from processes import Joined, a_minute, free_port, slurm, wait_all
from training import PER_EPOCH, launch, per_step

from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.loader import TrainLoader
from dslight.data.transport.workers import Workers
from dslight.layout import SlotLayout

SLOW = pytest.mark.slow
HERE = Path(__file__).parent


# --- a poisoned sample
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=SLOW)])
@pytest.mark.fault(16)
def test_all_ranks_end_within_a_minute_and_say_which_rank_shard_and_key(workers, poisoned, recipe, dslight, tmp_path):
    root, shard, key = poisoned
    call = ["fit", str(recipe), f"run_dir={tmp_path / 'run'}", f"data.train=[{root}]", f"data.num_workers={workers}"]
    ended = dslight(*call, ranks=2, WITNESS=str(tmp_path))
    assert ended.seconds < a_minute()
    assert all(code not in (0, None) for code in ended.codes), ended.outputs
    bad = next(rank for rank in (0, 1) if "\ndslight: " in ended.outputs[rank])
    assert f"{shard}: {key}: " in ended.outputs[bad]
    assert re.search(
        rf"rank {1 - bad}: stopping, because rank {bad} failed: BadSample: .*{shard}: {key}: ", ended.outputs[1 - bad]
    ), ended.outputs[1 - bad]
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=SLOW)])
@pytest.mark.fault(16)
def test_with_substitution_the_ranks_stay_in_step_and_a_stand_in_is_trained_on(
    workers, poisoned, recipe, dslight, tmp_path
):
    root, _, key = poisoned
    settings = [f"data.train=[{root}]", f"data.num_workers={workers}", "data.on_bad=substitute"]
    ended = dslight("fit", str(recipe), f"run_dir={tmp_path / 'run'}", *settings, ranks=2, WITNESS=str(tmp_path))
    assert ended.codes == [0, 0], ended.outputs
    steps = per_step(tmp_path)
    assert {sum(keys.values()) for keys in steps.values()} == {8}
    assert sorted(steps) == list(range(9))
    seen = sum((steps[step] for step in range(6)), Counter())
    assert key not in seen
    assert sorted(seen.values()) == [*[1] * 46, 2]  # an epoch of 48, one of which another one stands in for


# --- too little for all
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "workers", "shard_records"),
    [(2, 2, 100), pytest.param(2, 4, 7, marks=SLOW), pytest.param(4, 1, 100, marks=SLOW)],
    ids=["1 shard", "2 shards, 8 readers", "1 shard, 4 ranks"],
)
@pytest.mark.fault(17)
def test_fewer_shards_than_readers_give_equal_steps_to_all_ranks(
    world, workers, shard_records, data, write_shards, tmp_path
):
    write_shards(tmp_path / "a", 13, "a", shard_records=shard_records)
    (tmp_path / "q").symlink_to(data / "q")
    (tmp_path / "tokenizer").symlink_to(data / "tokenizer")
    out = tmp_path / "out"
    settings = {"sources": (("a", 1.0),), "global_batch": 4, "micro": 1, "epochs": 2}
    assert launch(data=tmp_path, out=out, world=world, workers=workers, **settings) == [0] * world
    counts = {len((out / f"rank{rank}.jsonl").read_text().splitlines()) for rank in range(world)}
    assert counts == {2 * 3 * 4 // world}
    steps = per_step(out)
    for epoch in range(2):
        seen = sum((steps[epoch * 3 + i] for i in range(3)), Counter())
        assert sorted(seen.values()) == [1] * 12


@pytest.mark.fault(17)
def test_fewer_records_than_a_batch_are_refused_on_every_rank_by_name(data, write_shards, tmp_path):
    write_shards(tmp_path / "a", 5, "a")
    (tmp_path / "q").symlink_to(data / "q")
    (tmp_path / "tokenizer").symlink_to(data / "tokenizer")
    out = tmp_path / "out"
    assert launch(data=tmp_path, out=out, world=2, micro=4, sources=(("a", 1.0),)) == [1, 1]
    logs = [path.read_text() for path in out.glob("log-*.txt")]
    assert len(logs) == 2
    assert all("data.global_batch_size: 8 is more than the 5 items of an epoch" in log for log in logs)


# --- start methods and launchers
# -----------------------------------------------------------------------------------------

LAUNCHERS = ["torchrun", "srun", "lightning", "stale"]
STARTS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> dict[int, Counter]:
    out = tmp_path_factory.mktemp("whole")
    assert launch(data=data, out=out, epochs=1) == [0]
    return per_step(out)


def programs(launcher: str, job: str) -> list[tuple[list[str], dict[str, str]]]:
    """The commands that start two ranks of ``python training.py JOB``, and what is in their environment."""
    call, port = [str(HERE / "training.py"), job], free_port()
    if launcher == "torchrun":
        return [(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *call], {})]
    if launcher == "srun":
        return [(call, slurm(rank, 2, port)) for rank in range(2)]
    stale = {"RANK": "1", "GLOBAL_RANK": "1"} if launcher == "stale" else {}  # left over in the shell
    return [(call, stale)]  # Lightning itself starts the second rank


@pytest.mark.parametrize(
    ("launcher", "method"),
    [pytest.param(launcher, method, marks=SLOW) for launcher in LAUNCHERS for method in STARTS],
)
@pytest.mark.timeout(700)
@pytest.mark.fault(19)
def test_every_record_is_read_by_one_worker_of_one_rank(launcher, method, data, whole, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    job = {"data": str(data), "out": str(out), "world": 2, "micro": 2, "workers": 1, "start": method}
    job |= {"epochs": 1, "val": False}
    base = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    base |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = []
    for i, (call, variables) in enumerate(programs(launcher, json.dumps(job))):
        with (tmp_path / f"output{i}.txt").open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *call], env=base | variables, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True, cwd=tmp_path,
            )  # fmt: skip
        processes.append(Joined(process))
    codes = wait_all(processes, 600)  # up to four processes that import everything
    assert set(codes) == {0}, [path.read_text()[-3000:] for path in tmp_path.glob("output*.txt")]
    assert len(whole) == PER_EPOCH
    assert per_step(out) == whole
    ranks = [len((out / f"rank{rank}.jsonl").read_text().splitlines()) for rank in range(2)]
    assert ranks == [PER_EPOCH * 2] * 2


@pytest.mark.parametrize("method", STARTS)
@pytest.mark.fault(19)
def test_a_worker_knows_its_share_without_asking_the_environment(method, data, tokenizer, monkeypatch):
    """The quick one: both ranks' loaders in this process, and a stale place in what their workers inherit."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    module = ShardData([str(data / "a")], SingleView(), 8, template="bare", max_length=40)
    module.connect(tokenizer, (8, 8), SlotLayout((2, 2)))
    module.setup("fit")
    whole = module.train_dataloader()
    ranks = [
        TrainLoader(whole.dataset, whole.plan, whole.collate, rank, 2, 4, Workers(rank, start=method))
        for rank in range(2)  # that without workers is the other one's measure
    ]
    seen = [[key for batch in loader for key in batch.keys] for loader in ranks]
    assert [len(keys) for keys in seen] == [16, 16]
    assert not set(seen[0]) & set(seen[1])
    assert Counter(seen[0] + seen[1]) == Counter(key for batch in whole for key in batch.keys)
