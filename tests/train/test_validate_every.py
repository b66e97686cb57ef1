"""Validations fall after the named optimizer steps, whatever the micro-batches and epochs are."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from dslight.train.callbacks import ValidateEvery


class Line(pl.LightningModule):
    """Learns nothing much, and notes after which steps it is validated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.validated = torch.nn.Linear(1, 1), []

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_start(self) -> None:
        self.validated.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


def train(steps: int, accumulate: int, every: int = 3, resume: Path | None = None) -> tuple[Line, pl.Trainer]:
    """Epochs of seven micro-batches: the last step of each takes what is left."""
    model, data = Line(), DataLoader(torch.rand(7, 1))
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, max_steps=steps, accumulate_grad_batches=accumulate, num_sanity_val_steps=0,
        callbacks=[ValidateEvery(every)], **ValidateEvery.TRAINER,
    )  # fmt: skip
    trainer.fit(model, data, data, ckpt_path=resume, weights_only=True)
    return model, trainer


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_validations_fall_after_every_third_step(accumulate):
    model, trainer = train(11, accumulate)
    assert trainer.global_step == 11
    assert model.validated == [3, 6, 9]


def test_they_fall_after_the_same_steps_when_a_run_goes_on_with_other_micro_batches(tmp_path):
    _, trainer = train(5, 2)
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    for accumulate in (1, 4):
        assert train(11, accumulate, resume=tmp_path / "five.ckpt")[0].validated == [6, 9]
