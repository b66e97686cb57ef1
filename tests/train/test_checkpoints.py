"""A checkpoint that is written can be read again."""

from __future__ import annotations

from collections import OrderedDict

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dslight.errors import UserError
from dslight.run.folder import RunFolder
from dslight.train.checkpoint_io import unreadable
from dslight.train.checkpoints import Checkpoints


class Line(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Best(pl.Callback):
    def __init__(self, score) -> None:
        self.score = score

    def state_dict(self):
        return {"best": [{"score": self.score}]}


def train(folder: RunFolder, *callbacks: pl.Callback) -> None:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Checkpoints(folder, 1, keep=2), *callbacks],
    )  # fmt: skip
    trainer.fit(Line(), DataLoader([torch.ones(1)]))  # type: ignore[arg-type]


def test_a_state_that_could_not_be_read_again_is_refused_when_it_is_saved(tmp_path):
    folder = RunFolder(tmp_path)
    message = r"^trainer\.callbacks: Best: best\.0\.score is a numpy\.float64, which no run could be continued with"
    with pytest.raises(UserError, match=message):
        train(folder, Best(np.float64(0.5)))
    assert folder.latest_checkpoint() is None


@pytest.mark.parametrize("score", [0.5, torch.tensor(0.5), None])
def test_plain_states_are_saved_and_read(score, tmp_path):
    folder = RunFolder(tmp_path)
    train(folder, Best(score))
    read = torch.load(folder.checkpoints / "step-00000001.ckpt", weights_only=True)
    assert read["callbacks"]["Best"] == {"best": [{"score": score}]}


@pytest.mark.parametrize(
    "value", [OrderedDict(a=1), {"a": (1, [None, b"x"])}, torch.float16, torch.Size([2]), {1, 2}, [torch.zeros(2)]]
)
def test_whatever_torch_reads_is_readable(value):
    assert unreadable(value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": np.int64(3)}, ("a", "numpy.int64")),
        ({np.str_("a"): 1}, ("", "numpy.str_")),
        ([0, {"b": RunFolder("x")}], ("1.b", "dslight.run.folder.RunFolder")),
        ({"f": {"g": lambda: 0}}, ("f.g", "builtins.function")),
    ],
    ids=["scalar", "key", "object", "function"],
)
def test_the_value_is_named(value, found):
    assert unreadable(value) == found
