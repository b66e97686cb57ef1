"""Batches that are read one after the other and answered together: the answers are those to each alone."""

import pytest
import torch

from dslight.components import DeepStackL, MLPProjector
from dslight.components import shared_pictures as asking
from dslight.components import waiting as waits
from dslight.components.waiting import Waiting
from dslight.data.collate import Collate, Item
from dslight.data.conversation import IMAGE
from dslight.types import Question
from dslight.vlm import VLM

OPTIONS = {"max_new_tokens": 8, "pad_token_id": 0}


@pytest.fixture
def make_vlm(tiny_encoder, tiny_lm):
    def make(kind="llama", **config):
        return VLM(tiny_encoder(), MLPProjector, DeepStackL(2, start=1), tiny_lm(kind, attention=None, **config)).eval()

    return make


@pytest.fixture
def batches(make_views):
    """``batches(vlm)``: of 3, 2 and 4 questions about a picture each, the longest first."""

    def make(vlm):
        layout, random = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector), torch.Generator().manual_seed(0)
        collate, number, found = Collate(layout, 0, once=True), 0, []
        for lengths in ((9, 8, 6), (5, 5), (4, 3, 2, 1)):
            items = []
            for length in lengths:
                number += 1
                text = torch.randint(3, 64, (length,), generator=random).tolist()
                pixels = [make_views([(1, 1)], seed=number).pixels]
                question = Question(str(number), "?", ("a",), number=number)
                items.append(Item(str(number), [5, IMAGE, *text], None, pixels, [(1, 1)], [(16, 16)], question))
            found.append(collate(items))
        return found

    return make


@torch.inference_mode()
def together(vlm, batches, **options):
    waiting, found = Waiting(), []
    for batch in batches:
        waiting.add(asking.read(vlm.language_model, batch, vlm.see(batch.views), options))
        found += waiting.write(vlm.language_model, **options) if waiting.full else []
    return found + waiting.write(vlm.language_model, **options)


@torch.inference_mode()
def alone(vlm, batches, **options):
    found = [vlm.generate(batch, **options) for batch in batches]
    return [torch.nn.functional.pad(ids, (0, 8 - ids.shape[1])) for ids in found]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_of_batches_written_together_are_those_of_each(make_vlm, batches, kind):
    vlm = make_vlm(kind)
    asked = batches(vlm)
    free = alone(vlm, asked, **OPTIONS)
    for ends in ([], [int(ids[0, row]) for row, ids in enumerate(free)]):
        found = together(vlm, asked, **OPTIONS, eos_token_id=ends)
        assert [len(ids) for ids in found] == [3, 2, 4]
        expected = torch.cat(alone(vlm, asked, **OPTIONS, eos_token_id=ends))
        assert torch.nn.functional.pad(torch.cat(found), (0, 8 - found[0].shape[1])).equal(expected)


def test_a_token_of_all_batches_takes_one_pass_and_answers_that_are_done_none(make_vlm, batches):
    vlm = make_vlm()
    asked = batches(vlm)
    free = torch.cat(alone(vlm, asked, **OPTIONS))
    rows = []
    watch = vlm.language_model.head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    together(vlm, asked, **OPTIONS)
    assert rows == [3, 2, 4, *[9] * 7]
    rows.clear()
    together(vlm, asked, **OPTIONS, eos_token_id=free[:4, 0].tolist())
    watch.remove()
    assert rows[3] < 9


@pytest.mark.parametrize(("most", "bytes_"), [(2, 2**29), (8, 1)])
def test_no_more_wait_than_are_allowed(make_vlm, batches, monkeypatch, most, bytes_):
    monkeypatch.setattr(waits, "MOST", most)
    monkeypatch.setattr(waits, "HOST", bytes_)
    vlm = make_vlm()
    waiting, full = Waiting(), []
    for batch in batches(vlm)[:2]:
        with torch.inference_mode():
            waiting.add(asking.read(vlm.language_model, batch, vlm.see(batch.views), OPTIONS))
        full.append(waiting.full)
    assert full == ([False, True] if most == 2 else [True, True])


def test_what_only_generate_can_answer_does_not_wait(make_vlm, batches):
    vlm = make_vlm("mistral", num_key_value_heads=2, intermediate_size=48, sliding_window=6)
    (batch, *_) = batches(vlm)
    assert asking.read(vlm.language_model, batch, vlm.see(batch.views), OPTIONS) is None
    vlm = make_vlm()
    assert asking.read(vlm.language_model, batch, vlm.see(batch.views), {**OPTIONS, "num_beams": 2}) is None
