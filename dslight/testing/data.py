"""What a data module promises: batches that a model trains on, the same each time, and the rest behind a stop."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from dslight.testing.tiny import tiny_model
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM


class DataContract:
    """The promises of a subclass of :class:`~dslight.Data`, or of any data module of Lightning; subclass this and
    define :meth:`make`.

    Attributes:
        steps: batches that are looked at.
    """

    steps = 4

    def make(self) -> LightningDataModule:
        """A new data module over a few records of your own (two batches or more)."""
        raise NotImplementedError(f"{type(self).__name__}: define make(self), which returns the data module to test")

    def model(self) -> VLM:
        """What is trained on it; define it where the data need another tokenizer or other views."""
        return tiny_model()

    def test_it_is_a_data_module(self) -> None:
        made = self.make()
        assert isinstance(made, LightningDataModule), (
            f"{type(made).__name__} must subclass dslight.Data, or lightning's LightningDataModule"
        )

    def test_a_model_trains_on_it(self) -> None:
        for number, batch in enumerate(self._batches(self.steps)):
            assert isinstance(batch, Batch), (
                f"batch {number} is a {type(batch).__name__}: make it by model.processor.collate"
            )
            labels = batch.labels
            assert labels is not None, f"batch {number} has no labels: make rows by model.processor.rows.train"
            idle = [row for row, line in enumerate(labels) if not bool((line != IGNORE).any())]
            assert not idle, f"in batch {number} the rows {idle} have nothing to learn"

    def test_batches_are_the_same_each_time(self) -> None:
        torch.manual_seed(0)
        first = _ids(self._batches(self.steps))
        torch.manual_seed(1)
        assert first == _ids(self._batches(self.steps)), (
            "two runs of one seed see other batches: shuffle by a seed that is an argument of the data"
        )

    def test_a_run_goes_on_where_it_stopped(self) -> None:
        if type(self.make()).state_dict is LightningDataModule.state_dict:
            return  # which says nothing of a position, so a run cannot go on
        whole, half = _ids(self._batches(self.steps)), self.steps // 2
        with TemporaryDirectory() as folder:
            stopped = Path(folder) / "stopped.ckpt"
            self._batches(half, save=stopped)
            rest = _ids(self._batches(self.steps, resume=stopped))
        assert rest == whole[half:], (
            f"stopped behind batch {half} and resumed, it gives other batches: state_dict() has to say the position, "
            f"and load_state_dict() to go there"
        )

    def _batches(self, steps: int, save: Path | None = None, resume: Path | None = None) -> list[Any]:
        """What the model is trained on in so many steps, or in those behind the checkpoint ``resume``."""
        data, model, seen = self.make(), self.model(), _Seen()
        model.train_with({"projector": 1e-3})
        trainer = Trainer(
            max_steps=steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[seen],
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=resume, weights_only=False)
        if save is not None:
            trainer.save_checkpoint(save)
        return seen.batches


class _Seen(Callback):
    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)


def _ids(batches: list[Any]) -> list[Any]:
    return [batch.input_ids.tolist() for batch in batches]
