"""The worker process of a sweep: it imports the training function once and then trains one run after the other.

``Worker`` is the parent's end, ``work`` what the process does. It is a process group of its own, so that Ctrl-C in
the terminal reaches only the parent, which passes it on once: a second SIGINT would hit the checkpoint that the first
one is saving. If the parent dies, the worker interrupts itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from dslight.recipe.ablation import Run
from dslight.recipe.errors import RecipeError
from dslight.run.folder import HeldError, RunFolder
from dslight.run.sweep_state import is_done, write_about

Fit = Callable[..., Any]
"""``fit(recipe, run_dir, resume=True)`` trains and writes ``result.json``; at SIGINT it saves and raises it on."""

READY, DONE, FAILED, INTERRUPTED = "ready", "done", "failed", "interrupted"
HELD = "being trained by "
"""Begins the news of a run that another process trains, and goes on with who that is."""


class Worker:
    """The parent's end. ``pipe`` brings ``READY`` or a traceback, then how each run ended; EOF when the process ends.

    Args:
        fit: the training function or its dotted path.
        environment: variables that must be there before the process imports torch.
    """

    def __init__(self, fit: str | Fit, environment: dict[str, str]) -> None:
        context = get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=work, args=(fit, other_end))
        self.ready = False
        before = {key: os.environ.get(key) for key in environment}
        os.environ.update(environment)
        # inherited, too: until the process has made itself a group of its own, Ctrl-C must not reach it
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        other_end.close()

    def interrupt(self) -> None:
        """What Ctrl-C does, to the process alone: its data loaders are its own business."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid or 0, signal.SIGINT)

    def close(self, gently: bool) -> None:
        """End the process: ``gently`` when it waits for a run; else with all that it started (data loaders)."""
        with suppress(OSError):
            self.pipe.send(None)
        if gently:
            self.process.join(10)
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid or 0, number)
            except ProcessLookupError:  # all gone, or it did not get as far as to lead its group
                self.process.kill()
            self.process.join(5)
        self.pipe.close()


def work(fit: str | Fit, pipe: Connection) -> None:
    """Import ``fit``, send ``READY`` (or the traceback), then answer each (ablation, run) with how the run ended.

    Returns at ``None``, when the parent is gone, and after a run that did not end well: what it left in the process
    (a broken CUDA context, hooks, threads) must not reach the next run.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_interrupt_when_orphaned, daemon=True).start()
    try:
        try:
            function = resolve_name(fit) if isinstance(fit, str) else fit
        except Exception:
            pipe.send(traceback.format_exc())
            return
        pipe.send(READY)
        while (job := pipe.recv()) is not None:
            ending = _train(function, *job)
            pipe.send(ending)
            if ending != DONE and not ending.startswith(HELD):
                return
    except (KeyboardInterrupt, EOFError, OSError):
        return


def _train(fit: Fit, ablation: str, run: Run) -> str:
    try:
        with RunFolder(run.run_dir).held():
            if is_done(run):  # by another sweep, since this one looked
                return DONE
            write_about(ablation, run)
            return _logged(fit, run)
    except HeldError as error:
        return f"{HELD}{error.holder}"
    except (RecipeError, OSError) as error:
        return str(error)


def _logged(fit: Fit, run: Run) -> str:
    with _output_to(run.run_dir / "log.txt"):
        try:
            fit(run.recipe, run.run_dir, resume=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            return INTERRUPTED
        except BaseException:  # SystemExit too: a run must not end the worker unnoticed
            traceback.print_exc()
            return FAILED
    return DONE


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Everything that is written to file descriptors 1 and 2, by whatever language, is appended to ``path``."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    saved = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)


def _interrupt_when_orphaned() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)
