"""Which checkpoint a run continues from: the newest of which every byte is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import save

from dslight.run.folder import RunFolder, is_complete


def sharded(path: Path) -> Path:
    """A checkpoint as the strategy writes it, and ``meta.pt`` as Lightning does, last."""
    path.mkdir(parents=True)
    save({"state_dict": {"weight": torch.arange(2000.0), "bias": torch.arange(3.0)}}, checkpoint_id=path, no_dist=True)
    torch.save({"global_step": 1}, path / "meta.pt")
    return path


def whole(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": torch.arange(2000.0)}}, path)
    return path


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGE = {
    "no meta.pt": lambda path: (path / "meta.pt").unlink(),
    "half of meta.pt": lambda path: shorten(path / "meta.pt"),
    "an empty meta.pt": lambda path: (path / "meta.pt").write_bytes(b""),
    "no table of contents": lambda path: (path / ".metadata").unlink(),
    "half a table of contents": lambda path: shorten(path / ".metadata"),
    "a rank's file is missing": lambda path: next(path.glob("*.distcp")).unlink(),
    "a rank's file is cut short": lambda path: shorten(next(path.glob("*.distcp"))),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_folder_is_not_continued_from(what, tmp_path):
    run = RunFolder(tmp_path)
    older, newest = (sharded(run.checkpoints / f"step-0000000{step}.ckpt") for step in (3, 6))
    assert run.latest_checkpoint() == newest
    DAMAGE[what](newest)
    assert run.latest_checkpoint() == older
    DAMAGE[what](older)
    assert run.latest_checkpoint() is None


def test_a_file_that_was_cut_off_is_not_continued_from(tmp_path):
    run = RunFolder(tmp_path)
    older, newest = (whole(run.checkpoints / f"step-0000000{step}.ckpt") for step in (3, 6))
    assert run.latest_checkpoint() == newest
    shorten(newest)
    assert not is_complete(newest)
    assert run.latest_checkpoint() == older


def test_what_is_being_written_does_not_count_until_it_is_whole(tmp_path):
    run = RunFolder(tmp_path)
    sharded(run.partial(4))
    assert run.latest_checkpoint() is None
    run.finish(4)
    assert run.latest_checkpoint() == run.checkpoints / "step-00000004.ckpt"
    assert not run.partial(4).exists()


def test_the_newest_by_step_are_kept_and_nothing_else_is_touched(tmp_path):
    run = RunFolder(tmp_path)
    for step in (900, 1000, 99):
        sharded(run.checkpoints / f"step-{step:08d}.ckpt")
    best = whole(run.checkpoints / "best-epoch=3.ckpt")
    run.keep(2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        best.name, "step-00000900.ckpt", "step-00001000.ckpt",
    ]  # fmt: skip
    run.keep(1)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [best.name, "step-00001000.ckpt"]


def test_damaged_ones_behind_the_start_do_not_push_out_those_of_the_run_that_goes_on(tmp_path, capsys):
    run = RunFolder(tmp_path)
    sharded(run.checkpoints / "step-00000003.ckpt")
    damaged = sharded(run.checkpoints / "step-00000009.ckpt")
    (damaged / "meta.pt").unlink()
    sharded(run.partial(12))
    run.set_aside(after=3)
    assert capsys.readouterr().out.startswith(f"{damaged}: damaged, or cut off while it was written")
    sharded(run.checkpoints / "step-00000006.ckpt")
    run.keep(2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "step-00000003.ckpt", "step-00000006.ckpt", "step-00000009.incomplete",
    ]  # fmt: skip
    assert run.latest_checkpoint() == run.checkpoints / "step-00000006.ckpt"
