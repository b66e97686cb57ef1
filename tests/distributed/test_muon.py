"""Muon on two processes sees whole matrices, though each holds a share of them."""

import pytest


def test_every_step_has_the_loss_of_one_process_and_a_sharded_run_goes_on(recipe, fit, tmp_path):
    more = [
        "stage.optimizer={class_path: dslight.train.MuonAdamW}",
        "data.val=null",
        "checkpoint_every=2",
        "trainer.max_steps=4",
    ]
    file = recipe(frozen=True)
    one, two = fit(file, tmp_path / "one", *more), fit(file, tmp_path / "two", *more, ranks=2)
    for done in (one, two):
        assert done.code == 0, done.output[-4000:]
    assert "(Muon)" in (tmp_path / "two" / "run" / "optimizer.txt").read_text()
    losses = two.losses()
    assert losses == pytest.approx(one.losses(), abs=2e-3)  # Newton-Schulz steps are in bfloat16
    run = tmp_path / "two" / "run"
    (run / "result.json").unlink()
    (run / "checkpoints" / "step-00000004.ckpt").rename(tmp_path / "gone")
    again = fit(file, tmp_path / "two", *more, ranks=2)
    assert again.code == 0, again.output[-4000:]
    assert again.losses() == pytest.approx(losses, abs=1e-6)
