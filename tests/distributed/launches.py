"""``dslight`` as processes of its own, one or several ranks: started, waited for, never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TIMEOUT = 280
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
    """``python -m dslight ...`` or a program of this folder, with a process per rank; killed after ``TIMEOUT`` seconds,
    and then the test has failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", *(launcher or ["--standalone"]), f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks > 1 or launcher else []), *arguments]
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    env |= {"PYTHONPATH": path, "PROBE_FOLDER": str(folder), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    began = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | env, cwd=folder, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = (folder / "output.txt").read_text()
    assert code is not None, f"still running after {TIMEOUT} s:\n{text[-4000:]}"
    return Ended(code, text, time.monotonic() - began)
