"""On several gloo processes every metric gives, on every rank, exactly what it gives on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import metric_cases as cases
import pytest


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each of three real processes prints (the third sits out the groups of two)."""
    store = tmp_path_factory.mktemp("gloo") / "store"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, cases.__file__, str(rank), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(max(cases.WORLDS))
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    for rank, (process, (_, err)) in enumerate(zip(ranks, outputs, strict=True)):
        assert process.returncode == 0, f"rank {rank}:\n{err[-2000:]}"
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.parametrize("name", cases.CASES)
@pytest.mark.parametrize("share", [share.__name__ for share in cases.SHARES])
@pytest.mark.parametrize("world", cases.WORLDS)
def test_every_rank_gives_the_result_of_one_process(reports, world, share, name):
    make, rows = cases.CASES[name]
    expected = cases.values(cases.feed(make(), rows))
    for report in reports[:world]:
        got = report[str(world)][share][name]
        assert list(got) == list(expected)
        assert got == pytest.approx(expected, nan_ok=True, abs=1e-12)


@pytest.mark.parametrize("name", cases.CASES)
def test_counting_the_padding_would_change_the_result(name):
    """The padded share above could not fail if the repeats did not matter."""
    make, rows = cases.CASES[name]
    padded = [row | {"valid": True} for rank in range(3) for row in cases.padded(rows, rank, 3)]
    assert cases.values(cases.feed(make(), padded)) != cases.values(cases.feed(make(), rows))
