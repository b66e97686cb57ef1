"""Processes of the fault tests: started as a launcher would, waited for, and never left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Ended:
    """Processes that have ended."""

    codes: list[int | None]
    outputs: list[str]
    seconds: float


def wait_all(processes: list[Any], timeout: float) -> list[int | None]:
    """Exit codes, ``None`` for a process that is not done after ``timeout`` seconds; then nothing of them is left."""
    end = time.monotonic() + timeout
    codes = []
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        codes.append(process.exitcode)
    for process in processes:  # also what they started and left behind
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    return codes


def program(arguments: list[str], variables: dict[str, str], out: Path) -> None:
    from dslight.cli import main

    os.setsid()
    os.environ.update(variables)
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)  # pytest has put its own there
    os.chdir(out.parent)
    sys.exit(main(arguments))


SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "127.0.0.1",
    "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip


def slurm(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What ``srun`` tells a process."""
    each = {"SLURM_NTASKS": ranks, "SLURM_NTASKS_PER_NODE": ranks, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    return {**SLURM, **{name: str(value) for name, value in each.items()}, "MASTER_PORT": str(port)}


class Joined:
    """A ``Popen`` with the manners of a ``multiprocessing.Process``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process, self.pid = process, process.pid

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)

    @property
    def exitcode(self) -> int | None:
        return self.process.poll()
