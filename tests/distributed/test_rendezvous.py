"""The processes of one attempt meet each other, whatever an earlier attempt has left in the store."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from dslight.train.rendezvous import agree

WORLD = 4


def attempt(store: dist.Store, ranks: range | list[int] = range(WORLD), seconds: float = 20) -> dict[int, str]:
    """What the ranks, which start one after another, agree on."""
    found: dict[int, str] = {}

    def run(rank: int) -> None:
        try:
            found[rank] = agree(store.clone(), rank, WORLD, timedelta(seconds=seconds))
        except dist.DistError:
            found[rank] = "nobody"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]], ids=["rank 0 first", "rank 0 last"])
def test_every_attempt_has_a_prefix_of_its_own_on_which_all_agree(order, store):
    """The store is never cleaned, and all ranks but 0 may come before 0 has said that there is a new attempt."""
    seen = []
    for _ in range(3):
        found = attempt(store, order)
        assert sorted(found) == list(range(WORLD))
        assert len(set(found.values())) == 1
        seen.append(found[0])
    assert len(set(seen)) == 3
    assert all("/" in prefix for prefix in seen)


def test_an_attempt_that_lost_a_rank_does_not_mislead_the_next(store):
    assert set(attempt(store, [0, 1, 3], seconds=1).values()) == {"nobody"}
    found = attempt(store, [1, 2, 3, 0])
    assert len(set(found.values())) == 1
    assert "nobody" not in found.values()
