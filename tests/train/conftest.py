"""A tiny run of the quickstart's task through the command line, on one process."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dslight.cli import main
from dslight.recipe.compose import compose, to_yaml

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart" / "deepstack_l.yaml"


@pytest.fixture(scope="session")
def recipe(pages, tmp_path_factory) -> Path:
    """Four steps of eight pages, two micro-batches each; no validation."""
    overrides = [
        f"data.train=[{pages / 'train'}]", "data.val=null", "data.global_batch_size=8", "data.micro_batch_size=4",
        f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}", "stage.warmup_steps=0",
        "trainer.max_steps=4", "trainer.log_every_n_steps=2", "trainer.enable_progress_bar=false", "weights=null",
    ]  # fmt: skip
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(to_yaml(compose(QUICKSTART, overrides)))
    return file


@pytest.fixture(scope="session")
def fit(recipe) -> Callable[..., Path]:
    """``fit(folder, *overrides)``: ``dslight fit`` in this process; returns the run's folder."""

    def run(folder: Path, *overrides: str) -> Path:
        torch.set_num_threads(1)
        assert main(["fit", str(recipe), f"run_dir={folder}", *overrides]) == 0
        return folder

    return run


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], list[dict[str, str]]]:
    """The rows of ``metrics.csv`` that were written in training."""

    def read(folder: Path) -> list[dict[str, str]]:
        with (folder / "metrics.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if row["train/loss"]]

    return read
