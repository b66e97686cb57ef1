"""Packed rows: the packing itself against brute force, and what a model makes of them against the documents alone."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from dslight.components import HFCausalLM
from dslight.data.collate import Collate, Item
from dslight.data.conversation import IMAGE
from dslight.data.packing import Packs, best_fit_decreasing, pack, singles
from dslight.data.sample import BadSample
from dslight.layout import SlotLayout
from dslight.nn.loss import next_token_loss
from dslight.types import IGNORE, Memory, VisualTokens

# --- which documents share a row
# -----------------------------------------------------------------------------------------------


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The number of the bin of every item, by trying every bin."""
    room: list[int] = []
    bins = [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fitting = [b for b in range(len(room)) if room[b] >= lengths[item]]
        if not fitting:
            room.append(capacity)
            fitting = [len(room) - 1]
        best = min(room[b] for b in fitting)
        bins[item] = max(b for b in fitting if room[b] == best)
        room[bins[item]] -= lengths[item]
    return bins


@pytest.mark.parametrize("seed", range(20))
def test_every_item_goes_where_trying_all_bins_would_put_it(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 65, 200)
    bins = best_fit_decreasing(lengths, 64)
    filled = np.bincount(bins, weights=lengths)
    slow = np.bincount(slow_best_fit(lengths.tolist(), 64), weights=lengths)
    assert filled.max() <= 64
    assert sorted(filled) == sorted(slow)


@pytest.mark.parametrize("seed", range(5))
def test_few_items_take_at_most_eleven_ninths_of_the_fewest_bins_possible(seed):
    """The bound of best fit decreasing (11/9 of the optimum, plus a bin), with the optimum found by trying."""
    lengths = np.random.default_rng(seed).integers(1, 11, 6)
    best = min(
        max(split) + 1
        for split in itertools.product(range(6), repeat=6)
        if np.bincount(split, weights=lengths).max() <= 10
    )
    assert best_fit_decreasing(lengths, 10).max() + 1 <= 11 / 9 * best + 1


def test_what_fits_no_bin_is_refused():
    with pytest.raises(ValueError, match="lengths from 3 to 11; packs take 1 to 10"):
        best_fit_decreasing(np.array([3, 11]), 10)


def test_packs_hold_every_record_once_and_only_neighbours():
    rng = np.random.default_rng(0)
    records, lengths = rng.permutation(1000), rng.integers(1, 100, 1000)
    packs = pack(records, lengths, 128, 100, np.random.default_rng(1))
    assert sorted(packs.records.tolist()) == list(range(1000))
    place = np.empty(1000, dtype=int)
    place[records] = np.arange(1000)
    size_of = dict(zip(records.tolist(), lengths.tolist(), strict=True))
    for i in range(len(packs)):
        assert sum(size_of[record] for record in packs[i].tolist()) <= 128
        assert len(set(place[packs[i]] // 100)) == 1
    holders = [
        {i for i in range(len(packs)) if record in packs[i]}.pop() for record in longest_of(records, lengths, 100)
    ]
    firsts = [min(i for i in range(len(packs)) if place[packs[i][0]] // 100 == window) for window in range(10)]
    assert sum(holder == first for holder, first in zip(holders, firsts, strict=True)) < 4  # unshuffled: all of them


def longest_of(records: np.ndarray, lengths: np.ndarray, window: int) -> list[int]:
    return [int(records[i + lengths[i : i + window].argmax()]) for i in range(0, len(records), window)]


def test_packs_are_taken_and_split_without_losing_a_record():
    packs = Packs(np.arange(10, 20), np.array([0, 4, 5, 10]))
    assert packs.take(np.array([2, 0])).records.tolist() == [15, 16, 17, 18, 19, 10, 11, 12, 13]
    for total in range(3, 11):
        split = packs.split(total)
        assert len(split) == total
        assert split.records.tolist() == list(range(10, 20))
        assert split.sizes.min() >= 1
    assert packs.split(5).sizes.tolist() == [3, 1, 1, 4, 1]
    assert len(packs.split(2)) == 3
    with pytest.raises(ValueError, match="10 records cannot be 11 packs"):
        packs.split(11)
    assert [pack.tolist() for pack in (singles(np.array([5, 3]))[i] for i in range(2))] == [[5], [3]]


# --- how a packed row looks
# -----------------------------------------------------------------------------------------------

X, PAD = IGNORE, 9
TEXT = Item("text", [1, 2, 3], [X, 2, 3])
PHOTO = Item("photo", [1, IMAGE, 4], [1, X, 4], [torch.zeros(1, 3, 2, 2, dtype=torch.uint8)], [(0, 0)], [(2, 2)])
LATER = replace(PHOTO, key="later", ids=[5, 6, IMAGE, 7], labels=[X, 6, X, 7])
COLLATE = Collate(SlotLayout((1, 2)), PAD, max_length=10)


def test_a_pack_is_its_documents_one_after_the_other():
    batch = COLLATE([(PHOTO, TEXT), (TEXT,)])
    assert batch.input_ids.tolist() == [[1, PAD, PAD, 4, 1, 2, 3], [1, 2, 3, PAD, PAD, PAD, PAD]]
    assert batch.segments is not None
    assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1] * 7, [1] * 3 + [0] * 4]
    assert batch.visual_mask[0].tolist() == [False, True, True] + [False] * 4
    assert list(batch.keys) == ["photo", "text", "text"]


def test_no_document_is_taught_to_follow_another():
    batch = COLLATE([(TEXT, PHOTO)])
    assert batch.labels is not None
    assert batch.labels.tolist() == [[X, 2, 3, X, X, X, 4]]  # PHOTO alone has a label at its first position


def test_rows_that_are_not_packed_have_no_segments():
    assert COLLATE([PHOTO, TEXT]).segments is None


def test_a_document_that_is_dropped_leaves_its_pack_and_an_empty_pack_keeps_its_row():
    nothing = Item("nothing", [1, 2], [X, X])
    batch = replace(COLLATE, on_unusable="drop")([(TEXT, nothing, TEXT), (nothing,)])
    assert batch.segments is not None
    assert batch.segments.tolist() == [[1, 1, 1, 2, 2, 2], [1, 0, 0, 0, 0, 0]]
    assert list(batch.dropped) == ["nothing", "nothing"]
    assert batch.labels is not None
    assert (batch.labels[1] == X).all()


def test_a_pack_above_the_limit_is_an_error_not_a_cut():
    with pytest.raises(BadSample, match=r"photo, photo, photo: 12 positions in one pack, data\.max_length is 10"):
        COLLATE([(PHOTO, PHOTO, PHOTO)])


# --- what a model makes of it
# -----------------------------------------------------------------------------------------------

STACKS, SITES = 2, (0, 2)


def documents() -> list[Item]:
    rng = np.random.default_rng(0)
    made = []
    for i, length in enumerate((7, 12, 1, 9, 16, 5)):
        ids = rng.integers(10, 64, length).tolist()
        labels = [token if rng.random() < 0.6 else X for token in ids]
        item = Item(f"d{i}", ids, [*labels[:-1], ids[-1]])
        if i % 2 == 0 and length > 1:
            where = int(rng.integers(length - 1))
            pixels = PHOTO.pixels
            ids, labels = [*ids[:where], IMAGE, *ids[where:]], [*item.labels[:where], X, *item.labels[where:]]
            item = Item(f"d{i}", ids, labels, pixels, [(0, 0)], [(2, 2)])
        made.append(item)
    return made


def summed_loss(lm: HFCausalLM, batch, slots: torch.Tensor):
    visual = VisualTokens(slots, SITES)
    logits = lm(batch.input_ids, batch.attention_mask, batch.visual_mask, visual, batch.segments)
    return next_token_loss(logits, batch.labels)


def gradients(lm: HFCausalLM, slots: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None} | {"slots": slots.grad}
    lm.zero_grad()
    slots.grad = None
    return {name: grad.clone() for name, grad in found.items()}


KINDS = [
    ("llama", {}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    ("phi3", {}),
    ("phi3", {"sliding_window": 5}),
    ("gemma3_text", {"sliding_window": 5}),
    ("gemma3_text", {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    ("gpt2", {}),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("kind", "config"), KINDS, ids=lambda value: value if isinstance(value, str) else str(value))
def test_loss_and_gradients_are_those_of_the_documents_alone(kind, config, attention, tiny_lm):
    """With visual slots and stacks; each document is a batch of its own, so nothing is padded or masked there."""
    lm = tiny_lm(kind, attention, **config)
    collate = Collate(SlotLayout((1, 3)), PAD, max_length=40)
    items = documents()
    slots = torch.randn(STACKS + 1, 3 * sum(len(i.pixels) for i in items), lm.width, requires_grad=True)
    total, count, used = torch.zeros(()), 0, 0
    for item in items:
        batch = collate([item])
        own = slots[:, used : used + int(batch.visual_mask.sum())]
        used += own.shape[1]
        loss, tokens = summed_loss(lm, batch, own)
        total, count = total + loss, count + int(tokens)
    total.backward()
    expected = gradients(lm, slots)
    packed, tokens = summed_loss(lm, collate([tuple(items[:4]), tuple(items[4:])]), slots)
    packed.backward()
    assert int(tokens) == count
    torch.testing.assert_close(packed, total, rtol=1e-5, atol=0)
    found = gradients(lm, slots)
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_document_does_not_notice_its_neighbours(kind, tiny_lm):
    lm = tiny_lm(kind, sliding_window=5) if kind == "gemma3_text" else tiny_lm(kind)
    collate = Collate(SlotLayout((1, 3)), PAD, max_length=40)
    first, second = documents()[1], documents()[3]
    other = replace(first, ids=[token ^ 1 for token in first.ids])
    a, b = collate([(first, second)]), collate([(other, second)])
    with torch.no_grad():
        logits = [lm(x.input_ids, x.attention_mask, x.visual_mask, None, x.segments) for x in (a, b)]
    length = len(first.ids)
    assert (logits[0][:, :length] != logits[1][:, :length]).any()
    torch.testing.assert_close(logits[0][:, length:], logits[1][:, length:], rtol=0, atol=0)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


@pytest.mark.parametrize(
    ("config", "attention", "why"),
    [
        ({"model_type": "llama", **SMALL}, "flex_attention", "llama: attention 'flex_attention' takes no mask"),
        ({"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}, None, "bloom: its positions cannot"),
        ({"model_type": "falcon", **SMALL, "alibi": True}, None, "falcon: its positions cannot begin anew"),
        (
            {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2},
            None,
            "mamba: layers of linear_attention run on",
        ),
        (
            {"model_type": "lfm2", **SMALL, "layer_types": ["conv", "full_attention"]},
            None,
            "lfm2: layers of conv run on",
        ),
    ],
    ids=["flex_attention", "bloom", "falcon", "mamba", "lfm2"],
)
def test_decoders_whose_documents_cannot_be_told_apart_are_refused_by_name(config, attention, why):
    with torch.device("meta"):
        lm = HFCausalLM(config=config, attention=attention)
    with pytest.raises(ValueError, match=rf"data\.order\.pack: {why}"):
        lm.check_packing()


def test_cross_attention_is_refused(tiny_lm):
    lm = tiny_lm()
    batch = COLLATE([(PHOTO, TEXT)])
    memory = Memory(torch.zeros(4, lm.width), (4,), (2,), [], ())
    with pytest.raises(ValueError, match=r"data\.order\.pack: cross-attention reads the images of a whole row"):
        lm(
            batch.input_ids,
            batch.attention_mask,
            batch.visual_mask,
            VisualTokens(torch.zeros(1, 2, lm.width), memory=memory),
            batch.segments,
        )
