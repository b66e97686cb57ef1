"""What a run tells of itself: rates, norms and rates of learning, in every logger, and the table of its groups."""

import copy
import csv
import math
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from dslight.cli import main
from dslight.components import DeepStackL, MLPProjector
from dslight.nn.loss import next_token_loss
from dslight.recipe.build import build
from dslight.recipe.compose import compose
from dslight.train import watch
from dslight.train.callbacks import Bar, GradientError, Pace
from dslight.train.groups import ShowGroups
from dslight.train.optim import PartTraining, Stage
from dslight.train.watch import DataWait, Watch
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM

RATES = ("samples", "tokens", "text_tokens", "visual_tokens", "stacked_tokens")
ENCODER = Path(__file__).parents[2] / "recipes" / "quickstart" / "encoder.yaml"
PARTS = ("vision_encoder", "projector", "language_model")


@pytest.fixture(scope="module")
def run(fit, tmp_path_factory):
    return fit(tmp_path_factory.mktemp("watched") / "run")


def test_every_logged_step_has_all_the_columns(run, logged):
    rows = logged(run)
    assert [int(row["step"]) for row in rows] == [2, 4]
    columns = {f"throughput/{name}_per_second" for name in RATES} | {"throughput/data_wait", "memory/peak_gib"}
    columns |= {f"grad_norm/{part}" for part in PARTS} | {f"lr/{part}.{i}" for part in PARTS for i in (0, 1)}
    for row in rows:
        assert {name for name, value in row.items() if value} == columns | {"train/loss", "step", "epoch"}
        assert 0 < float(row["throughput/data_wait"]) < 1
        assert 0.1 < float(row["memory/peak_gib"]) < 64


def test_the_tokens_are_those_of_the_data(run, logged, recipe):
    """Rates share their clock, so their ratios are those of the batches; the visual tokens are the plan's."""
    experiment = build(compose(recipe))
    experiment.data.setup("fit")
    batches = iter(experiment.data.train_dataloader())
    for row in logged(run):
        four = [next(batches) for _ in range(4)]  # two steps of two micro-batches
        expected = {
            "tokens": sum(int(b.attention_mask.sum()) for b in four),
            "text_tokens": sum(int((b.attention_mask * ~b.visual_mask).sum()) for b in four),
            "visual_tokens": 16 * 80,
            "stacked_tokens": 16 * 64,
        }
        samples = float(row["throughput/samples_per_second"])
        for name, count in expected.items():
            assert float(row[f"throughput/{name}_per_second"]) / samples == pytest.approx(count / 16), name


def test_the_learning_rates_are_those_of_the_schedule(run, logged):
    """transformers' cosine: lr * (1 + cos(pi * step / steps)) / 2."""
    for row in logged(run):
        wave = 0.5 * (1 + math.cos(math.pi * (int(row["step"]) - 1) / 4))
        assert float(row["lr/projector.0"]) == pytest.approx(4e-3 * wave)
        assert float(row["lr/vision_encoder.1"]) == pytest.approx(1.2e-3 * wave)


