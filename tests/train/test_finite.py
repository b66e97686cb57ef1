"""What is said of a loss that is not finite."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dslight.train.finite import FiniteLoss, LossError, first_not_finite


class Samples(list):
    """A batch with the keys of its samples."""

    @property
    def keys(self):
        return [f"sample-{int(x.flatten()[0])}" for x in self]


class Model(pl.LightningModule):
    """Takes the logarithm of what a linear layer gives; sample 5 is too much for it."""

    def __init__(self, step_loss: bool) -> None:
        super().__init__()
        self.layer, self.logarithm, self.told = nn.Linear(1, 1, bias=False), Logarithm(), step_loss
        nn.init.ones_(self.layer.weight)

    def forward(self, batch):
        return self.logarithm(self.layer(torch.stack(list(batch))))

    def training_step(self, batch, batch_idx):
        loss = self(batch).sum()
        before = self.step_loss if batch_idx % self.trainer.accumulate_grad_batches else 0.0
        self.step_loss = before + loss.detach() if self.told else None
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


class Logarithm(nn.Module):
    def forward(self, x):
        return (5 - x).log() if (x == 5).any() else x


def fit(model: Model, accumulate: int = 1) -> pl.Trainer:
    data = [torch.tensor([float(i)]) for i in range(8)]
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, callbacks=[FiniteLoss()], accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=2, collate_fn=Samples))
    return trainer


@pytest.mark.parametrize("told", [True, False], ids=["the model knows the loss of all ranks", "this rank's loss alone"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_the_module_and_the_samples_are_named(told, accumulate):
    model = Model(told)
    with pytest.raises(LossError) as error:
        fit(model, accumulate)
    step = 3 if accumulate == 1 else 2
    assert str(error.value) == (
        f"the loss of step {step} is not finite; rank 0: loss -inf, first in the output of logarithm, "
        f"samples sample-4, sample-5"
    )


def test_a_weight_that_is_not_finite_is_named():
    model = Model(True)
    with torch.no_grad():
        model.layer.weight.fill_(float("nan"))
    assert first_not_finite(model, [torch.ones(1)]) == "first in the output of layer, whose weight is not finite"
    assert first_not_finite(Model(True), [torch.ones(1)]) == ""
    assert not model.layer._forward_hooks
    assert not model.logarithm._forward_hooks


def test_a_finite_run_goes_through():
    model = Model(True)
    model.logarithm = nn.Identity()
    assert fit(model).global_step == 4
