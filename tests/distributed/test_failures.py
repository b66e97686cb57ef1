"""Something goes wrong in a module on one of two ranks: both stop within a minute, with its place and its samples."""

from __future__ import annotations

import re

import pytest
from processes import a_minute

MODULE = "language_model.model.model.layers.2.mlp"
SAMPLES = r"samples train-\d{4}, train-\d{4}"


def test_a_loss_that_is_not_finite_stops_both_before_the_step(recipe, fit, tmp_path):
    done = fit(recipe("DeepStackL"), tmp_path, "checkpoint_every=1", ranks=2, FAIL="nan 3 1")
    assert done.code not in (0, None)
    assert done.seconds_since_the_failure() < a_minute()
    said = rf"dslight: the loss of step 3 is not finite; rank 1: loss nan, first in the output of {MODULE}, {SAMPLES}"
    assert len(re.findall(said, done.output)) == 2, done.output[-4000:]
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000001.ckpt", "step-00000002.ckpt"]


@pytest.mark.slow
def test_an_exception_in_a_module_stops_both(recipe, fit, tmp_path):
    done = fit(recipe("DeepStackL"), tmp_path, ranks=2, FAIL="raise 3 1")
    assert done.code not in (0, None)
    assert done.seconds_since_the_failure() < a_minute()
    said = rf"rank 1 failed: ArithmeticError: out of paper \(in {MODULE}; step 3; {SAMPLES}\)"
    assert re.search(rf"^{said}", done.output, re.MULTILINE), done.output[-4000:]
    assert re.search(rf"^rank 0: stopping, because {said}", done.output, re.MULTILINE), done.output[-4000:]
