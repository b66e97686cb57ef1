"""docs/scaling.md says what the plan and its own assumptions say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the package

from benchmarks.scaling import DOCUMENT, RECIPES, Assumed, Model, models_table, planned, read_models, step, steps_table


def test_the_steps_follow_from_the_table_of_the_plan():
    document = DOCUMENT.read_text()
    models = read_models(document)
    assert [model.name for model in models] == list(RECIPES)
    assert f"<!-- plan -->\n{models_table(models)}\n<!-- end -->" in document
    assert f"<!-- steps -->\n{steps_table(models)}\n<!-- end -->" in document


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_table_of_the_plan_is_what_the_plan_says(name):
    """And the plan says what is known of the model: 6 FLOPs per trained parameter and position, and the encoder's 5
    views beside them.
    """
    assert f"\n{models_table([planned(name)]).splitlines()[-1]}\n" in DOCUMENT.read_text()
    model = planned(name)
    decoder = 6 * model.passed * (576 + 256)
    encoder = 2 * 0.303 * 577 * 5
    assert model.flops == pytest.approx(decoder + encoder, rel=0.05)


def test_a_step_by_hand():
    """One billion parameters that all train, links of 1 GB/s inside and between, on two nodes."""
    model = Model("x", parameters=1.0, passed=1.0, trained=1.0, flops=1000.0, batch=2)
    assumed = Assumed(flops=1e12, inside=1e9, fast=1e9, slow=5e8, gathered=2, reduced=4, kept=16)
    one = step(model, 16, hybrid=False, assumed=assumed)
    assert one.compute == 2.0
    assert one.gathered + one.reduced == 8e9
    assert one.kept == 1e9
    assert one.fast == pytest.approx(8 * 15 / 16)  # NVLink is the slower one: it hands over what all others hold
    assert one.slow == pytest.approx(8 * 1 / 2 / 0.5)
    copies = step(model, 16, hybrid=True, assumed=assumed)
    assert copies.kept == 2e9
    assert copies.fast == pytest.approx(8 * 7 / 8 + 2 * 4 * 1 / 2)
