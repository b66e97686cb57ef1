"""A tiny run of the quickstart's task, as a recipe file; trained in this process, or interrupted in one of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import LIMIT, completed, dslight
from safetensors.torch import load_file

from dslight.cli import main
from dslight.recipe.compose import compose, to_yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # where the callback is found, here and by the processes started below

QUICKSTART = HERE.parents[1] / "recipes" / "quickstart" / "deepstack_l.yaml"
STEPS = 9  # one epoch and a half of 48 pages, 8 a step


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    path: Path

    def json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text())

    def metrics(self) -> list[dict[str, str]]:
        with (self.path / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def scores(self) -> list[tuple[int, float]]:
        """Of the validations while training; the last one is the result's."""
        scored = [row for row in self.metrics() if row["val/pages/vqa_accuracy"]]
        return [(int(row["step"]), float(row["val/pages/vqa_accuracy"])) for row in scored[:-1]]

    def losses(self) -> list[tuple[int, float]]:
        return [(int(row["step"]), float(row["train/loss"])) for row in self.metrics() if row["train/loss"]]

    def weights(self) -> dict[str, torch.Tensor]:
        files = sorted((self.path / "weights").glob("*.safetensors"))
        return {f"{file.stem}.{name}": tensor for file in files for name, tensor in load_file(file).items()}

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.path / "checkpoints").glob("*"))

    def files(self) -> set[str]:
        return {path.name for path in self.path.iterdir()}


@pytest.fixture(scope="session")
def recipe(pages, tmp_path_factory) -> Path:
    """A recipe file of ``STEPS`` steps that validates and saves after every third one, in two micro-batches a step."""
    values = compose(
        QUICKSTART,
        [
            f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", "data.val_batch_size=8",
            "data.global_batch_size=8", "data.micro_batch_size=4", "checkpoint_every=3", "stage.warmup_steps=2",
            f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}", f"trainer.max_steps={STEPS}",
            "trainer.val_check_interval=6", "trainer.check_val_every_n_epoch=null", "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false", "trainer.callbacks=[{class_path: interrupt.Interrupt}]",
        ],
    )  # fmt: skip
    del values["weights"]
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(to_yaml(values))
    return file


@pytest.fixture(scope="session")
def fit(recipe) -> Callable[..., Run]:
    """``fit(folder, *arguments)``: ``dslight fit`` in this process."""

    def run(folder: Path, *arguments: str, file: Path = recipe) -> Run:
        torch.set_num_threads(1)
        assert main(["fit", str(file), f"run_dir={folder}", *arguments]) == 0
        return Run(folder)

    return run


@pytest.fixture(scope="session")
def whole(fit, tmp_path_factory) -> Run:
    """The run that nobody interrupts."""
    return fit(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def interrupted(recipe, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``interrupted(folder, "train 3 SIGINT")``: ``dslight fit`` in a process of its own that gets this signal; with
    ``command=True`` as a shell would start it, with more environment variables by their names.
    """

    def run(folder: Path, moment: str, command: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        arguments = ["fit", str(recipe), f"run_dir={folder}"]
        variables = {"INTERRUPT": moment, "OMP_NUM_THREADS": "1", **more}
        if command:
            return subprocess.run(
                [sys.executable, "-m", "dslight", *arguments],
                env=os.environ | variables | {"PYTHONPATH": str(HERE)},
                capture_output=True,
                text=True,
                timeout=LIMIT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job is deaf to it
            )
        return completed(dslight, arguments, folder=tmp_path, variables=variables)

    return run
