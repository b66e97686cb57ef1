"""AdamW with states in 8 bits: bitsandbytes' own where it is installed, a sentence where it is not."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from dslight.cli import main
from dslight.recipe.compose import compose
from dslight.train import AdamW8bit

EIGHT = "stage.optimizer={class_path: dslight.train.AdamW8bit, init_args: {betas: [0.8, 0.99]}}"


@pytest.fixture
def standin(monkeypatch) -> None:
    """A class of bitsandbytes' name in its module; only what is asked before the first step is looked at here."""

    class Standin(torch.optim.AdamW):
        __module__ = "bitsandbytes.optim.adamw"

        def __init__(self, params, lr, betas, eps, weight_decay, min_8bit_size) -> None:
            super().__init__(params, lr, betas, eps, weight_decay)

    module: Any = ModuleType("bitsandbytes.optim")
    module.AdamW8bit = Standin
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)


def test_without_the_library_a_recipe_is_refused_by_a_sentence_that_names_it(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert main(["plan", str(recipe), EIGHT, "--no-cost"]) == 1
    said = capsys.readouterr().err
    assert "stage.optimizer: AdamW8bit: bitsandbytes is not installed: pip install bitsandbytes" in said


@pytest.mark.usefixtures("standin")
def test_it_is_refused_where_parameters_are_split(recipe, capsys):
    assert main(["plan", str(recipe), EIGHT, "--no-cost"]) == 0
    capsys.readouterr()
    assert main(["plan", str(recipe), EIGHT, "trainer.strategy=Sharded", "--no-cost"]) == 1
    said = capsys.readouterr().err
    assert "takes no parameters that are split over processes, as trainer.strategy: Sharded does" in said


def test_it_is_theirs_with_the_arguments_of_the_recipe(recipe):
    theirs = pytest.importorskip("bitsandbytes.optim", reason="needs bitsandbytes, which has the optimizer")
    matrix = torch.nn.Parameter(torch.randn(64, 64))
    made: Any = AdamW8bit([{"params": [matrix], "lr": 0.5}], betas=(0.8, 0.99))
    assert isinstance(made, theirs.AdamW8bit)
    assert (made.param_groups[0]["lr"], made.param_groups[0]["betas"]) == (0.5, (0.8, 0.99))
    matrix.square().sum().backward()
    made.step()
    assert made.state[matrix]["state1"].dtype == torch.uint8
    assert compose(recipe, [EIGHT])["stage"]["optimizer"]["init_args"] == {"betas": [0.8, 0.99]}
