"""A run is stopped on some processes and continued on more or fewer; its losses are those of a run never stopped."""

from __future__ import annotations

import pytest
import torch
from launches import SHARDED, strategy
from safetensors.torch import load_file
from torch.distributed.checkpoint import save

from dslight.cli import main

STOP = 3


@pytest.fixture(scope="module")
def whole(recipe, fit, tmp_path_factory):
    """A recipe and its run that was never stopped. AdamW, so that there are states and a count of steps to restore."""
    file = recipe("DeepStackL", optimizer="AdamW")
    done = fit(file, tmp_path_factory.mktemp("whole"))
    assert done.code == 0, done.output[-4000:]
    return file, done


@pytest.mark.parametrize(
    ("before", "after"),
    [(2, 1), (1, 2), *(pytest.param(*ranks, marks=pytest.mark.slow) for ranks in ((2, 2), (2, 4)))],
    ids=lambda ranks: f"{ranks}",
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


def test_a_checkpoint_that_is_written_in_the_background_is_of_its_step_or_not_there(whole, fit, tmp_path):
    """Each takes longer to be written than the next two steps; a rank is killed while the second one is. The run then
    goes on, with the parameters in the memory of the host, from the first, which is of step 2 to the bit.
    """
    file, uninterrupted = whole
    every = ["checkpoint_every=2", "checkpoint_keep=9"]
    behind = strategy(SHARDED, async_save=True)
    first = fit(file, tmp_path, behind, *every, ranks=2, sharded=False, FAIL=f"kill {STOP + 2} 1", SLOW_WRITE="1")
    assert first.code != 0
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*")] == ["step-00000002.ckpt"]
    second = fit(file, tmp_path, strategy(SHARDED, async_save=True, offload=True), *every, ranks=2, sharded=False)
    assert second.code == 0, second.output[-4000:]
    assert second.probe(0)["start"] == 2
    assert second.losses() == pytest.approx(uninterrupted.losses(), abs=1e-5)
    assert second.answers() == uninterrupted.answers()
    assert [path.name[-6:] for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "2.ckpt",
        "4.ckpt",
        "6.ckpt",
    ]


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
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003.ckpt"
    save({"state_dict": {"weight": torch.zeros(3)}}, checkpoint_id=checkpoint, no_dist=True)
    torch.save({}, checkpoint / "meta.pt")
    done = fit(file, tmp_path)
    assert done.code == 1
    assert "trainer.strategy: " in done.output
    assert "step-00000003.ckpt is sharded" in done.output


@pytest.mark.slow
def test_a_copy_per_node_continues_as_one_copy_and_is_exported_whole(whole, fit, tmp_path):
    """Four processes in two copies stop; one process continues, and what it ends with is what ``export`` writes of the
    shares of two.
    """
    file, uninterrupted = whole
    hybrid = strategy(SHARDED, replicate=2)
    first = fit(file, tmp_path, hybrid, ranks=4, sharded=False, STOP_STEP=str(STOP), STOP_RANK="3")
    assert first.code != 0
    second = fit(file, tmp_path, strategy(SHARDED), ranks=2, sharded=False)
    assert second.code == 0, second.output[-4000:]
    assert second.probe(0)["start"] == STOP
    assert second.losses() == pytest.approx(uninterrupted.losses(), abs=1e-5)
    assert second.answers() == uninterrupted.answers()
    (newest,) = (tmp_path / "run" / "checkpoints").glob("step-00000006.ckpt")
    assert newest.is_dir()
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    written = load_file(tmp_path / "out" / "model.safetensors")
    trained = load_file(tmp_path / "run" / "weights" / "projector.safetensors")
    torch.testing.assert_close({f"vlm.projector.{name}": t for name, t in trained.items()}, {
        name: written[name] for name in written if name.startswith("vlm.projector.")
    }, rtol=0, atol=0)  # fmt: skip


@pytest.mark.slow
def test_computing_in_bfloat16_keeps_float32_weights(whole, fit, tmp_path):
    """As the losses are: near those of float32, and not they."""
    file, exact = whole
    mixed = strategy(SHARDED, param_dtype="bfloat16", reduce_dtype="float32")
    done = fit(file, tmp_path, mixed, ranks=2, sharded=False)
    assert done.code == 0, done.output[-4000:]
    assert done.losses() == pytest.approx(exact.losses(), abs=0.05)
    assert done.losses() != pytest.approx(exact.losses(), abs=1e-5)
    assert {tensor.dtype for tensor in done.weights().values()} == {torch.float32}
