"""A run is stopped on some processes and continued on more or fewer; its losses are those of a run never stopped."""

from __future__ import annotations

import pytest

STOP = 3


@pytest.fixture(scope="module")
def whole(recipe, fit, tmp_path_factory):
    """A recipe and its run that was never stopped. AdamW, so that there are states and a count of steps to restore."""
    file = recipe("DeepStackL", optimizer="AdamW")
    done = fit(file, tmp_path_factory.mktemp("whole"))
    assert done.code == 0, done.output[-4000:]
    return file, done


@pytest.mark.parametrize(
    ("before", "after"), [(2, 1), (1, 2), pytest.param(2, 2, marks=pytest.mark.slow)], ids=lambda ranks: f"{ranks}"
)
def test_a_stopped_run_continues_on_another_number_of_processes(whole, fit, tmp_path, before, after):
    file, uninterrupted = whole
    first = fit(file, tmp_path, ranks=before, STOP_STEP=str(STOP), STOP_RANK=str(before - 1))
    assert first.code != 0
    assert not (first.folder / "run" / "result.json").exists()
    (checkpoint,) = (first.folder / "run" / "checkpoints").glob("step-*")
    assert checkpoint.name == f"step-{STOP:08d}.ckpt"
    assert checkpoint.is_dir() == (before > 1)
    second = fit(file, tmp_path, ranks=after, sharded=True)
    assert second.code == 0, second.output[-4000:]
    assert second.probe(0)["start"] == STOP
    assert second.losses() == pytest.approx(uninterrupted.losses(), abs=1e-5)
    assert second.answers() == uninterrupted.answers()


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_gathers_its_checkpoints_continues_with_and_without_sharding(whole, fit, tmp_path, after):
    file, uninterrupted = whole
    gather = "trainer.strategy.init_args.save_distributed_checkpoint=false"
    fit(file, tmp_path, gather, ranks=2, STOP_STEP=str(STOP), STOP_RANK="0")
    assert (tmp_path / "run" / "checkpoints" / f"step-{STOP:08d}.ckpt").is_file()
    second = fit(file, tmp_path, ranks=after)
    assert second.code == 0, second.output[-4000:]
    assert second.probe(0)["start"] == STOP
    assert second.losses() == pytest.approx(uninterrupted.losses(), abs=1e-5)


def test_a_sharded_checkpoint_needs_a_sharding_strategy(whole, fit, tmp_path):
    file, _ = whole
    (tmp_path / "run" / "checkpoints" / "step-00000003.ckpt").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "step-00000003.ckpt" / "meta.pt").touch()
    done = fit(file, tmp_path)
    assert done.code == 1
    assert "trainer.strategy: " in done.output
    assert "step-00000003.ckpt is sharded" in done.output
