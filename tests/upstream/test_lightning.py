"""What dslight expects of Lightning beyond its documentation. Where one of these fails,
``dslight/upstream/lightning.py`` is to be mended, and nothing else.
"""

import csv
import signal
from datetime import timedelta

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from dslight.checkpoints import complete
from dslight.upstream.lightning import (
    NEXT_BATCH,
    REST,
    FitProgress,
    announced_by,
    epochs_done,
    group_settings,
    is_last,
    load_only_what_is_named,
    log_by_steps_done,
    never_requeue,
    set_mesh,
    set_sizes,
)


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    return pl.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet | options)


def batches(count: int = 3) -> DataLoader:
    return DataLoader([torch.ones(1)] * count)  # type: ignore[arg-type]


def test_the_profiler_is_told_when_the_next_batch_is_asked_for():
    class Notes(PassThroughProfiler):
        told: list[tuple[str, str]] = []  # noqa: RUF012

        def start(self, action_name):
            self.told.append(("start", action_name))

        def stop(self, action_name):
            self.told.append(("stop", action_name))

    trainer(profiler=Notes(), max_epochs=1).fit(Line(), batches())
    asked = [what for what, name in Notes.told if name.endswith(NEXT_BATCH)]
    assert len(asked) >= 6  # three batches
    assert asked == ["start", "stop"] * (len(asked) // 2)


def test_rows_count_the_steps_and_epochs_that_are_done_and_the_last_step_has_one(tmp_path):
    """Five batches an epoch, two a step, and one in its last: three steps."""

    class Logging(Line):
        def training_step(self, batch, batch_idx):
            self.log("loss", 1.0)
            return super().training_step(batch, batch_idx)

    logger = CSVLogger(tmp_path, name="", version="")
    made = trainer(logger=logger, max_steps=4, max_epochs=-1, accumulate_grad_batches=2, log_every_n_steps=3)
    log_by_steps_done(made)
    made.fit(Logging(), batches(5))
    with (tmp_path / "metrics.csv").open(newline="") as text:
        rows = [(int(row["step"]), float(row["epoch"])) for row in csv.DictReader(text)]
    assert rows == [(3, 1.0), (4, 1.3333)]
    assert epochs_done(made) == 1.3333
    assert is_last(made, 4)
    assert not is_last(made, 3)


def test_a_sharded_checkpoint_has_a_file_for_what_is_no_tensor():
    assert REST == complete.REST


@pytest.mark.parametrize("kind", [DDPStrategy, FSDPStrategy, ModelParallelStrategy])
def test_a_parallel_strategy_says_how_its_processes_would_meet(kind):
    for backend, expected in ((None, "gloo"), ("nccl", "nccl")):
        strategy = kind(timeout=timedelta(seconds=7), process_group_backend=backend)
        strategy.parallel_devices = [torch.device("cpu")]
        strategy.cluster_environment = LightningEnvironment()
        assert group_settings(strategy) == (expected, timedelta(seconds=7))


def test_a_single_device_meets_nobody():
    assert group_settings(SingleDeviceStrategy(torch.device("cpu"))) is None


def test_sizes_and_mesh_of_a_strategy_may_be_set():
    seen = {}

    class Own(ModelParallelStrategy):
        def setup_environment(self):
            set_sizes(self, data_parallel=1)
            super().setup_environment()
            seen["laid out"] = self.device_mesh
            seen["set"] = torch.distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
            set_mesh(self, self.lightning_module, seen["set"])

        @property
        def distributed_sampler_kwargs(self):  # Lightning's asks the mesh for a dimension of its own
            return {"num_replicas": 1, "rank": 0}

    class Module(Line):
        def configure_model(self):
            seen["model's"] = self.device_mesh

    strategy = Own()
    try:
        trainer(strategy=strategy, max_epochs=1).fit(Module(), batches(1))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert seen["laid out"].mesh_dim_names == ("data_parallel", "tensor_parallel")
    assert seen["laid out"].shape == (1, 1)
    assert seen["model's"] is seen["set"] is strategy.device_mesh


class Count(pl.Callback):
    """What the loop counts, at each of its hooks."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(("start", trainer.current_epoch, batch_idx, FitProgress(trainer).in_hand))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(("end", trainer.current_epoch, batch_idx, FitProgress(trainer).in_hand))


def test_a_batch_is_in_hand_from_its_start_until_it_is_trained_on():
    count = Count()
    trainer(callbacks=[count]).fit(Line(), batches(2))
    assert count.seen == [
        (hook, epoch, batch, int(hook == "start"))
        for epoch in range(2)
        for batch in range(2)
        for hook in ("start", "end")
    ]


class Loader:
    """Three batches an epoch; those of the first begin at ``begin``."""

    def __init__(self, begin: int):
        self.begin, self.trainer = begin, None

    def __len__(self):
        return 3

    def __iter__(self):
        FitProgress(self.trainer).resume(self.begin)
        begin, self.begin = self.begin, 0
        yield from [torch.ones(1, 1)] * (3 - begin)


def test_a_loop_goes_on_from_the_batch_that_it_is_told():
    count, loader = Count(), Loader(begin=2)
    loader.trainer = runs = trainer(callbacks=[count])
    runs.fit(Line(), loader)
    assert [(epoch, batch) for hook, epoch, batch, _ in count.seen if hook == "end"] == [
        (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    assert runs.global_step == 4


@pytest.fixture
def slurm(monkeypatch):
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "JOB_ID": "4242", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_NODEID", "0")


@pytest.mark.parametrize("named", [False, True])
def test_a_file_that_lies_in_the_folder_is_loaded_when_it_is_named_alone(slurm, named, tmp_path):
    old = Line()
    before = trainer(default_root_dir=tmp_path)
    before.fit(old, batches())
    before.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")
    after = trainer(default_root_dir=tmp_path, max_epochs=3)
    load_only_what_is_named(after)
    model = Line()
    start = model.layer.weight.item()
    after.fit(model, batches(), ckpt_path=tmp_path / "hpc_ckpt_1.ckpt" if named else None)
    assert after.global_step == 9
    assert model.layer.weight.item() == (old.layer.weight.item() if named else start)  # the learning rate is 0
    model = Line()
    start = model.layer.weight.item()
    model.validation_step = lambda batch, batch_idx: None
    after.validate(model, batches(), verbose=False)
    assert model.layer.weight.item() == start


def test_nor_what_a_callback_has_left(tmp_path):
    kept = OnExceptionCheckpoint(tmp_path)
    before = trainer(default_root_dir=tmp_path)
    old = Line()
    before.fit(old, batches())
    before.save_checkpoint(kept.ckpt_path)
    after = trainer(callbacks=[kept], enable_checkpointing=True)
    load_only_what_is_named(after)
    model = Line()
    start = model.layer.weight.item()
    after.fit(model, batches())
    assert model.layer.weight.item() == start != old.layer.weight.item()


def test_the_announced_end_is_a_signal_that_lightning_leaves_alone(slurm):
    one = trainer()
    assert announced_by(one) == signal.SIGUSR1
    other = trainer(plugins=[SLURMEnvironment(requeue_signal=signal.SIGUSR2)])
    assert announced_by(other) == signal.SIGUSR2
    seen = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(signal.getsignal(announced_by(trainer)))

    for quiet in (False, True):
        watched = trainer(callbacks=[Look()], max_epochs=1)
        if quiet:
            never_requeue(watched)
        watched.fit(Line(), batches())
    assert callable(seen[0])
    assert seen[1] == signal.SIG_DFL


def test_without_slurm_it_is_sigusr1():
    one = trainer()
    never_requeue(one)
    assert announced_by(one) == signal.SIGUSR1
