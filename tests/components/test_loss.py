"""The loss of a decoder whose head sees supervised positions alone, against that of logits of all positions."""

import pytest
import torch
from torch import nn

from dslight.components import LanguageModel
from dslight.nn.head import narrowed
from dslight.nn.loss import next_token_loss
from dslight.train.lora import LoRA, adapt
from dslight.train.units import run_units
from dslight.types import IGNORE, Batch, VisualTokens

GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "llama": GROUPED,
    "llama, tied": GROUPED | {"tie_word_embeddings": True},
    "gemma2": GROUPED | {"head_dim": 8, "final_logit_softcapping": 0.5, "sliding_window": 8},  # saturates
    "cohere": GROUPED | {"logit_scale": 0.25},
    "granite": GROUPED | {"logits_scaling": 3.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bloom": {},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.0},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4},
    "mamba": {"num_attention_heads": None},
    "olmoe": GROUPED | {"num_experts": 4, "num_experts_per_tok": 2},
}
SITES = (1, 2)


def batch(supervised=(5, 0, 2), length=14):
    """Rows of text and slots, padded on the right, of which the last so many real positions are supervised."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 64, (len(supervised), length), generator=generator)
    mask, visual, labels = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, IGNORE)
    for row, count in enumerate(supervised):
        mask[row, length - row :] = 0
        visual[row, 1:4] = row != 1
        labels[row, length - row - count : length - row] = ids[row, length - row - count : length - row]
    return Batch(ids, mask, visual, labels)


def slots(made: Batch, width=32):
    values = torch.randn(3, int(made.visual_mask.sum()), width, generator=torch.Generator().manual_seed(1))
    return values.requires_grad_()


def gradients(lm, loss, values):
    lm.zero_grad()
    values.grad = None
    loss.backward()
    return [values.grad, *(p.grad for p in lm.parameters() if p.requires_grad)]


def both(lm, made):
    """The loss and gradients of all logits, and of the few; and how many positions the head saw each time."""
    values, seen, found = slots(made), [], []
    visual = VisualTokens(values, SITES)
    look = lambda module, args, logits: seen.append(logits.shape[:-1].numel())  # noqa: E731
    handle = None if lm.head is None else lm.head.register_forward_hook(look)
    for run in (
        lambda: next_token_loss(lm(made.input_ids, made.attention_mask, made.visual_mask, visual), made.labels),
        lambda: lm.loss(made, visual),
    ):
        total, count = run()
        found.append((total.detach(), count, gradients(lm, total / count.clamp(min=1), values)))
    if handle is not None:
        handle.remove()
    return found, seen


def same(found):
    (total, count, ours), (expected, number, theirs) = found
    assert count == number
    torch.testing.assert_close(total / count, expected / count, atol=1e-6, rtol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6 * max(1.0, float(other.abs().max())), rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_all_logits(tiny_lm, family):
    eager = family in ("gemma2", "bloom", "mpt", "mamba")
    lm = tiny_lm(family.partition(",")[0], "eager" if eager else "sdpa", **FAMILIES[family]).train()
    found, seen = both(lm, batch())
    same(found)
    assert seen == [3 * 14, 5 + 2]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_beside_the_head_and_checkpointed_layers_change_nothing(tiny_lm, checkpointing):
    lm = tiny_lm(tie_word_embeddings=False).train()
    adapt(lm, LoRA(r=2, target_modules=["lm_head", "q_proj"]))
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    run_units(lm, checkpointing=checkpointing)
    found, seen = both(lm, batch())
    same(found)
    assert seen[-1] == 7
    assert any("lm_head" in name and p.grad is not None and p.grad.any() for name, p in lm.named_parameters())


def test_a_batch_that_teaches_nothing_runs_the_head_all_the_same(tiny_lm):
    """Under sharding every rank has to run every module; the gradient is zero, and there."""
    lm = tiny_lm(tie_word_embeddings=False).train()
    total, count = lm.loss(batch((0, 0)), None)
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in lm.parameters())


class Stranger(LanguageModel):
    """Has logits and says nothing of a head."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.width, self.vocabulary = inner, inner.width, inner.vocabulary

    layers = property(lambda self: self.inner.layers)
    embedding = property(lambda self: self.inner.embedding)
    decoder = property(lambda self: self.inner.decoder)

    def logits(self, input_ids, attention_mask):
        return self.inner.logits(input_ids, attention_mask)


def narrows(lm):
    """Whether logits are made of chosen positions alone."""
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with torch.no_grad(), narrowed(lm.head, 1, ids[0, :1]):
        return lm.logits(ids, torch.ones_like(ids)).shape[1] == 1


def test_a_decoder_without_a_known_head_learns_from_all_logits(tiny_lm):
    lm = Stranger(tiny_lm().train())
    found, _ = both(lm, batch())
    same(found)
    assert not narrows(lm)


def test_a_head_that_the_model_does_not_call_is_noticed(tiny_lm, monkeypatch):
    lm = tiny_lm(tie_word_embeddings=False).train()
    assert narrows(lm)
    other = nn.Linear(32, 64)
    monkeypatch.setattr(type(lm), "head", property(lambda self: other))
    assert not narrows(lm)
    found, _ = both(lm, batch())
    same(found)
