"""Questions about the same pictures in one batch: the answers are those to rows that each have their own."""

from functools import partial

import numpy as np
import pytest
import torch

from dslight.components import (
    CrossAttention,
    DeepStack,
    DeepStackL,
    GatedAdd,
    HFCausalLM,
    LowResolution,
    MLPProjector,
    SequenceConcat,
    Stack,
)
from dslight.components.decoders import prefix
from dslight.data.collate import Collate, Item
from dslight.data.conversation import IMAGE
from dslight.types import Question
from dslight.vlm import VLM

SCHEDULERS = {
    "LowResolution": LowResolution,
    "DeepStackL": partial(DeepStackL, crops=3, start=1),
    "SequenceConcat": SequenceConcat,
    "CrossAttention": partial(CrossAttention, num_layers=2, num_crops=3, heads=2, head_dim=8, init=0.5),
    "both sides": lambda: DeepStack([Stack([1, 2, 3])], [Stack([1, 2, 3])]),
    "gated": partial(DeepStackL, crops=3, operation=partial(GatedAdd, init=0.5)),
}
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
SHOWN = ("a", "ab", "a", "", "b", "ab", "a")
"""The pictures of each row."""


@pytest.fixture
def asked(make_views):
    """``asked(vlm, once)``: questions of unequal lengths about two pictures, one with crops."""

    def make(vlm, once, shown=SHOWN, behind=range(1, 8)):
        rng = np.random.default_rng(0)
        grids = {"a": (0, 0), "b": (1, 2)}
        pixels = {
            name: make_views([grid], seed=i, fine=vlm.stacking.fine).pixels
            for i, (name, grid) in enumerate(grids.items())
        }
        layout = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)
        items = []
        for number, (names, length) in enumerate(zip(shown, behind, strict=True)):
            ids = [5, 6, *[IMAGE] * len(names), 7, *rng.integers(3, 64, length).tolist()]
            question = Question(str(number), "?", ("a",), number=number)
            own = [pixels[name] for name in names]
            items.append(Item(str(number), ids, None, own, [grids[n] for n in names], [(16, 16)] * len(own), question))
        return Collate(layout, 0, fine=vlm.stacking.fine, once=once)(items)

    return make


@pytest.fixture
def make_vlm(tiny_encoder, tiny_lm):
    return lambda name="DeepStackL", kind="llama", **config: VLM(
        tiny_encoder(), MLPProjector, SCHEDULERS[name](), tiny_lm(kind, attention=None, **config)
    )


@pytest.mark.parametrize("behind", [True, False], ids=["beginnings once", "pictures once"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_answers_are_those_of_rows_that_each_have_their_own_pictures(make_vlm, asked, monkeypatch, name, behind):
    vlm = make_vlm(name)
    own, once = asked(vlm, False), asked(vlm, True)
    assert once.pictures == [0, 1, 0, 3, 4, 1, 0]
    assert (len(own.views), len(once.views)) == (8, 4)  # a; a and b; b
    taken = []
    if behind:
        read = prefix.read
        monkeypatch.setattr(prefix, "read", lambda *a, **k: taken.append(1) or read(*a, **k))
    else:
        monkeypatch.setattr(HFCausalLM, "shares_beginnings", False)
    with torch.inference_mode():
        expected = vlm.generate(own, max_new_tokens=5, pad_token_id=0)
        assert vlm.generate(once, max_new_tokens=5, pad_token_id=0).equal(expected)
    assert bool(taken) == (behind and name != "CrossAttention")  # which looks at the pictures in every pass


def test_the_visual_tokens_of_every_row_are_those_of_its_own_pictures(make_vlm, asked):
    from dslight.components.shared_pictures import spread

    vlm = make_vlm("SequenceConcat")
    own, once = asked(vlm, False), asked(vlm, True)
    with torch.inference_mode():
        found = spread(vlm.see(once.views), once.visual_mask, once.pictures)
        torch.testing.assert_close(found.slots, vlm.see(own.views).slots)


def test_answers_that_are_done_leave_the_batch_and_are_padded(make_vlm, asked):
    vlm = make_vlm()
    shown, behind = ("a",) * 8, range(1, 9)
    own, once = asked(vlm, False, shown, behind), asked(vlm, True, shown, behind)
    with torch.inference_mode():
        free = vlm.generate(own, max_new_tokens=8, pad_token_id=0)
        ends = [free[0, 0].item(), free[1, 1].item(), free[2, 2].item()]
        options = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": ends}
        expected = vlm.generate(own, **options)
        rows = []
        watch = vlm.language_model.head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        found = vlm.generate(once, **options)
        watch.remove()
    assert found.equal(expected)
    assert rows[:2] == [1, 8]  # the beginning, once
    assert rows[-1] < 8


@pytest.mark.parametrize(
    ("kind", "config", "shares"),
    [
        ("llama", {}, True),
        ("qwen3", {**GROUPED, "head_dim": 8}, True),
        ("gpt_neox", {"intermediate_size": 48}, True),
        ("gpt2", {}, True),
        ("mistral", {**GROUPED, "sliding_window": 6}, False),
        ("gemma2", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}, False),
        ("mamba", {"num_attention_heads": None, "state_size": 8}, False),
    ],
)
def test_a_decoder_shares_beginnings_where_its_copy_shows_that_it_can(make_vlm, asked, kind, config, shares):
    vlm = make_vlm("DeepStackL", kind, **config)
    assert vlm.language_model.shares_beginnings == shares
    own, once = asked(vlm, False), asked(vlm, True)
    with torch.inference_mode():
        expected = vlm.generate(own, max_new_tokens=4, pad_token_id=0)
        assert vlm.generate(once, max_new_tokens=4, pad_token_id=0).equal(expected)


def test_of_rows_that_are_the_same_one_token_is_left_to_answer_behind():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8], [0, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    for rows, length in (([0, 1], 3), ([0, 1, 2], 2)):  # the third is how the others begin
        found = prefix.beginnings(ids[rows], mask[rows], torch.zeros(len(rows), 4, dtype=torch.bool), [0] * len(rows))
        assert found is not None
        assert found.lengths == [length]
        _, real = prefix.rests(found, ids[rows])
        assert real.sum(1).min() == 1


def test_settings_of_generate_that_change_the_likeliest_token_are_left_to_it(make_vlm):
    lm = make_vlm().language_model
    assert lm.shares_beginnings
    lm.model.generation_config.repetition_penalty = 1.1
    assert not lm.shares_beginnings


def test_nothing_is_taken_apart_where_little_would_be_saved():
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    mask, visual = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    found = prefix.beginnings(ids, mask, visual, [0, 0])
    assert found.lengths == [3]
    assert prefix.beginnings(ids, mask, visual, [0, 1]) is None
    visual[1, 3] = True  # a picture behind what both share
    assert prefix.beginnings(ids, mask, visual, [0, 0]) is None