def test_the_groups_are_printed_and_written_at_the_start(fit, tmp_path, capsys):
    capsys.readouterr()
    folder = fit(tmp_path / "run", "trainer.max_steps=1", "stage.train.vision_encoder.layer_decay=0.5")
    text = (folder / "optimizer.txt").read_text()
    assert text in capsys.readouterr().out
    lines = [line.split("  ") for line in text.splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert rows[0] == ["part", "group", "tensors", "parameters", "lr", "weight decay"]
    assert rows[1][:2] == ["vision_encoder", "layer 0 matrices"]
    assert float(rows[1][4]) == pytest.approx(1.2e-3 / 2**5, rel=1e-3)
    assert [row[:2] for row in rows[-5:-1]] == [
        ["projector", "0"], ["projector", "1"], ["language_model", "0"], ["language_model", "1"],
    ]  # fmt: skip
    model = build(compose(folder / "recipe.yaml")).model
    assert rows[-1][3] == f"{sum(p.numel() for p in model.parameters()):,}"


def test_other_loggers_stand_beside_the_csv(fit, logged, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = f"{{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {{save_dir: {tmp_path / 'tb'}}}}}"
    folder = fit(tmp_path / "run", f"trainer.logger={board}", "trainer.max_steps=5")
    events = EventAccumulator(str(next((tmp_path / "tb").rglob("events.out.tfevents.*")).parent))
    events.Reload()
    for row in logged(folder):
        for name in ("train/loss", "throughput/tokens_per_second", "grad_norm/projector", "lr/projector.0"):
            seen = {event.step: event.value for event in events.Scalars(name)}
            assert seen[int(row["step"])] == pytest.approx(float(row[name]), rel=1e-5), name
    with (folder / "metrics.csv").open(newline="") as text:
        every = list(csv.DictReader(text))
    assert set(events.Tags()["scalars"]) == set(every[0]) - {"step"}
    epochs = {event.step: event.value for event in events.Scalars("epoch")}
    assert epochs == {int(row["step"]): pytest.approx(float(row["epoch"])) for row in every}


def test_rows_count_the_steps_and_epochs_that_are_done_and_the_last_step_has_one(fit, logged, tmp_path):
    """Of 48 pages, 8 a step."""
    folder = fit(tmp_path / "run", "trainer.max_steps=7")
    rows = [(int(row["step"]), float(row["epoch"])) for row in logged(folder)]
    assert rows == [(step, pytest.approx(step / 6, abs=1e-4)) for step in (2, 4, 6, 7)]
    assert all(row["grad_norm/projector"] and row["throughput/data_wait"] for row in logged(folder))


def test_weights_and_biases_logs_offline(fit, logged, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    arguments = f"{{project: dslight, offline: true, save_dir: {tmp_path / 'wandb'}}}"
    logger = f"{{class_path: lightning.pytorch.loggers.WandbLogger, init_args: {arguments}}}"
    folder = fit(tmp_path / "run", f"trainer.logger=[{logger}]")
    assert list(tmp_path.rglob("run-*.wandb"))
    assert len(logged(folder)) == 2


def test_without_a_logger_there_is_still_the_csv(fit, logged, tmp_path):
    assert len(logged(fit(tmp_path / "run", "trainer.logger=false"))) == 2


# --- the callback alone ---------------------------------------------------------------------------------------------


@pytest.fixture
def vlm(tiny_encoder, tiny_lm):
    torch.manual_seed(0)
    vlm = VLM(tiny_encoder(), MLPProjector, DeepStackL(num_stacks=2), tiny_lm())
    sgd = torch.optim.SGD
    train = {name: PartTraining(1e-3) for name in PARTS}
    vlm.train_with(Stage(train, optimizer=lambda groups: sgd(groups, lr=0.1), schedule="constant"))
    return vlm


@pytest.fixture
def batches(make_views):
    made = []
    for row in range(4):
        ids = torch.randint(0, 64, (2, 22), generator=torch.Generator().manual_seed(row))
        visual = torch.zeros(2, 22, dtype=torch.bool)
        visual[0, 1:17] = True
        labels = torch.where(visual, IGNORE, ids)
        labels[:, : 10 - 3 * row] = IGNORE
        made.append(Batch(ids, torch.ones_like(ids), visual, labels, make_views([(1, 2)], row), keys=["a", "b"]))
    return made


QUIET = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "log_every_n_steps": 1}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_gradient_norm_is_that_of_the_mean_loss_before_clipping(vlm, batches, accumulate):
    """The oracle is torch's clipping, which returns the norm, on the mean over all tokens."""
    reference = copy.deepcopy(vlm)
    used = batches[:accumulate]
    sums, counts = zip(*(next_token_loss(reference(batch), batch.labels) for batch in used), strict=True)
    (sum(sums) / sum(counts)).backward()
    expected = {
        name: float(nn.utils.clip_grad_norm_(part.parameters(), 1e9)) for name, part in reference.parts().items()
    }
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=1, accumulate_grad_batches=accumulate, gradient_clip_val=1e-3,
        enable_progress_bar=False, callbacks=[Watch()], **QUIET,
    )  # fmt: skip
    trainer.fit(vlm, DataLoader(used, batch_size=None))
    for name in PARTS:
        assert float(trainer.callback_metrics[f"grad_norm/{name}"]) == pytest.approx(expected[name], rel=1e-5)


def test_the_wait_for_data_is_told_and_validation_is_not_counted(vlm, batches):
    class Slow:
        """Most of a training step goes into the data."""

        def __iter__(self):
            for batch in batches[:2]:
                time.sleep(0.3)
                yield batch

        def __len__(self):
            return 2

    class Validating(pl.Callback):
        def on_validation_batch_start(self, *args):
            time.sleep(1.0)

    vlm.validation_step = lambda batch, batch_idx: None
    wait = DataWait()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, profiler=wait, val_check_interval=1, num_sanity_val_steps=0,
        enable_progress_bar=False, callbacks=[Validating(), Watch(waited=wait)],
        **{**QUIET, "log_every_n_steps": 2},
    )  # fmt: skip
    trainer.fit(vlm, Slow(), DataLoader(batches[:1], batch_size=None))
    metrics = trainer.callback_metrics
    seconds = 4 / float(metrics["throughput/samples_per_second"])
    assert 0.6 < seconds < 0.6 + 0.9  # the seconds of validation are not in it
    assert float(metrics["throughput/data_wait"]) * seconds == pytest.approx(0.6, abs=0.15)


