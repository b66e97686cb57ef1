"""A lock ends with its process, says who holds it, and is said to be missing where there is none."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dslight.files.locks import FOREVER, HeldError, locked

HOLD = """
import sys, time
from pathlib import Path
from dslight.files.locks import locked
with locked(Path(sys.argv[1])):
    {between}
    print("held", flush=True)
    sys.stdin.read()
"""
FORK = "import os\n    if not os.fork():\n        os.close(1); time.sleep(float(sys.argv[2])); os._exit(0)"


@pytest.fixture
def holder(tmp_path):
    """``holder(file)``: a process that holds a lock until its input ends."""
    started = []

    def start(file: Path, *arguments: str, between: str = "pass") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD.format(between=between), str(file), *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_told_who_holds_it_and_gets_it_when_that_is_done(holder, tmp_path):
    file = tmp_path / ".lock"
    first = holder(file)
    with pytest.raises(HeldError, match=rf"held by process {first.pid} on \S+, since 20"), locked(file):
        pass
    first.stdin.close()
    with locked(file, patience=10):
        assert file.exists()
    assert not file.exists()


def test_a_killed_process_leaves_no_lock_behind(holder, tmp_path):
    file = tmp_path / ".lock"
    first = holder(file)
    first.kill()
    first.wait()
    assert file.exists()
    with locked(file):
        pass
    assert not file.exists()


def test_what_a_killed_process_has_forked_is_waited_for(holder, tmp_path, caplog):
    file = tmp_path / ".lock"
    first = holder(file, "2", between=FORK)
    began = time.monotonic()
    first.kill()
    first.wait()
    with locked(file):
        assert time.monotonic() - began > 1.0
    assert f"waiting for what process {first.pid}" in caplog.text


def test_a_lock_that_is_removed_while_others_wait_is_held_by_one_at_a_time(tmp_path):
    """Each of many processes adds one to a number in a file, which only one at a time can do right."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom dslight.files.locks import FOREVER, locked\n"
        "number = Path(sys.argv[1])\n"
        "for _ in range(40):\n"
        "    with locked(number.with_name('.lock'), FOREVER):\n"
        "        was = int(number.read_text()); time.sleep(0.0005); number.write_text(str(was + 1))\n"
    )
    number = tmp_path / "number"
    number.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", program, str(number)]) for _ in range(4)]
    assert [process.wait(timeout=240) for process in processes] == [0] * 4
    assert number.read_text() == "160"


def test_who_holds_it_goes_on_and_another_thread_does_not(tmp_path):
    from threading import Thread

    refused = []

    def other() -> None:
        try:
            with locked(tmp_path / ".lock"):
                pass
        except HeldError as error:
            refused.append(str(error))

    with locked(tmp_path / ".lock"), locked(tmp_path / ".lock", again=True):
        with pytest.raises(HeldError), locked(tmp_path / ".lock"):
            pass
        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_once_and_worked_on(number, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with locked(tmp_path / ".lock") as held:
                assert not held
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}: its file system has no locks ({os.strerror(number)})")


@pytest.mark.parametrize("note", ["", "[]", '{"process": "x"}', "[" * 900, '{"process": -1, "host": 3, "since": null}'])
def test_what_another_wrote_into_it_is_no_matter(note, tmp_path):
    file = tmp_path / ".lock"
    file.write_text(note)
    with file.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(HeldError), locked(file):
            pass
    with locked(file, FOREVER):
        pass


def test_an_interrupt_ends_the_waiting(holder, tmp_path):
    file = tmp_path / ".lock"
    holder(file)
    program = (
        f"from pathlib import Path\nfrom dslight.files.locks import *\nwith locked(Path({str(file)!r}), FOREVER): 1"
    )
    waiting = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in waiting.communicate(timeout=20)[1]
