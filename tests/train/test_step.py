"""What an optimizer step is made of: which parameters move, and that micro-batches do not matter."""

from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dslight.components import DeepStackL, DeepStackV, LowResolution, MLPProjector
from dslight.nn.loss import next_token_loss
from dslight.train.callbacks import AuditGradients
from dslight.train.optim import PartTraining, Stage
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM

TRAIN = {name: PartTraining(lr=0.1) for name in ("vision_encoder", "projector", "language_model")}


def rows(make_views, count=4, length=22):
    """Rows of one image each, with very different numbers of supervised tokens."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for row in range(count):
        ids = torch.randint(0, 64, (1, length), generator=generator)
        visual = torch.zeros(1, length, dtype=torch.bool)
        visual[:, 1:17] = True
        labels = torch.full((1, length), IGNORE)
        labels[:, length - 1 - row :] = ids[:, length - 1 - row :]
        batches.append(Batch(ids, torch.ones_like(ids), visual, labels, make_views([(1, 2)], row)))
    return batches


@pytest.fixture
def model(tiny_encoder, tiny_lm):
    def make(stacking=None):
        torch.manual_seed(0)
        vlm = VLM(tiny_encoder(), MLPProjector, stacking or DeepStackL(num_stacks=2), tiny_lm())
        sgd = torch.optim.SGD
        vlm.train_with(Stage(TRAIN, optimizer=lambda groups: sgd(groups, lr=0.1), schedule="constant"))
        return vlm

    return make


def step(vlm, batches, accumulate, **options):
    """One optimizer step through Lightning; returns the logged loss."""
    loader = DataLoader(batches, batch_size=None)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=accumulate, log_every_n_steps=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(vlm, loader)
    return float(trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_rows_weigh_by_their_tokens_as_in_one_loss(model, make_views, clip):
    batches = rows(make_views)
    reference, vlm = model(), model()
    sums, counts = zip(*(next_token_loss(reference(batch), batch.labels) for batch in batches), strict=True)
    mean = sum(sums) / sum(counts)
    mean.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(reference.parameters(), clip)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    logged = step(vlm, batches, accumulate=len(batches), gradient_clip_val=clip)
    assert logged == pytest.approx(mean.item(), rel=1e-6)
    for (name, ours), theirs in zip(vlm.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_step_learns_the_weighted_mean_of_all_its_answers(model, make_views, accumulate):
    generator = torch.Generator().manual_seed(1)
    batches = rows(make_views, accumulate)
    for batch in batches:
        batch.weights = torch.rand(batch.input_ids.shape, generator=generator) * 0.2  # together less than one token
    batches[-1] = replace(batches[-1], weights=None if accumulate > 1 else batches[-1].weights)
    reference, vlm = model(), model()
    total = divided_by = torch.zeros(())
    for batch in batches:
        logits = reference(batch)[:, :-1].flatten(0, 1)
        losses = nn.functional.cross_entropy(logits, batch.labels[:, 1:].flatten(), reduction="none")
        weights = torch.ones_like(losses) if batch.weights is None else batch.weights[:, 1:].flatten()
        total = total + (losses * weights).sum()
        divided_by = divided_by + weights[batch.labels[:, 1:].flatten() != IGNORE].sum()
    (total / divided_by).backward()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter -= 0.1 * parameter.grad
    assert step(vlm, batches, accumulate) == pytest.approx((total / divided_by).item(), rel=1e-5)
    for (name, ours), theirs in zip(vlm.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("stacking", [LowResolution(tap=-2), DeepStackV(num_stacks=2, start=1, tap=-2)])
def test_what_lies_behind_the_encoders_tap_does_not_train_and_the_rest_passes_the_audit(model, make_views, stacking):
    vlm = model(stacking)
    step(vlm, rows(make_views, 1), accumulate=1, callbacks=[AuditGradients()])
    encoder = vlm.vision_encoder
    behind = [*encoder.layers[-1].parameters(), *encoder.model.norm.parameters()]
    assert not any(parameter.requires_grad for parameter in behind)
    assert all(parameter.requires_grad for parameter in encoder.layers[0].parameters())


class Careless(pl.LightningModule):
    """Trains ``used``, forgets ``idle``, and gives a frozen parameter a gradient by hand when told to."""

    def __init__(self, idle, stray):
        super().__init__()
        self.used = nn.Linear(2, 1)
        self.idle = nn.Linear(2, 1).requires_grad_(idle)
        self.stray = stray

    def training_step(self, batch, batch_idx):
        if self.stray:
            self.idle.weight.grad = torch.ones_like(self.idle.weight)
        return self.used(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD([*self.used.parameters()], lr=0.1)


@pytest.mark.parametrize(
    ("idle", "stray", "message"),
    [
        (True, False, r"2 parameters are meant to train, but no gradient reaches them: idle\.weight, idle\.bias"),
        (False, True, r"1 frozen parameters got a gradient: idle\.weight"),
    ],
)
def test_the_first_step_fails_by_name_when_what_trains_is_not_what_was_meant(idle, stray, message):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[AuditGradients()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        trainer.fit(Careless(idle, stray), DataLoader(torch.ones(2, 2)))


def test_a_part_that_the_next_stage_trains_is_in_training_mode_again(model):
    vlm = model()
    vlm.train_with(Stage({"projector": PartTraining(0.1)}))
    assert not any(module.training for module in vlm.language_model.modules())
    vlm.train_with(Stage({"language_model": PartTraining(0.1)}))
    assert all(module.training for module in vlm.language_model.modules())
    assert not any(module.training for module in vlm.projector.modules())
