"""On several gloo processes every metric gives, on every rank, exactly what it gives on one."""

from __future__ import annotations

import json

import metric_cases as cases
import pytest
from processes import LIMIT, start, wait_all


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What each of three real processes writes (the third sits out the groups of two)."""
    folder = tmp_path_factory.mktemp("gloo")
    outs = [folder / f"{rank}.json" for rank in range(max(cases.WORLDS))]
    ranks = [
        start(cases.write, rank, str(folder / "store"), variables={"GLOO_SOCKET_IFNAME": "lo"}, out=out)
        for rank, out in enumerate(outs)
    ]
    codes = wait_all(ranks, LIMIT)
    assert set(codes) == {0}, [out.read_text()[-2000:] for out in outs]
    return [json.loads(out.read_text().splitlines()[-1]) for out in outs]


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