def test_utilisation_is_the_models_flops_over_the_peak(vlm, batches, monkeypatch):
    monkeypatch.setattr(watch, "get_available_flops", lambda device, dtype: 1e9)
    seen = []

    def flops():
        return lambda *counts: seen.append(counts) or 1e6

    trainer = pl.Trainer(accelerator="cpu", max_steps=1, enable_progress_bar=False, callbacks=[Watch(flops)], **QUIET)
    trainer.fit(vlm, DataLoader(batches[:1], batch_size=None))
    learned = int((batches[0].labels[:, 1:] != IGNORE).sum())
    assert seen == [(3, 2, 44, 2 * 22**2, learned)]  # views, rows, positions, their squares, supervised ones
    seconds = 2 / float(trainer.callback_metrics["throughput/samples_per_second"])
    assert float(trainer.callback_metrics["throughput/mfu"]) == pytest.approx(1e6 / seconds / 1e9)


def test_the_bar_shows_loss_speed_and_the_time_left(vlm, batches, tmp_path):
    pace = Pace(tmp_path / "progress.json")
    bar = Bar(pace)
    trainer = pl.Trainer(accelerator="cpu", max_steps=4, callbacks=[pace, Watch(), bar], **QUIET)
    shown = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            shown.append(bar.get_metrics(trainer, pl_module))

    trainer.callbacks.append(Look())
    trainer.fit(vlm, DataLoader(batches, batch_size=None))
    assert set(shown[-1]) == {"train/loss", "tokens/s", "eta"}
    assert int(shown[-1]["tokens/s"].replace(",", "")) > 0
    hours, minutes, seconds = (int(part) for part in shown[-1]["eta"].split(":"))
    assert hours * 3600 + minutes * 60 + seconds <= 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("left out", r"2 parameters are meant to train, but no group of the optimizer has them: projector\.net\.0"),
        ("frozen", r"2 frozen parameters are in the optimizer: projector\.net\.0"),
    ],
)
def test_groups_that_are_not_what_trains_fail_by_name(vlm, batches, tmp_path, change, message):
    whole = vlm.stage.optimizers

    def optimizers(parts, total_steps):
        made = whole(parts, total_steps)
        first = list(parts["projector"].net[0].parameters())
        if change == "frozen":
            for parameter in first:
                parameter.requires_grad_(False)
        else:
            ids = {id(p) for p in first}
            for group in made["optimizer"].param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in ids]
        return made

    vlm.stage.optimizers = optimizers
    callbacks = [ShowGroups(tmp_path / "optimizer.txt")]
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, enable_progress_bar=False, callbacks=callbacks, **QUIET)
    with pytest.raises(GradientError, match=message):
        trainer.fit(vlm, DataLoader(batches, batch_size=None))


def test_a_trained_component_is_watched_too(pages, tmp_path, logged):
    overrides = [
        f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", "data.global_batch_size=8",
        "trainer.max_steps=2", "trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["fit", str(ENCODER), f"run_dir={tmp_path / 'run'}", *overrides]) == 0
    rows = logged(tmp_path / "run")
    assert len(rows) == 2
    for row in rows:
        assert float(row["throughput/samples_per_second"]) > 0
        assert float(row["grad_norm/vision_encoder"]) > 0
        assert float(row["grad_norm/objective"]) > 0
