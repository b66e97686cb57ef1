"""An index of 1.3 million records (LLaVA's two stages together): how long a start takes, and what it occupies."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.index import generate

SHARDS, PER_SHARD = 260, 5000

START = """
import json, sys, time
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from dslight.data.plan import Order, PlanSource, TrainPlan
from dslight.data.shards import ShardReader

def pss():
    with open("/proc/self/smaps_rollup") as file:
        lines = {line.split(":")[0]: line for line in file}
    return int(lines["Pss"].split()[1]) / 1024

class Touch(Dataset):  # looks every record up, as reading does, but reads nothing
    def __init__(self, reader):
        self.reader = reader

    def __getitem__(self, item):
        for record in item if isinstance(item, tuple) else (item,):
            self.reader.locate(record)
            for m in self.reader.index.members(record):
                int(self.reader.index.offsets[m]), self.reader.index.hashes[m].tobytes()
        return pss() if record % 500 == 0 else 0.0

root, packed, workers = sys.argv[1], sys.argv[2] == "packed", int(sys.argv[3])
before, began = pss(), time.process_time()  # of CPU: the clock on the wall also counts what others do meanwhile
reader = ShardReader(root)
lengths = np.random.default_rng(0).integers(100, 1200, len(reader)).astype(np.int32) if packed else None
source = PlanSource(reader.manifest.digest, len(reader), 1.0, np.diff(reader.starts), lengths)
plan = TrainPlan((source,), 0, 128, Order(pack=packed), 2048)
order = plan.micro_batches(0, 0, 0, 1, 16)
batches = iter(DataLoader(Touch(reader), batch_sampler=order, collate_fn=list, num_workers=workers))
first = next(batches)
seconds, after = time.process_time() - began, pss()
seen = []
for _ in range(4000):
    seen += [x for x in next(batches) if x]
print(json.dumps({"seconds": seconds, "before": before, "after": after, "workers": seen[-50:], "end": pss()}))
"""


@pytest.fixture(scope="module")
def million(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("million")
    generate(root, SHARDS, PER_SHARD)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("order", ["plain", "packed"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_million_records_start_in_seconds_and_stay_small(million, order, workers):
    done = subprocess.run(
        [sys.executable, "-c", START, str(million), order, str(workers)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        order, workers, {key: round(value, 1) for key, value in found.items() if key != "workers"}, found["workers"][:2]
    )
    assert found["seconds"] < 5
    assert found["after"] - found["before"] < 300  # the imports before it are some 400 of their own
    together = found["end"] + (workers * max(found["workers"]) if workers else 0)  # pages that are shared count once
    assert together - found["before"] < 400
