"""``dslight`` as processes of its own, one or several ranks: started, waited for, never left behind.

Forked (:func:`fork`), which is quick, or by the commands of a shell (:func:`launch`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import agent, dslight, free_port, rank_of_torchrun, start, wait_all

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


def fork(folder: Path, arguments: list[str], ranks: int, torchrun: list[str] | None = None, **env: str) -> Ended:
    """``dslight ...`` in a process per rank that knows its place as torchrun would tell it, and nobody ends the others
    when one fails; or in those of a torchrun with such options. The worst exit code counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    env = {"PROBE_FOLDER": str(folder), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | env
    began, port = time.monotonic(), free_port()
    if torchrun is not None:
        options = [*torchrun, f"--nproc-per-node={ranks}"]
        processes = [start(agent, options, arguments, variables=env, out=folder / "output-0.txt")]
    else:
        places = [rank_of_torchrun(rank, ranks, port) if ranks > 1 else {} for rank in range(ranks)]
        processes = [
            start(dslight, arguments, variables=place | env, out=folder / f"output-{rank}.txt")
            for rank, place in enumerate(places)
        ]
    codes = wait_all(processes, TIMEOUT)
    text = "".join(out.read_text() for out in sorted(folder.glob("output-*.txt")))
    (folder / "output.txt").write_text(text)
    seconds = time.monotonic() - began
    assert None not in codes, f"still running after {TIMEOUT} s:\n{text[-4000:]}"
    return Ended(max((code for code in codes if code is not None), key=abs), text, seconds)


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
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # pytest-xdist's are deaf to it
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
