"""Averages of a sharded model are those of one process, and a sharded run goes on with them."""

import pytest
import torch


def test_the_average_of_two_processes_is_that_of_one(recipe, fit, tmp_path):
    more = ["data.val=null", "checkpoint_every=3", "checkpoint_keep=9"]
    file = recipe(trainer={
        "accelerator": "cpu", "max_steps": 6, "log_every_n_steps": 1, "enable_progress_bar": False,
        "callbacks": [{"class_path": "dslight.train.EMA", "init_args": {"decay": 0.8}}],
    })  # fmt: skip
    one, two = fit(file, tmp_path / "one", *more), fit(file, tmp_path / "two", *more, ranks=2)
    for done in (one, two):
        assert done.code == 0, done.output[-4000:]
    assert two.losses() == pytest.approx(one.losses(), abs=1e-5)
    whole = two.weights()
    torch.testing.assert_close(whole, one.weights(), atol=1e-6, rtol=1e-5)
    run = tmp_path / "two" / "run"
    (run / "result.json").unlink()
    (run / "checkpoints" / "step-00000006.ckpt").rename(tmp_path / "gone")
    losses = two.losses()
    again = fit(file, tmp_path / "two", *more, ranks=2)
    assert again.code == 0, again.output[-4000:]
    assert again.losses() == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(again.weights(), whole, atol=1e-7, rtol=1e-6)
