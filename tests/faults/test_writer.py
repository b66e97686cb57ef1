"""The writer of shards is killed, its disk is full, another one comes: what is visible is whole, and can be resumed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dslight.data.shards import ShardError, ShardReader, ShardWriter


def write_some(root: Path) -> None:
    rng = np.random.default_rng(1)
    with ShardWriter(root, shard_records=5) as writer:
        for i in range(100):
            writer.write(f"k-{i:04d}", [b"\xff\xd8\xff" + rng.bytes(3000)], {"id": i})


def shards_of(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.iterdir()) if not path.name.startswith(".")}


def check_unfinished(root: Path, expected: dict[str, bytes]) -> None:
    """What an interrupted writer leaves is a beginning of what a whole one writes, and no reader takes it."""
    left = shards_of(root)
    assert "manifest.json" not in left
    assert {name: expected[name] for name in left} == left
    with pytest.raises(ShardError, match="no finished shards"):
        ShardReader(root)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("whole")
    write_some(root)
    return shards_of(root)


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.fault(1)
def test_a_writer_killed_at_random_leaves_whole_shards_and_run_again_it_writes_the_same_bytes(
    kills, expected, tries, tmp_path
):
    context, rng = multiprocessing.get_context("fork"), random.Random(kills)

    def begin(root: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=write_some, args=(root,))
        process.start()
        return process

    began = time.monotonic()
    begin(tmp_path / "timed").join()
    seconds = time.monotonic() - began
    for attempt in range(4 * kills):
        root = tmp_path / str(attempt)
        process = begin(root)
        time.sleep(rng.uniform(0, seconds))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        if not root.exists() or (root / "manifest.json").exists():
            continue  # too early or too late
        with tries.one():
            check_unfinished(root, expected)
            write_some(root)
            assert shards_of(root) == expected
        if tries.count == kills:
            break
    assert tries.count == kills


# --- the disk
# --------------------------------------------------------------------------------------------------------------


def write_below(root: Path, limit: int, out: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write_some(root)
    except OSError as error:
        out.write_text(f"{error.errno} {error}")


@pytest.mark.parametrize(
    "limits", [(700, 12_000), pytest.param(range(700, 20_000, 1000), marks=pytest.mark.slow)], ids=["2", "20"]
)
@pytest.mark.fault(2)
def test_a_file_that_may_not_grow_is_named_with_its_bytes_and_the_shards_are_written_with_more_room(
    limits, expected, tries, tmp_path
):
    context = multiprocessing.get_context("fork")
    for limit in limits:
        root, out = tmp_path / str(limit), tmp_path / f"{limit}.txt"
        process = context.Process(target=write_below, args=(root, limit, out))
        process.start()
        process.join()
        with tries.one():
            assert process.exitcode == 0
            message = out.read_text()
            assert message.startswith(f"{errno.EFBIG} ")
            assert "shard-000000" in message
            assert "bytes" in message
            check_unfinished(root, expected)
            write_some(root)
            assert shards_of(root) == expected


SMALL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_writer import write_some
try:
    write_some(Path(sys.argv[2]))
except OSError as error:
    print(error.errno, error)
    sys.exit(3)
"""

IN_A_TMPFS = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
{python} -c '{program}' {here} {disk}/shards > {out} && echo fits > {out}.code || echo full > {out}.code
mount -o remount,size=8m {disk}
mkdir {out}.left; cp -r {disk}/shards/. {out}.left/
{python} -c '{program}' {here} {disk}/shards
mkdir {out}.done; cp -r {disk}/shards/. {out}.done/
"""


def can_mount(tmp_path: Path) -> bool:
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(tmp_path)],
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


@pytest.mark.parametrize(
    "sizes",
    [("40k",), pytest.param([f"{size}k" for size in range(16, 480, 32)], marks=pytest.mark.slow)],
    ids=["1", "15"],
)
@pytest.mark.fault(2)
def test_a_small_disk_that_is_full_leaves_whole_shards_and_is_named(sizes, expected, tries, tmp_path):
    """The disk gets full in a shard, in an index, or before the manifest."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no small disk can be mounted here")
    for size in sizes:
        out = tmp_path / size
        text = IN_A_TMPFS.format(
            size=size, disk=disk, python=sys.executable, program=SMALL_DISK, here=Path(__file__).parent, out=out
        )
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", text],
            capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        with tries.one():
            assert done.returncode == 0, done.stderr
            assert Path(f"{out}.code").read_text() == "full\n"
            assert out.read_text().startswith(f"{errno.ENOSPC} ")
            assert "bytes" in out.read_text()
            check_unfinished(Path(f"{out}.left"), expected)
            assert shards_of(Path(f"{out}.done")) == expected


# --- the producer, and a second writer
# -------------------------------------------------------------------------------------


@pytest.mark.fault(3)
@pytest.mark.parametrize("at", [0, 3, 5, 52])
def test_an_exception_in_the_producer_finalises_no_short_shard(at, expected, tmp_path):
    def records():
        rng = np.random.default_rng(1)
        for i in range(100):
            if i == at:
                raise ValueError("the source broke")
            yield f"k-{i:04d}", [b"\xff\xd8\xff" + rng.bytes(3000)], {"id": i}

    with pytest.raises(ValueError, match="broke"), ShardWriter(tmp_path, shard_records=5) as writer:  # noqa: PT012
        for record in records():
            writer.write(*record)
    check_unfinished(tmp_path, expected)
    assert len(list(tmp_path.glob("*.tar"))) == at // 5
    assert not list(tmp_path.glob(".*.tmp"))


def hold(root: Path, ready: Path) -> None:
    with ShardWriter(root):
        ready.touch()
        time.sleep(60)


@pytest.mark.fault(4)
def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_kill(expected, tmp_path):
    root, ready = tmp_path / "shards", tmp_path / "ready"
    process = multiprocessing.get_context("fork").Process(target=hold, args=(root, ready))
    process.start()
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(ShardError, match="another writer is at work"):
        write_some(root)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    write_some(root)
    assert shards_of(root) == expected
