"""``dslight`` as processes of its own, one or several ranks: started, waited for, never left behind."""

from __future__ import annotations

import json
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

HERE = Path(__file__).parent
TIMEOUT = 500
STRATEGY = "lightning.pytorch.strategies.ModelParallelStrategy"
SHARDED = "dslight.train.Sharded"


@dataclass(frozen=True)
class Ended:
    """A launch that is over."""

    code: int
    output: str
    seconds: float


def strategy(class_path: str, **init_args: Any) -> str:
    """An override."""
    return "trainer.strategy=" + json.dumps({"class_path": class_path, "init_args": init_args})


def launch(folder: Path, arguments: list[str], ranks: int, launcher: list[str] | None = None, **env: str) -> Ended:
    """``python -m dslight ...`` or a program of this folder, with a process per rank."""
    torchrun = ["-m", "torch.distributed.run", *(launcher or ["--standalone"]), f"--nproc-per-node={ranks}"]
    return launch_all(folder, [[*(torchrun if ranks > 1 or launcher else []), *arguments]], **env)


def launch_all(folder: Path, calls: list[list[str]], stop_at: Path | None = None, **env: str) -> Ended:
    """Several programs of Python at the same time; killed after ``TIMEOUT`` seconds, and then the test has failed.

    The worst exit code counts. With ``stop_at`` all of them get SIGTERM once this file is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    env = {"PYTHONPATH": path, "PROBE_FOLDER": str(folder), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | env
    began = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        processes = [
            subprocess.Popen(
                [sys.executable, *call],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | env,
                cwd=folder,
                start_new_session=True,
            )
            for call in calls
        ]
        try:
            while any(process.poll() is None for process in processes):
                if stop_at is not None and stop_at.exists():
                    stop_at = None
                    for process in processes:
                        process.send_signal(signal.SIGTERM)
                if time.monotonic() - began > TIMEOUT:
                    break
                time.sleep(0.05)
            codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = (folder / "output.txt").read_text()
    assert None not in codes, f"still running after {TIMEOUT} s:\n{text[-4000:]}"
    return Ended(max(codes, key=abs), text, time.monotonic() - began)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
