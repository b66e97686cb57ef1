"""The order of training and validation, as a function."""

from collections import Counter

import numpy as np
import pytest

from dslight.data.plan import Order, PlanSource, TrainPlan, accumulation, apportion, eval_share, question_rows

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


# --- windows, groups and packs
# -----------------------------------------------------------------------------------------------


def measured(order: Order, global_batch: int = 8, seed: int = 3, records: int = 400, **settings) -> TrainPlan:
    """Three sources of weights 1, 2.5 and 0.3, a third of them text, in shards of 20."""
    rng = np.random.default_rng(7)
    sources = []
    for name, weight in (("a", 1.0), ("b", 2.5), ("c", 0.3)):
        lengths = np.clip(rng.lognormal(4, 0.7, records), 5, 700).astype(np.int32)
        lengths[rng.random(records) < 0.3] *= -1
        sources.append(PlanSource(name, records, weight, np.full(records // 20, 20), lengths))
    return TrainPlan(tuple(sources), seed, global_batch, order, max_length=512, **settings)


ORDERS = [
    Order(),
    Order(window=3),
    Order(group_by=["length"]),
    Order(group_by=["modality", "length"]),
    Order(window=3, group_by=["modality", "length"]),
    Order(pack=True),
    Order(pack=True, pack_window=100, window=3, group_by=["modality"]),
]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("epoch", range(4))
def test_every_order_shows_each_source_as_asked_to_within_one_record(order, epoch):
    plan = measured(order, global_batch=12)  # 8 of the 1520 records make no whole batch
    packs = plan.packs(epoch)
    assert len(packs) == plan.items == plan.steps * 12
    shown = np.bincount(np.searchsorted(plan.starts, packs.records, side="right") - 1, minlength=3)
    asked = len(packs.records) * np.array([1, 2.5, 0.3]) / 3.8
    assert np.abs(shown - asked).max() < 1
    times = np.bincount(packs.records, minlength=1200).reshape(3, 400)
    assert times.max(1).tolist() == [1, 3, 1]
    assert (times[1] < 2).sum() <= 1520 - len(packs.records)  # only what is left out of the epoch
    left_out = 1520 - len(packs.records)
    assert left_out < (80 if order.pack else 12)


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_every_order_is_a_function_and_differs_between_epochs(order):
    plan = measured(order)
    assert plan.epoch(2).tolist() == measured(order).epoch(2).tolist()
    assert plan.epoch(2).tolist() != plan.epoch(3).tolist()
    assert plan.epoch(0).tolist() == plan.epoch(0).tolist()
    assert plan.epoch(2).tolist() != measured(order, seed=4).epoch(2).tolist()


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_ranks_and_accumulation_cut_the_same_items_of_every_order(order):
    plan = measured(order)
    steps = []
    for world, micro in ((1, 8), (2, 2), (8, 1), (4, 2)):
        ranks = [list(plan.micro_batches(1, 16, rank, world, micro)) for rank in range(world)]
        rounds = accumulation(8, world, micro)
        assert {len(rank) for rank in ranks} == {(plan.steps - 2) * rounds}
        steps.append(
            [
                Counter(item for rank in ranks for batch in rank[step * rounds :][:rounds] for item in batch)
                for step in range(plan.steps - 2)
            ]
        )
    assert all(other == steps[0] for other in steps[1:])


def test_a_window_keeps_reading_near():
    """Shards are opened in windows of 3: at any place in the epoch few are in use, and each is done once."""
    plan = measured(Order(window=3), global_batch=1)
    records = plan.epoch(0)
    shard = records // 20
    last = {int(s): int(np.flatnonzero(shard == s)[-1]) for s in set(shard.tolist())}
    first = {int(s): int(np.flatnonzero(shard == s)[0]) for s in set(shard.tolist())}
    once = [s for s in last if s < 20]  # the source that is shown once
    assert max(last[s] - first[s] for s in once) < 3 * 20
    assert measured(Order(), global_batch=1).epoch(0).tolist() != records.tolist()
    whole = measured(Order(window=10_000), global_batch=1).epoch(0)
    spans = [np.ptp(np.flatnonzero(whole // 20 == s)) for s in once]
    assert min(spans) > 3 * 20


def test_a_batch_is_all_images_or_all_text_where_that_is_possible():
    plan = measured(Order(group_by=["modality", "length"]))
    texts = np.concatenate([source.lengths < 0 for source in plan.sources])
    batches = texts[plan.epoch(0)].reshape(-1, 8)
    mixed = (batches.any(1) & ~batches.all(1)).sum()
    assert mixed <= 1
    assert 0.2 < batches.all(1).mean() < 0.4
    plain = texts[measured(Order()).epoch(0)].reshape(-1, 8)
    assert (plain.any(1) & ~plain.all(1)).mean() > 0.8


def test_lengths_are_sorted_in_mega_batches_whose_batches_are_shuffled():
    """Against the rule written out: 50 batches at a time, sorted, cut."""
    plan = measured(Order(group_by=["length"]))
    sequence = measured(Order()).epoch(0)
    expected = set()
    for start in range(0, len(sequence), 50 * 8):
        mega = sorted(plan.lengths[sequence[start : start + 50 * 8]].tolist(), reverse=True)
        expected |= {tuple(mega[i : i + 8]) for i in range(0, len(mega), 8)}
    batches = [tuple(batch) for batch in plan.lengths[plan.epoch(0)].reshape(-1, 8).tolist()]
    assert set(batches) == expected
    assert [batch[0] for batch in batches] != sorted((batch[0] for batch in batches), reverse=True)
    grouped, plain = plan.padding(4)
    assert grouped < 0.1 < 0.3 < plain


def test_a_pack_never_exceeds_the_row_and_wastes_little():
    plan = measured(Order(pack=True))
    for epoch in range(3):
        packs = plan.packs(epoch)
        rows = [int(plan.lengths[packs[i]].sum()) for i in range(len(packs))]
        assert max(rows) <= 512
    packed, plain = plan.padding(4)
    brute = [rows[i : i + 4] for i in range(0, len(rows), 4)]
    assert abs(1 - sum(map(sum, brute)) / sum(4 * max(batch) for batch in brute) - plan.padding(4, epoch=2)[0]) < 1e-9
    assert packed < 0.08 < 0.3 < plain


def test_packs_of_one_modality_share_batches():
    plan = measured(Order(pack=True, group_by=["modality"]))
    texts = np.concatenate([source.lengths < 0 for source in plan.sources])
    packs = plan.packs(1)
    kinds = np.array([texts[packs[i]].mean() for i in range(len(packs))])
    assert set(kinds) == {0.0, 1.0}
    batches = kinds.reshape(-1, 8)
    assert ((batches.mean(1) > 0) & (batches.mean(1) < 1)).sum() <= 1


@pytest.mark.parametrize("seed", range(30))
def test_all_epochs_of_packs_have_equally_many_steps(seed):
    """Few, coarse records: epochs pack better and worse than the first, which sets the number."""
    rng = np.random.default_rng(seed)
    sources = tuple(
        PlanSource(n, 40, w, None, rng.integers(20, 70, 40).astype(np.int32)) for n, w in (("a", 1), ("b", 0.5))
    )
    plan = TrainPlan(sources, seed, 4, Order(pack=True, pack_window=7), max_length=100)
    for epoch in range(6):
        packs = plan.packs(epoch)
        assert len(packs) == plan.items
        assert max(plan.lengths[packs[i]].sum() for i in range(len(packs))) <= 100
        shown = np.bincount(packs.records // 40, minlength=2)
        assert np.abs(shown - len(packs.records) * np.array([2, 1]) / 3).max() < 1


def test_records_that_cannot_share_rows_are_packs_by_themselves():
    plan = TrainPlan((PlanSource("a", 54, 1, None, np.full(54, 60, np.int32)),), 0, 8, Order(pack=True), 100)
    for epoch in range(3):
        assert plan.packs(epoch).sizes.tolist() == [1] * 48


def test_the_hash_knows_order_lengths_and_text():
    plans = [
        *(measured(order) for order in ORDERS),
        measured(Order(pack=True), text={"model.language_model (tokenizer)": "1"}),
        measured(Order(pack=True, pack_window=10)),
        measured(Order(window=2)),
        measured(Order(), text={"model.language_model (tokenizer)": "1"}),
    ]
    assert len({plan.hash for plan in plans}) == len(plans)


def test_orders_that_cannot_work_are_refused_by_name():
    with pytest.raises(ValueError, match=r"data\.order\.window: must be at least 1, got 0"):
        Order(window=0)
    with pytest.raises(ValueError, match=r"data\.order\.group_by: 'size' is neither modality nor length"):
        Order(group_by=["size"])
    with pytest.raises(ValueError, match=r"data\.order\.group_by: length has no use with pack"):
        Order(group_by=["length"], pack=True)
    with pytest.raises(ValueError, match=r"data\.train\[0\]: the lengths of its records are not known"):
        TrainPlan((PlanSource("a", 5),), 0, 1, Order(pack=True))
    with pytest.raises(ValueError, match=r"data\.global_batch_size: 16 is more than the 5 items"):
        TrainPlan((PlanSource("a", 5, 1, None, np.ones(5, np.int32)),), 0, 16, Order(pack=True), 10)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_shared_out_differs_from_its_share_by_less_than_one(seed):
    rng = np.random.default_rng(seed)
    shares = rng.random(12) * 50
    total = int(rng.integers(int(shares.sum()) + 1))
    counts = apportion(total, shares, np.ceil(shares).astype(int))
    assert counts.sum() == total
    assert np.abs(counts - total * shares / shares.sum()).max() < 1
    assert (counts <= np.ceil(shares)).all()


def test_a_stand_in_for_a_packed_record_is_not_longer():
    plan = measured(Order(pack=True))
    for record in range(0, 1200, 7):
        assert plan.lengths[plan.spare(record, 1)] <= plan.lengths[record]


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
