"""The average of the weights is Lightning's; it is what is validated, saved and left, and a run goes on exactly."""

import json
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

import dslight
from dslight.cli import main
from dslight.train import EMA

OURS = "trainer.callbacks=[{class_path: dslight.train.EMA, init_args: {decay: 0.8}}]"
THEIRS = "trainer.callbacks=[{class_path: lightning.pytorch.callbacks.EMAWeightAveraging, init_args: {decay: 0.8}}]"
EVERY = [
    "model.language_model.init_args.config.tie_word_embeddings=true",
    "checkpoint_every=2",
    "checkpoint_keep=9",
    "trainer.log_every_n_steps=1",
]


def weights(run) -> dict[str, torch.Tensor]:
    files = (run / "weights").glob("*.safetensors")
    return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def averaged(fit, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("ema") / "run", OURS, *EVERY)


def test_it_is_lightnings_average(averaged, fit, tmp_path):
    theirs = weights(fit(tmp_path / "theirs", THEIRS, *EVERY))
    ours, plain = weights(averaged), weights(fit(tmp_path / "plain", *EVERY))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5)
    assert max((ours[name] - plain[name]).abs().max() for name in plain) > 1e-3


def test_a_checkpoint_opens_as_the_average(averaged):
    model, left = dslight.load(averaged, device="cpu"), weights(averaged)
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in left.items())


def test_validation_sees_the_average_and_training_does_not(pages, averaged, fit, logged, tmp_path):
    """Losses are those of a run that is never validated, and what is asked in the middle differs from the plain run."""
    asked = [f"data.val.text={{root: {pages / 'train'}, loss: true, limit: 8}}", "validate_every=2"]
    ours, plain = fit(tmp_path / "ours", OURS, *EVERY, *asked), fit(tmp_path / "plain", *EVERY, *asked)

    def column(run, key):
        rows = [row.split(",") for row in (run / "metrics.csv").read_text().splitlines()]
        at = rows[0].index(key)
        return [float(row[at]) for row in rows[1:] if row[at]]

    assert column(ours, "train/loss") == column(plain, "train/loss") == column(averaged, "train/loss")
    assert all(a != b for a, b in zip(column(ours, "val/text/loss"), column(plain, "val/text/loss"), strict=True))


def test_a_run_is_continued_bit_by_bit(averaged, fit, logged, tmp_path):
    whole = weights(averaged)
    run = fit(tmp_path / "run", OURS, *EVERY)
    (run / "result.json").unlink()
    (run / "checkpoints" / "step-00000004.ckpt").unlink()
    fit(run, OURS, *EVERY)
    assert [row["train/loss"] for row in logged(run)] == [row["train/loss"] for row in logged(averaged)]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(run).items())
    assert json.loads((run / "result.json").read_text())["steps"] == 4


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": 0.0}, {"every": 0}, {"start": -1}])
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EMA(**wrong)


def test_an_average_that_never_begins_or_of_another_is_refused(recipe, tmp_path, capsys):
    def said(*given):
        settings = ", ".join(f"{{class_path: dslight.train.EMA, init_args: {{start: {start}}}}}" for start in given)
        options = [f"trainer.callbacks=[{settings}]", "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}"]
        assert main(["fit", str(recipe), *options]) == 1
        return capsys.readouterr().err

    assert "trainer.callbacks: EMA: start: 2; below trainer.max_steps, 2" in said(2)
    assert "EMA stands there more than once" in said(0, 1)


class Walk(pl.LightningModule):
    """Its weight is the number of optimizer steps, squared."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.automatic_optimization = torch.nn.Parameter(torch.zeros(1)), False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)

    def training_step(self, batch: torch.Tensor, index: int) -> None:
        if index % 2:  # every other batch, as where gradients are accumulated
            optimizer: Any = self.optimizers()
            self.weight.grad = self.weight.detach() - float(self.global_step + 1) ** 2
            optimizer.step()


@pytest.mark.parametrize(("every", "steps"), [(2, [3, 5, 7]), (1, [3, 4, 5, 6, 7, 8])])
def test_the_average_begins_behind_its_start_and_takes_every_so_many_steps(tmp_path, every, steps):
    model = Walk()
    trainer = pl.Trainer(
        max_steps=8, callbacks=[EMA(decay=0.75, every=every, start=2)], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(cast(Any, range(40))))
    expected = float(steps[0] ** 2)
    for step in steps[1:]:
        expected += (step**2 - expected) * 0.25
    assert model.weight.item() == pytest.approx(expected)
