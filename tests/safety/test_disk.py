"""A full disk: one sentence with the file and what it needs, nothing left behind, and the same command continues."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from dslight.cli import main
from dslight.components.component import save_weights
from dslight.files.atomic import replacing, write_atomically
from dslight.files.system import NoSpaceError, no_space, room_for
from dslight.run.folder import RunFolder
from dslight.texts import LONGEST
from dslight.train.checkpoint_io import StreamedCheckpoint, tensor_bytes
from dslight.train.finite import LossError

pytestmark = pytest.mark.promise("a full disk is one sentence, and nothing is lost")


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(megabytes)``: a disk of this size; called again it grows. Needs the rights to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def mount(megabytes: float) -> Path:
        options = f"size={int(megabytes * 2**20)}" + (",remount" if mounted else "")
        call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            done = subprocess.run(call, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("a disk cannot be mounted here")
        mounted.append(True)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_full_disk_ends_a_fit_with_one_line_and_after_making_room_it_goes_on(recipe, small_disk, capsys):
    folder = small_disk(1.5) / "run"
    assert main(["fit", str(recipe), f"run_dir={folder}"]) == 1
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"dslight: {folder}/checkpoints/")
    assert "no space left on the disk (it needs " in said
    assert "MB are free)" in said
    assert len(said) <= LONGEST
    assert not [name for name in files(folder) if name.endswith((".tmp", ".partial"))]
    small_disk(60)
    assert main(["fit", str(recipe), f"run_dir={folder}"]) == 0
    assert (folder / "result.json").exists()


def test_a_checkpoint_goes_neither_through_the_folder_for_temporary_files_nor_whole_through_memory(tmp_path):
    program = """
import os, resource, sys, tempfile, torch
from dslight.train.checkpoint_io import StreamedCheckpoint
state = {"state_dict": {f"layer{i}": torch.ones(10, 1 << 18) for i in range(20)}}
StreamedCheckpoint().save_checkpoint({"state_dict": {"small": torch.ones(1000)}}, "small.ckpt")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
StreamedCheckpoint().save_checkpoint(state, "large.ckpt")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    environment = os.environ | {"TMPDIR": "/proc"}  # nothing can be written there
    call = [sys.executable, "-c", program]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "large.ckpt").stat().st_size > 200 * 2**20
    assert float(done.stdout) < 40
    assert files(tmp_path) == ["large.ckpt", "small.ckpt"]
    assert torch.load(tmp_path / "large.ckpt", weights_only=True)["state_dict"]["layer7"].sum() == 10 << 18


def test_a_run_writes_its_checkpoints_that_way(recipe, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("by way of a temporary file")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'run'}", "trainer.max_steps=1"]) == 0
    assert files(tmp_path / "run" / "checkpoints") == ["step-00000001.ckpt"]


class Full:
    """A file that takes some bytes, and then there is no room."""

    def __init__(self, room: int) -> None:
        self.room = room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def test_torchs_complaint_about_its_own_position_does_not_hide_the_full_disk(tmp_path, small_disk):
    checkpoint = {"state_dict": {"weight": torch.zeros(1_000_000)}}
    with pytest.raises(RuntimeError, match="unexpected pos") as theirs:
        torch.save(checkpoint, Full(100_000))
    assert no_space(theirs.value) is not None
    path = small_disk(1) / "step.ckpt"
    with pytest.raises(NoSpaceError) as caught:
        StreamedCheckpoint().save_checkpoint(checkpoint, path)
    assert str(caught.value).startswith(f"{path}: no space left on the disk (it needs 4.0 MB, ")
    assert files(path.parent) == []


def test_a_full_disk_is_seen_in_what_a_sharded_checkpoint_and_a_safetensors_file_raise(small_disk):
    from torch.distributed.checkpoint import save

    state = {"weight": torch.zeros(1_000_000)}
    disk = small_disk(1)
    with pytest.raises(NoSpaceError, match=r"step\.ckpt: no space left on the disk \(it needs 4\.0 MB, "):  # noqa: SIM117
        with room_for(disk / "step.ckpt", tensor_bytes(state)):
            save(state, checkpoint_id=disk / "step.ckpt", no_dist=True)
    for path in (disk / "step.ckpt").iterdir():
        path.unlink()
    with pytest.raises(NoSpaceError, match=r"projector\.safetensors: no space left on the disk \(it needs 4\.0 MB, "):
        save_weights(state, disk / "weights" / "projector.safetensors")
    assert files(disk) == []


def test_what_is_closed_after_a_failure_does_not_hide_it(recipe, tmp_path, monkeypatch, capsys):
    """The loss is not a number; then Lightning closes its log, on a disk that is full."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def wrong(*_, **__):
        raise LossError("the loss is not a number at step 1")

    monkeypatch.setattr("dslight.train.callbacks.Pace.on_train_batch_start", wrong)
    monkeypatch.setattr(CSVLogger, "finalize", full)
    monkeypatch.setattr(RunFolder, "join_logs", full)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'run'}"]) == 1
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert capsys.readouterr().err.strip().splitlines()[-1] == "dslight: the loss is not a number at step 1"


def test_leftovers_are_removed_at_the_next_start(recipe, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / ".step-00000001.partial").mkdir(parents=True)
    (folder / "weights").mkdir()
    for name in (
        ".metrics.csv.0a1b2c3d.tmp",
        "checkpoints/.step-00000002.partial.0a1b2c3d.tmp",
        "weights/.p.0a1b2c3d.tmp",
    ):
        (folder / name).write_text("cut off")
    assert main(["fit", str(recipe), f"run_dir={folder}", "trainer.max_steps=1"]) == 0
    assert not list(folder.rglob(".*"))


def test_a_file_is_there_whole_or_not_at_all(small_disk):
    disk = small_disk(1)
    write_atomically(disk / "scores.json", "{}")
    with pytest.raises(NoSpaceError, match=r"scores\.json: no space left on the disk \(it needs 2\.0 MB, "):
        write_atomically(disk / "scores.json", b"x" * 2_000_000)
    with pytest.raises(ZeroDivisionError), replacing(disk / "scores.json") as file:
        file.write(b"half" * (1 // 0))
    assert files(disk) == ["scores.json"]
    assert (disk / "scores.json").read_text() == "{}"


def test_a_limit_of_file_sizes_is_a_full_disk_too(tmp_path):
    program = """
import resource
from pathlib import Path
from dslight.files.atomic import write_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_atomically(Path("scores.json"), b"x" * 2000)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    ).stderr.splitlines()[-1]
    assert "NoSpaceError: scores.json: the file would be larger than" in done
    assert files(tmp_path) == []


def test_an_export_to_a_full_disk_leaves_nothing_there(recipe, tmp_path, small_disk, capsys):
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'run'}", "trainer.max_steps=1"]) == 0
    out = small_disk(0.3) / "exported"
    assert main(["export", str(tmp_path / "run"), str(out)]) == 1
    *_, said = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"dslight: {out}: no space left on the disk (it needs ")
    assert list(out.parent.iterdir()) == []
