"""The order of training and validation, as a function."""

from collections import Counter

import numpy as np
import pytest

from dslight.data.plan import PlanSource, TrainPlan, accumulation, eval_share, question_rows

MIX = TrainPlan((PlanSource("a", 100), PlanSource("b", 40, 2.5), PlanSource("c", 30, 0.5)), seed=3, global_batch=10)


def source_of(record: int) -> str:
    return "abc"[int(np.searchsorted(MIX.starts, record, side="right")) - 1]


def test_an_epoch_has_every_source_as_often_as_its_weight_says():
    order = TrainPlan(MIX.sources, seed=3, global_batch=1).epoch(0)
    assert Counter(source_of(record) for record in order) == {"a": 100, "b": 100, "c": 15}
    times = Counter(order.tolist())
    assert {times[record] for record in range(100)} == {1}
    assert Counter(times[record] for record in range(100, 140)) == {2: 20, 3: 20}
    assert Counter(times[record] for record in range(140, 170)) == {0: 15, 1: 15}


def test_the_remainder_is_dropped_at_the_global_batch():
    assert (MIX.steps, MIX.items, len(MIX.epoch(0))) == (21, 210, 210)


def test_epochs_differ_and_are_the_same_again_when_asked_again():
    assert (MIX.epoch(0) != MIX.epoch(1)).any()
    assert (MIX.epoch(5) == TrainPlan(MIX.sources, 3, 10).epoch(5)).all()
    assert (MIX.epoch(0) != TrainPlan(MIX.sources, 4, 10).epoch(0)).any()
    halves = [{record for record in MIX.epoch(e).tolist() if source_of(record) == "c"} for e in (0, 1)]
    assert halves[0] != halves[1]


@pytest.mark.parametrize(("world", "micro"), [(1, 10), (1, 2), (2, 5), (5, 1), (5, 2), (10, 1)])
def test_ranks_and_accumulation_only_cut_the_same_global_batches(world, micro):
    rounds = accumulation(10, world, micro)
    ranks = [MIX.micro_batches(2, 30, rank, world, micro) for rank in range(world)]
    assert {(len(rank), *rank[0].shape) for rank in ranks} == {((21 - 3) * rounds, micro)}
    for step in range(18):
        together = [record for rank in ranks for batch in list(rank)[step * rounds :][:rounds] for record in batch]
        assert sorted(together) == sorted(MIX.epoch(2)[(step + 3) * 10 :][:10])


def test_the_hash_changes_with_all_that_changes_the_order():
    others = [
        TrainPlan(MIX.sources, 4, 10),
        TrainPlan(MIX.sources, 3, 5),
        TrainPlan(MIX.sources[:2], 3, 10),
        TrainPlan(MIX.sources[::-1], 3, 10),
        TrainPlan((*MIX.sources[:2], PlanSource("c", 30, 0.4)), 3, 10),
        TrainPlan((*MIX.sources[:2], PlanSource("d", 30, 0.5)), 3, 10),
    ]
    assert len({MIX.hash, *(plan.hash for plan in others)}) == 7
    assert TrainPlan(MIX.sources, 3, 10).hash == MIX.hash


def test_sizes_that_cannot_work_are_refused_by_name():
    with pytest.raises(ValueError, match=r"data\.global_batch_size: 10 is no multiple of 4 ranks x data"):
        accumulation(10, 4, 1)
    with pytest.raises(ValueError, match=r"data\.global_batch_size: 8 is more than the 5 items"):
        TrainPlan((PlanSource("a", 5),), 0, 8)
    with pytest.raises(ValueError, match=r"data\.train\[1\]\.weight: 0"):
        TrainPlan((PlanSource("a", 5), PlanSource("b", 5, 0)), 0, 1)


@pytest.mark.parametrize(("items", "world"), [(10, 1), (10, 3), (2, 4), (8, 2)])
def test_validation_shares_are_equally_long_and_cover_every_item_once(items, world):
    shares = [eval_share(items, rank, world) for rank in range(world)]
    assert len({len(numbers) for numbers, _ in shares}) == 1
    valid = np.concatenate([numbers[flags] for numbers, flags in shares])
    assert valid.tolist() == list(range(items))


def test_questions_find_their_record():
    assert question_rows(np.array([2, 0, 3])).tolist() == [0, 0, 2, 2, 2]


def test_a_stand_in_is_the_same_everywhere_and_spreads_over_the_data():
    chosen = [MIX.spare(record, 1) for record in range(170)]
    assert chosen == [MIX.spare(record, 1) for record in range(170)]
    assert len(set(chosen)) > 80
    assert MIX.spare(0, 1) != MIX.spare(0, 2)
