"""Kept features on two processes: sharded, every rank runs the encoder or none does."""

import pytest


def test_losses_and_answers_are_those_without(recipe, fit, tmp_path):
    """Two epochs: in the second one all features are there. Some batches have no image, on one rank or on both."""
    file = recipe(frozen=True, checkpoint_every=None)
    one = fit(file, tmp_path / "one", "trainer.max_steps=12")
    two = fit(file, tmp_path / "two", "trainer.max_steps=12", f"data.keep_features={tmp_path / 'kept'}", ranks=2)
    for done in (one, two):
        assert done.code == 0, done.output[-4000:]
    assert list(tmp_path.glob("kept/sets/*-final/*/*.feature"))
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)  # of sharding
    assert two.answers() == one.answers()
