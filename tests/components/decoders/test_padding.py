"""Unequal rows of decoders that cannot pad on the left: passes with padding moved behind, answers in groups."""

import pytest
import torch
from torch import Tensor

from dslight.components import HFCausalLM
from dslight.components.decoders.padding import behind, chosen, grouped, groups
from dslight.matrix.tiny import tiny
from dslight.types import Memory, VisualTokens

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])


def test_padding_is_moved_behind_a_row_and_its_logits_back():
    ids = torch.arange(20).view(4, 5)
    given: list[Tensor] = []

    def rows(ids: Tensor, mask: Tensor) -> Tensor:
        given.extend((ids, mask))
        return ids[..., None] * torch.tensor([1, 10])

    logits = behind(MASK, rows, ids, MASK)
    assert given[0].tolist() == [[2, 3, 4, 0, 1], [5, 6, 7, 8, 9], [12, 13, 14, 10, 11], [16, 17, 18, 19, 15]]
    assert given[1].tolist()[0] == [1, 1, 1, 0, 0]
    assert torch.equal(logits, ids[..., None] * torch.tensor([1, 10]))


def test_rows_of_equal_length_are_a_group_and_every_row_is_in_one():
    assert sorted(rows.tolist() for rows in groups(MASK)) == [[0, 2], [1], [3]]


def test_a_group_takes_its_own_visual_tokens_and_images():
    visual_mask = torch.zeros(4, 5, dtype=torch.bool)
    visual_mask[0, 2:4] = visual_mask[1, 0:3] = visual_mask[2, 4:] = True
    slots = torch.arange(12.0).view(2, 6, 1)
    memory = Memory(torch.arange(9.0)[:, None], (4, 3, 2), (2, 3, 1), [], ())
    found = chosen(VisualTokens(slots, (1,), memory=memory), visual_mask, torch.tensor([0, 2]))
    assert found is not None
    assert found.memory is not None
    assert found.slots[0, :, 0].tolist() == [0, 1, 5]
    assert found.memory.tokens[:, 0].tolist() == [0, 1, 2, 3, 7, 8]
    assert (found.memory.counts, found.memory.slots) == ((4, 2), (2, 1))


def test_answers_of_groups_are_put_together_in_the_order_of_the_batch():
    def generate(ids: Tensor, attention: Tensor, mask: Tensor, visual: None, **_: object) -> Tensor:
        assert bool(attention.all())
        return ids[:, :1].expand(-1, ids.shape[1] - 2)  # a shorter prompt has a shorter answer

    ids = torch.arange(20).view(4, 5)
    answers = grouped(generate, ids, MASK, torch.zeros_like(ids, dtype=torch.bool), None, pad_token_id=99)
    assert answers.tolist() == [[2, 99, 99], [5, 5, 5], [12, 99, 99], [16, 16, 99]]


@pytest.mark.parametrize(("kind", "beams"), [("bart", 2), ("rwkv", 1)])  # transformers has no beams for a state
def test_answers_of_unequal_rows_are_those_of_the_rows_alone(kind, beams):
    torch.manual_seed(0)
    lm = HFCausalLM(config=tiny(kind)).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    ids, none = torch.randint(5, 55, (4, 5)), torch.zeros(4, 5, dtype=torch.bool)
    options = {"max_new_tokens": 3, "num_beams": beams, "num_return_sequences": beams, "pad_token_id": 0}
    together = lm.generate(ids, MASK, none, None, **options).unflatten(0, (4, beams))
    for row, length in enumerate(MASK.sum(1).tolist()):
        alone = ids[row : row + 1, -length:]
        expected = lm.generate(alone, torch.ones_like(alone), none[:1, -length:], None, **options)
        assert torch.equal(together[row], expected)
