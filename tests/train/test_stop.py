"""A run is stopped and saved after an optimizer step, whatever asks for it and however many micro-batches the step had;
what was stopped is not finished.
"""

from __future__ import annotations

import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dslight.cli import main
from dslight.run.folder import RunFolder
from dslight.train.callbacks import Pace, StopCleanly
from dslight.train.checkpoints import Checkpoints


class Line(pl.LightningModule):
    """Sends its process a signal in one micro-batch, counted from 1."""

    def __init__(self, sends: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.sends, self.seen = sends, 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        if self.seen == self.sends:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def train(folder: RunFolder, model: Line, every: int | None = 1) -> Pace:
    """Two epochs of three micro-batches, two to a step: the second step of an epoch has one."""
    checkpoints, pace = Checkpoints(folder, every, keep=9), Pace(folder.path / "progress.json")
    folder.path.mkdir(exist_ok=True)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[pace, StopCleanly(checkpoints), checkpoints],
    )  # fmt: skip
    trainer.fit(model, DataLoader([torch.ones(1)] * 3))  # type: ignore[arg-type]
    return pace


def saved(folder: RunFolder) -> list[str]:
    return sorted(path.stem for path in folder.checkpoints.glob("*.ckpt"))


def test_every_step_is_saved_and_timed_the_last_one_of_an_epoch_too(tmp_path):
    folder = RunFolder(tmp_path)
    pace = train(folder, Line())
    assert saved(folder) == [f"step-{step:08d}" for step in (1, 2, 3, 4)]
    assert len(pace.seconds) == 3


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 1), (2, 1), (3, 2), (4, 3)])
def test_sigterm_ends_a_run_after_the_step_that_it_came_in(micro_batch, step, tmp_path):
    folder = RunFolder(tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(folder, Line(sends=micro_batch), every=None)
    assert saved(folder) == [f"step-{step:08d}"]


def test_a_run_whose_time_is_up_is_not_finished_and_the_same_command_continues(recipe, tmp_path, capsys):
    run = tmp_path / "run"
    call = ["fit", str(recipe), f"run_dir={run}", "trainer.max_steps=2", "trainer.max_time={seconds: 0}"]
    assert main(call) == 130
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message == "dslight: trainer.max_time: the time is up after step 1; the same command continues"
    assert saved(RunFolder(run)) == ["step-00000001"]
    assert not (run / "result.json").exists()
    assert main(call) == 0  # the last step is done when the time is up again
    assert RunFolder(run).result()["steps"] == 2
