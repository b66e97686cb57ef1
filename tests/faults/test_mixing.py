"""An epoch holds what was asked for to within one sample, and packs within their room; also in a resumed run."""

from __future__ import annotations

import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from training import launch, newest, per_step

from data_prep.digits import write_tokenizer
from dslight.data.plan import Order, PlanSource, TrainPlan

SLOW = pytest.mark.slow
PACKS = Order(pack=True, pack_window=50, window=4, group_by=["modality"])


@pytest.mark.parametrize("mixes", [20, pytest.param(300, marks=SLOW)])
@pytest.mark.fault(20)
def test_every_epoch_has_the_shares_that_were_asked_for_to_within_one_and_no_pack_is_too_long(mixes, tries):
    rng = random.Random(mixes)
    for seed in range(mixes):
        with tries.one():
            sizes = [rng.randrange(20, 400) for _ in range(rng.randrange(1, 5))]
            weights = [rng.choice([0.3, 0.5, 1.0, 1.7, 2.0, 2.5]) for _ in sizes]
            lengths = [np.random.default_rng([seed, n]).integers(1, 40, n) for n in sizes]
            sources = tuple(
                PlanSource(str(i), n, weight, lengths=own)
                for i, (n, weight, own) in enumerate(zip(sizes, weights, lengths, strict=True))
            )
            packed = rng.random() < 0.5
            plan = TrainPlan(sources, seed, 4, Order(pack=packed, pack_window=64), max_length=40)
            asked = np.array(sizes) * np.array(weights)
            flat, starts = np.concatenate(lengths), plan.starts
            for epoch in range(3):
                packs = plan.packs(epoch)
                assert len(packs) == plan.items
                counts = np.bincount(np.searchsorted(starts, packs.records, side="right") - 1, minlength=len(sizes))
                quota = len(packs.records) * asked / asked.sum()
                assert (abs(counts - quota) <= 1).all(), (seed, epoch, counts, quota)
                for source, (n, weight) in enumerate(zip(sizes, weights, strict=True)):
                    own = packs.records[(packs.records >= starts[source]) & (packs.records < starts[source + 1])]
                    assert np.bincount(own - starts[source], minlength=n).max() <= int(np.ceil(weight))
                assert np.add.reduceat(flat[packs.records], packs.starts[:-1]).max() <= 40


@pytest.fixture(scope="module")
def varied(tmp_path_factory, write_varied, data) -> Path:
    root = write_varied(tmp_path_factory.mktemp("varied"))
    (root / "q").symlink_to(data / "q")
    write_tokenizer(root / "tokenizer")
    return root


@pytest.fixture(scope="module")
def whole(varied, tmp_path_factory) -> dict[int, Counter]:
    out = tmp_path_factory.mktemp("whole")
    assert launch(data=varied, out=out, order=PACKS) == [0]
    return per_step(out)


@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=SLOW)])
@pytest.mark.fault(20)
def test_packed_steps_of_a_run_killed_at_random_are_those_of_one_that_is_not(kills, varied, whole, tries, tmp_path):
    rng = random.Random(kills)
    for i in range(kills):
        before, after = ((rng.choice([(1, 8), (1, 2), (2, 4), (2, 1)])) for _ in range(2))
        at = rng.randrange(1, len(whole)) * 8 // (before[0] * before[1])
        first, second = tmp_path / f"{i}a", tmp_path / f"{i}b"
        shape = [{"world": world, "micro": micro, "order": PACKS} for world, micro in (before, after)]
        with tries.one():
            assert -signal.SIGKILL in launch(data=varied, out=first, kill=("train", at), **shape[0])
            assert set(launch(data=varied, out=second, resume=newest(first), **shape[1])) == {0}
            assert per_step(first, second) == whole, (before, after, at)
