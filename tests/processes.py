"""``dslight`` in forked processes: started as launchers start it, waited for, and never left behind.

A forked process has imported everything already, which is most of what a tiny run costs.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 220
"""Seconds that processes may take at most: pytest's own limit is 300."""


IMPORTED = (
    "dslight.run.evaluate", "dslight.run.fit", "dslight.run.result", "dslight.run.sweep", "dslight.train",
    "lightning.pytorch.callbacks", "lightning.pytorch.loggers", "peft", "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.utils._sympy.reference",
    "transformers.generation.utils", "transformers.models.llama.modeling_llama",
)  # fmt: skip
"""What a run would import in its process, and each of the next ones again."""


def a_minute() -> float:
    """In seconds; longer on a machine that has more to do than processors. Ranks of which one has failed end within it,
    where a collective would wait for half an hour.
    """
    return 60 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


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


def dslight(arguments: list[str]) -> NoReturn:
    from dslight.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist is deaf to it
    sys.exit(main(arguments))


def module(name: str, *arguments: str) -> None:
    """``python -m NAME ...``."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def agent(options: list[str], arguments: list[str]) -> None:
    """torchrun with these options; its workers are forked."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    config, _, _ = config_from_args(parse_args([*options, "dslight"]))
    config.start_method = "fork"
    elastic_launch(config, _worker)(arguments)


def _worker(arguments: list[str]) -> None:
    _own_threads()
    dslight(arguments)


def _own_threads() -> None:
    """Let a forked process have a pool of threads of its own. It makes one where it is first asked for the number of
    threads, and where two threads ask at once, one may find none: "Invalid thread pool!", and the process is aborted.
    """
    import torch

    torch.set_num_threads(1)


def _alone(what: Callable[..., None], arguments: tuple[Any, ...], variables: dict[str, str], *outs: Path) -> None:
    # garbage of the tests before is theirs: Python before 3.11.8 fails to parse anything while a finalizer's traceback
    # is being written, and this process parses a lot
    gc.freeze()
    os.setsid()
    os.environ.update(variables)
    for number, out in enumerate(outs, start=1):
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)  # pytest has put its own there
    os.chdir(outs[0].parent)
    _own_threads()
    what(*arguments)


def start(
    what: Callable[..., None], *arguments: Any, variables: dict[str, str], out: Path, errors: Path | None = None
) -> Any:
    """``what(*arguments)`` in a forked process, which writes to ``out`` (and ``errors``) and works in its folder."""
    import dslight.run.result
    import dslight.vlm

    for name in IMPORTED if what in (dslight, agent) else ():
        import_module(name)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_alone, args=(what, arguments, variables, out, errors or out))
    process.start()
    return process


def completed(
    what: Callable[..., None],
    *arguments: Any,
    folder: Path,
    timeout: float = LIMIT,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What ``subprocess.run`` would say of ``what(*arguments)`` in a forked process, which works in ``folder``."""
    out, errors = folder / ".out.txt", folder / ".errors.txt"
    for file in (out, errors):
        file.unlink(missing_ok=True)
    process = start(what, *arguments, variables=variables or {}, out=out, errors=errors)
    (code,) = wait_all([process], timeout)
    found = subprocess.CompletedProcess(arguments, code, out.read_text(), errors.read_text())
    assert code is not None, f"still running after {timeout} s:\n{found}"
    for file in (out, errors):
        file.unlink()
    return found


SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "127.0.0.1",
    "SLURM_NODELIST": "127.0.0.1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip


def slurm(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What ``srun`` tells a process."""
    each = {"SLURM_NTASKS": ranks, "SLURM_NTASKS_PER_NODE": ranks, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    return {**SLURM, **{name: str(value) for name, value in each.items()}, "MASTER_PORT": str(port)}


def rank_of_torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What ``torchrun`` tells a process; rank 0 keeps the store."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    return {**where, "GLOO_SOCKET_IFNAME": "lo", **{name: str(value) for name, value in place.items()}}


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
