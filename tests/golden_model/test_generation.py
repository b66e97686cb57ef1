"""Greedy answers through the KV cache: the authors' ids, and their logits of every step."""

import pytest
import torch

pytestmark = pytest.mark.golden_model


@pytest.fixture
def model(generated_case, tmp_path):
    return generated_case.load(tmp_path)


def generate(case, model, rows):
    batch = case.questions(model, rows)
    count, pad = case.config["max_new_tokens"], case.config["pad_token_id"]
    return model.generate(batch, max_new_tokens=count, pad_token_id=pad).tolist()


def test_answers_are_the_authors(generated_case, model):
    for row in range(len(generated_case.ids)):
        expected = generated_case.outputs[f"generated_ids.{row}"].tolist()
        assert generate(generated_case, model, [row]) == [expected]


def test_answers_of_one_left_padded_batch_are_the_authors(generated_case, model):
    """Which their code cannot do."""
    rows = list(range(len(generated_case.ids)))
    assert generate(generated_case, model, rows) == [
        generated_case.outputs[f"generated_ids.{row}"].tolist() for row in rows
    ]


@torch.no_grad()
def test_logits_of_every_step_are_the_authors(generated_case, model, close):
    """In one pass without a cache, over the prompt and the answer."""
    for row in range(len(generated_case.ids)):
        answer, theirs = (generated_case.outputs[f"{name}.{row}"] for name in ("generated_ids", "step_logits"))
        batch = generated_case.questions(model, [row])
        batch.input_ids = torch.cat([batch.input_ids, answer[None, :-1]], dim=1)
        new = torch.ones_like(answer[None, :-1])
        batch.attention_mask = torch.cat([batch.attention_mask, new], dim=1)
        batch.visual_mask = torch.cat([batch.visual_mask, torch.zeros_like(new, dtype=torch.bool)], dim=1)
        close(model(batch)[0, -len(answer) :], theirs)
