"""A data worker is killed, as by a machine short of memory, or hangs: the run ends with the record it had in hand."""

from __future__ import annotations

import re
import time

import pytest
from processes import a_minute
from training import SLOTS
from witness import DeadlyViews

from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.transport.workers import WorkerError

FATES = {
    "killed": (0, r"DataLoader worker \(pid.* (is killed by signal|exited unexpectedly)"),
    "hanging": (4, r"timed out after \d+ seconds"),
}


@pytest.mark.parametrize(
    ("fate", "method"),
    [
        ("killed", "fork"),
        ("hanging", "fork"),
        pytest.param("killed", "spawn", marks=pytest.mark.slow),
        pytest.param("hanging", "forkserver", marks=pytest.mark.slow),
    ],
)
@pytest.mark.fault(18)
def test_the_loader_names_the_record_that_a_worker_had_in_hand(fate, method, data, tokenizer, monkeypatch):
    timeout, message = FATES[fate]
    monkeypatch.setenv("DEADLY", "6")
    monkeypatch.setenv("HANG", "1" if timeout else "")
    settings = {"num_workers": 1, "worker_timeout": timeout * (1 if method == "fork" else 15), "worker_start": method}
    loaders = []
    for views, more in ((SingleView(), {}), (DeadlyViews(1, 1), settings)):
        module = ShardData([str(data / "a")], views, 4, template="bare", max_length=40, **more)
        module.connect(tokenizer, (8, 8), SLOTS)
        module.setup("fit")
        loaders.append(module.train_dataloader())
    order = [key for batch in loaders[0] for key in batch.keys]
    got, began = [], time.monotonic()
    with pytest.raises(WorkerError, match=message) as caught:  # noqa: PT012
        for batch in loaders[1]:
            got += batch.keys
    assert time.monotonic() - began < settings["worker_timeout"] + 120  # a spawned worker imports everything first
    assert got in ([], order[:4])  # the news of a death may overtake the batch before it
    named = re.search(r"Taken up last: worker 0: .*/(shard-\d+\.tar: [\w-]+)\.", str(caught.value))
    assert named
    assert named[1].endswith(f": {order[5]}")


@pytest.mark.parametrize("fate", [pytest.param("killed", marks=pytest.mark.slow), "hanging"])
@pytest.mark.fault(18)
def test_both_ranks_of_a_run_end_within_a_minute_and_one_names_the_record(fate, recipe, dslight, tmp_path):
    views = "data.views={class_path: witness.DeadlyViews, init_args: {rows: 2, cols: 2, resample: box}}"
    call = ["fit", str(recipe), f"run_dir={tmp_path / 'run'}", views, "data.num_workers=1", "data.worker_timeout=10"]
    fault = {"DEADLY": "9", "HANG": "1" if fate == "hanging" else ""}
    ended = dslight(*call, ranks=2, WITNESS=str(tmp_path), **fault)
    assert ended.seconds < a_minute()
    assert all(code not in (0, None) for code in ended.codes), ended.outputs
    named = re.compile(r"data\.num_workers: DataLoader .*Taken up last: .*worker 0: .*shard-\d+\.tar: train-\d+")
    assert all(named.search(output) for output in ended.outputs), ended.outputs
