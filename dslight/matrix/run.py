"""Try all kinds, each in a process of its own, and write down what became of them: ``docs/models.md``.

A kind's verdict is a file of its own under the folder of results, so that a run that was stopped goes on, and a change
of one library's version begins anew.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dslight.files.atomic import write_atomically
from dslight.files.typed import read_json
from dslight.matrix.decoders import kinds, tried
from dslight.matrix.page import page
from dslight.matrix.verdict import CRASHED, REFUSED, WORKS, Verdict

LIBRARIES = ("transformers", "torch")
LIMIT = 180
"""Seconds of CPU that a kind may take; asleep it may be for four times as long."""


def folder(root: Path) -> Path:
    """Of the verdicts with the libraries that are installed."""
    return root / "-".join(f"{name}-{version(name)}" for name in LIBRARIES)


def verdicts(root: Path, wanted: Iterable[str] | None = None, again: bool = False) -> Iterator[Verdict]:
    """Those of the wanted kinds (default: all), tried now unless they were before."""
    place = folder(root)
    place.mkdir(parents=True, exist_ok=True)
    for kind in kinds() if wanted is None else wanted:
        path = place / f"{kind}.json"
        if again or not path.is_file():
            write_atomically(path, json.dumps(_apart(kind).to_dict(), indent=1) + "\n")
        yield read_json(path, Verdict)


def _apart(kind: str) -> Verdict:
    """Tried in a process of its own, which shares what was imported here, and which is ended when it takes too long."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work(sender: Any) -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        sender.send(tried(kind).to_dict())

    process = context.Process(target=work, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        if here.poll(4 * LIMIT):
            return Verdict(**here.recv())
    except EOFError:
        process.join()
        if process.exitcode not in (-signal.SIGXCPU, -signal.SIGKILL):
            return Verdict(kind, CRASHED, f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()
    return Verdict(kind, CRASHED, f"took longer than {LIMIT} s")


def models(root: Path, wanted: list[str], again: bool, write: Path | None) -> int:
    """``dslight models``: a line for each kind as it is tried, then the page, where all kinds were.

    Returns:
        The exit code: 1 where a kind is neither right nor refused.
    """
    import torch  # noqa: F401  # once, and not in every process that is forked from this one
    import transformers  # noqa: F401

    import dslight.components.language_model  # noqa: F401

    found = []
    for verdict in verdicts(root, wanted or None, again):
        said = " ".join((verdict.said or "; ".join(verdict.notes)).split())
        print(f"{verdict.kind:<26}{verdict.verdict:<9}{verdict.checked:<8}{verdict.seconds:6.1f} s  {said}", flush=True)
        found.append(verdict)
    if write is not None and not wanted:
        write_atomically(write, page(found, ", ".join(f"{name} {version(name)}" for name in LIBRARIES)))
    return 0 if all(verdict.verdict in (WORKS, REFUSED) for verdict in found) else 1
