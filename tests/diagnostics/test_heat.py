"""Gradients are those of finite differences, and what a readout looks at is where the heat is."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dslight.components import IdentityProjector, LanguageModel
from dslight.diagnostics.groups import Groups
from dslight.diagnostics.heat import relevance
from dslight.diagnostics.places import panels, to_patches
from dslight.nn.intervention import intervene
from dslight.types import IGNORE
from dslight.vlm import VLM

from .conftest import SCHEDULERS
from .test_places import WIDTH, Brightness


def likelihood(vlm, batch, act) -> float:
    """Of the labels given what is before them, by torch's own softmax."""
    with torch.no_grad(), intervene(act):
        told = vlm(batch).double().log_softmax(-1)[:, :-1]
    labels = batch.labels[:, 1:]
    return float(told.gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != IGNORE].sum())


def scaled(groups, inside, slot, token, factor):
    """The token of a slot (0: the base) of one side, times ``factor``."""

    def act(injection):
        if groups.inside(injection) != inside:
            return injection
        if slot == 0:
            fill = injection.fill.clone()
            fill[token] *= factor
            return replace(injection, fill=fill)
        stacks = injection.stacks.clone()
        stacks[slot - 1, token] *= factor
        return replace(injection, stacks=stacks)

    return act


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("name", ["DeepStackL", "gated by the decoder", "both sides", "DeepStackHD", "LowResolution"])
def test_gradient_times_input_is_the_derivative_by_a_tokens_scale(make_vlm, ask, name, trains):
    """By central differences; norms of transformers compute in float32 whatever the model is in."""
    vlm = make_vlm(name).double().requires_grad_(trains)
    batch, groups, eps = ask(vlm, [[(2, 2)]]), Groups(vlm), 1e-2
    found = relevance(vlm, batch)
    assert found.slots.shape == (1 + len(vlm.stacking.sites), int(batch.visual_mask.sum()))
    tried = [(False, slot, token) for slot in range(len(found.slots)) for token in (0, 7)]
    tried += [(True, slot + 1, token) for slot in range(len(found.inside)) for token in (0, 7)]
    assert len(tried) >= 2
    for inside, slot, token in tried:
        up, down = (likelihood(vlm, batch, scaled(groups, inside, slot, token, 1 + sign * eps)) for sign in (1, -1))
        ours = float(found.inside[slot - 1, token] if inside else found.slots[slot, token])
        torch.testing.assert_close(ours, (up - down) / (2 * eps), rtol=1e-2, atol=1e-3)
    assert found.slots.abs().max() > 1e-3
    assert all(parameter.grad is None for parameter in vlm.parameters())
    torch.testing.assert_close(found.log_likelihood, likelihood(vlm, batch, lambda x: x), rtol=1e-5, atol=1e-5)


def test_the_norm_of_the_gradient_knows_no_sign(make_vlm, ask):
    vlm = make_vlm("DeepStackL")
    batch = ask(vlm, [[(2, 2)]])
    signed, norm = relevance(vlm, batch), relevance(vlm, batch, "gradient")
    assert (signed.slots < 0).any()
    assert (norm.slots > 0).all()
    visual = vlm.see(batch.views)
    lengths = visual.slots.detach().norm(dim=-1)
    assert (signed.slots.abs() <= norm.slots * lengths + 1e-5).all()  # Cauchy and Schwarz


def test_it_works_inside_of_a_validation(make_vlm, ask):
    vlm = make_vlm("both sides")
    batch = ask(vlm, [[(2, 2)]])
    expected = relevance(vlm, batch)
    with torch.inference_mode():
        torch.testing.assert_close(relevance(vlm, batch).slots, expected.slots)


def test_a_batch_of_text_has_no_heat(make_vlm, ask):
    vlm = make_vlm("both sides")
    found = relevance(vlm, ask(vlm, [[]]))
    assert found.slots.shape == (5, 0)
    assert not found.inside.any()


class Readout(LanguageModel):
    """Answers with the residual stream of one visual position, and sees nothing else."""

    width, vocabulary = WIDTH, WIDTH

    def __init__(self, position: int) -> None:
        super().__init__()
        self.position = position
        self.embed = nn.Embedding(64, WIDTH)
        self.steps = nn.ModuleList(nn.Identity() for _ in range(5))

    layers = property(lambda self: self.steps)
    embedding = property(lambda self: self.embed)
    decoder = property(lambda self: self)

    def logits(self, input_ids, attention_mask):
        hidden = self.embed(input_ids)
        for layer in self.steps:
            hidden = layer(hidden)
        return hidden[:, self.position, None].expand_as(hidden) * torch.arange(1.0, 1 + WIDTH)

    def generate_ids(self, input_ids, attention_mask, **options):
        raise NotImplementedError

    def load_tokenizer(self):
        raise NotImplementedError


def test_the_heat_lies_on_the_one_token_that_the_answer_is_read_from(ask):
    """Of the 16 visual positions the readout looks at number 6: row 1, column 2 of the base view, and of stack i the
    cell there of the crops' mosaic.
    """
    vlm = VLM(Brightness(), IdentityProjector, SCHEDULERS["DeepStackL"](), Readout(position=2 + 6))
    batch = ask(vlm, [[(2, 2)]])
    batch.labels = batch.labels.where(batch.labels < 0, torch.full_like(batch.labels, WIDTH - 1))
    assert int(batch.visual_mask[0].nonzero()[0]) == 2
    found = relevance(vlm, batch)
    patches = to_patches(vlm.stacking, vlm.vision_encoder, vlm.projector, batch.views, found.slots)
    drawn = panels(batch.views, patches)
    assert [panel.heat.nonzero().tolist() for panel in drawn] == [[[1, 2]], [[2, 4]], [[2, 5]], [[3, 4]], [[3, 5]]]
    assert [panel.kind for panel in drawn] == ["base", *["crops"] * 4]
    assert all(panel.heat.sum() > 0 for panel in drawn)  # brightness speaks for the last word
    torch.testing.assert_close(sum(panel.heat.sum() for panel in drawn), found.slots.sum())


def test_attention_mass_is_that_of_transformers(make_vlm, ask):
    vlm = make_vlm("DeepStackL", attention="eager")
    batch = ask(vlm, [[(2, 2)], [(2, 1)]])
    found = relevance(vlm, batch, "attention")
    lm = vlm.language_model
    with torch.no_grad(), lm._injecting(batch.visual_mask, vlm.see(batch.views)):
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        paid = lm.model(batch.input_ids, batch.attention_mask, positions, output_attentions=True).attentions
    assert len(paid) == 4
    rows = [
        torch.stack([layer[row, :, -3:-1].mean(0).mean(0) for layer in paid]).mean(0)[batch.visual_mask[row]]
        for row in range(2)
    ]
    torch.testing.assert_close(found.slots, torch.cat(rows)[None])
    assert found.inside.numel() == 0


def test_attention_that_gives_no_weights_is_refused(make_vlm, ask):
    vlm = make_vlm("DeepStackL")
    with pytest.raises(ValueError, match="attention: eager"):
        relevance(vlm, ask(vlm, [[(2, 2)]]), "attention")
