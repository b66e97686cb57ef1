"""Run an ablation in a few long-lived worker processes, so that torch is imported once per worker and not per run.

    dslight sweep recipes/ablations/effect.yaml --jobs 2       # the same again after Ctrl-C or a crash: continues

What is decided here:

- A run whose ``result.json`` was made from the same recipe is done and skipped. A folder that was started from another
  recipe is an error that names the keys; it is neither kept nor overwritten silently.
- A run that another process trains, such as a second sweep of the same file, is left to it. What it has not finished by
  the time that nothing else is left to do is tried once more, then named; the exit status is 1.
- A run that fails, or whose worker is killed, does not stop the others; it is listed at the end with the last lines of
  its log, and the exit status is 1.
- Under torchrun its processes train the runs together, one after the other (``sweep_together``).
- Workers share the cores evenly (``OMP_NUM_THREADS``, unless it is set) and, where ``CUDA_VISIBLE_DEVICES`` lists
  several devices, the devices.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from tqdm import tqdm

from dslight.recipe.ablation import Ablation, Run
from dslight.recipe.compose import compose, differences
from dslight.recipe.errors import RecipeError
from dslight.recipe.spelling import check_spelling
from dslight.run.deletion import check_run
from dslight.run.folder import RunFolder
from dslight.run.processes import is_first, processes
from dslight.run.sweep_state import is_done, read_json
from dslight.run.sweep_together import train_together
from dslight.run.sweep_worker import DONE, FAILED, HELD, INTERRUPTED, READY, Fit, Worker

FIT = "dslight.run.fit.fit"
GRACE = 300.0
"""Seconds that interrupted runs get to save their checkpoints; a second Ctrl-C ends the wait."""
STATUS_EVERY = 60.0
"""Seconds between status lines where there is no terminal to draw a bar on."""
_BAR = "{desc}: {n_fmt}/{total_fmt} runs |{bar:16}| {elapsed}{postfix}"


def sweep(
    ablation: Ablation, jobs: int = 1, index: int | None = None, fit: str | Fit = FIT, fresh: bool = False
) -> int:
    """Run what is not done yet, ``jobs`` runs at a time, the dearest (``cost``) first. Returns the exit status.

    Args:
        ablation: what ``dslight.recipe.ablation.expand`` returns.
        jobs: worker processes.
        index: run only this one (for an array job of a cluster).
        fit: the function ``fit(recipe, run_dir, resume=True)``, or its dotted path, that trains a run, continues one
            that was interrupted, and writes ``result.json``.
        fresh: delete the folders of these runs and start them again.

    Returns:
        0: all done; 1: some failed, or are with other processes; 130: interrupted.

    Raises:
        RecipeError: ``jobs`` or ``index`` out of range; a run folder that was started from another recipe.
        RuntimeError: a worker cannot start, for example because ``fit`` cannot be imported.
    """
    if jobs < 1:
        raise RecipeError(f"jobs: {jobs} workers cannot run anything; at least 1")
    if index is not None and not 0 <= index < len(ablation.runs):
        raise RecipeError(f"index: {index}, but {ablation.name} has {len(ablation.runs)} runs, counted from 0")
    if processes() > 1 and (jobs > 1 or fresh):
        what = (
            "--fresh: delete the runs' folders first" if fresh else f"--jobs: {jobs} runs at a time cannot share them"
        )
        raise RecipeError(f"{what}; torchrun started {processes()} processes, which train one run after the other")
    runs = ablation.runs if index is None else [ablation.runs[index]]
    if fresh:
        _delete(runs)
    _refuse_other_recipes(runs)
    queue = sorted((run for run in runs if not is_done(run)), key=lambda run: -run.cost)
    if len(queue) < len(runs) and is_first():
        print(f"{ablation.name}: {len(runs) - len(queue)} of {len(runs)} runs are done already")
    if processes() > 1:
        return train_together(ablation.name, len(runs), queue)
    return _Sweep(ablation.name, len(runs), queue, jobs, fit).run()


def show(ablation: Ablation) -> str:
    """The runs, one per line: index, whether it is done, name, folder."""
    width = max(len(describe(run)) for run in ablation.runs)
    lines = []
    for run in ablation.runs:
        state = "done" if is_done(run) else "started" if (run.run_dir / "run.json").exists() else "-"
        lines.append(f"{run.index:4}  {state:7}  {describe(run):{width}}  {run.run_dir}")
    return "\n".join(lines)


def check_all(runs: Sequence[Run]) -> None:
    """Check every one of these runs that is not done, and look for the files that it needs, before any of them starts.

    Raises:
        RecipeError: for the first wrong recipe, with its arm.
    """
    runs = [run for run in runs if not is_done(run)]
    _each(check_spelling, runs)
    from dslight.recipe.build import ready  # torch, and all that builds models

    _each(ready, runs)


def _each(check: Callable[[Mapping[str, Any]], Any], runs: Sequence[Run]) -> None:
    for run in runs:
        try:
            check(run.recipe)
        except RecipeError as error:
            raise RecipeError(f"{error} ({describe(run)})") from error


def describe(run: Run) -> str:
    """``deepstack seed=0``: how messages call a run."""
    return " ".join([run.arm, *(f"{key.rpartition('.')[2]}={value}" for key, value in run.point.items())])


@dataclass
class _Task:
    """A run in the hands of a worker."""

    run: Run
    since: float


class _Sweep:
    """One sweep under way: what waits, who works on what, what failed."""

    def __init__(self, name: str, total: int, queue: list[Run], jobs: int, fit: str | Fit) -> None:
        self.name, self.total, self.queue, self.fit = name, total, queue, fit
        self.jobs = min(jobs, len(queue))
        self.workers: dict[int, Worker] = {}  # by place, 0 to jobs - 1
        self.tasks: dict[int, _Task] = {}
        self.failed: list[tuple[Run, str]] = []
        self.elsewhere: list[tuple[Run, str]] = []
        self.asked_again = False
        self.seconds: list[tuple[float, Run]] = []  # of the runs that finished here
        self.finished = total - len(queue)
        self.status_at = time.monotonic()

    def run(self) -> int:
        # disable=None: no bar where the output is not a terminal
        with tqdm(total=self.total, initial=self.finished, desc=self.name, disable=None, bar_format=_BAR) as self.bar:
            try:
                while self._goes_on():
                    self._hire()
                    self._listen()
                    self._show_status()
            except KeyboardInterrupt:
                return self._stop()
            finally:
                for place in list(self.workers):
                    self._dismiss(place)
        return self._summary()

    def _goes_on(self) -> bool:
        """Whether there is something left to do, such as what others have left."""
        if not self.queue and not self.tasks and not self.asked_again:
            self.asked_again = True
            self.queue = [run for run, _ in self.elsewhere if not is_done(run)]
            self.elsewhere = []
        return bool(self.queue or self.tasks)

    def _hire(self) -> None:
        """Give every idle worker a run; start workers while there are runs for them."""
        for place in range(self.jobs):
            worker = self.workers.get(place)
            if worker is None and self.queue:
                self.workers[place] = Worker(self.fit, _share(place, self.jobs))
            elif worker is not None and worker.ready and place not in self.tasks:
                if self.queue:
                    self._start(place, self.queue.pop(0))
                else:
                    self._dismiss(place)

    def _start(self, place: int, run: Run) -> None:
        self.tasks[place] = _Task(run, time.monotonic())
        self.workers[place].pipe.send((self.name, run))

    def _listen(self) -> None:
        """Wait half a second for news of the workers."""
        ready = wait([worker.pipe for worker in self.workers.values()], timeout=0.5)
        for place, worker in list(self.workers.items()):
            if worker.pipe in ready or not worker.process.is_alive():
                self._hear(place, worker)

    def _hear(self, place: int, worker: Worker) -> None:
        try:
            news = worker.pipe.recv() if worker.pipe.poll() else _death(worker)
        except (EOFError, OSError):
            news = _death(worker)
        if news == READY:
            worker.ready = True
        elif place not in self.tasks:
            raise RuntimeError(f"{self.name}: a worker could not start\n{news}")
        else:
            self._end(self.tasks.pop(place), news)
            if news != DONE and not news.startswith(HELD):  # it ends itself; its place is filled anew
                self._dismiss(place)

    def _end(self, task: _Task, news: str) -> None:
        seconds = time.monotonic() - task.since
        if news == DONE and not is_done(task.run):
            news = "returned without writing a result.json of this recipe"
        if news == DONE:
            self.seconds.append((seconds, task.run))
            score = (read_json(task.run.run_dir / "result.json") or {}).get("accuracy")
            outcome = f"accuracy {score:.4f}" if isinstance(score, (int, float)) else "no score"
        elif news == INTERRUPTED:
            outcome = "interrupted"
        elif news.startswith(HELD):
            self.elsewhere.append((task.run, news))
            self._say(f"{describe(task.run)}: {news}; left to it")
            return
        else:
            self.failed.append((task.run, news))
            outcome = "FAILED" if news == FAILED else f"FAILED: {news}"
        if news != INTERRUPTED:
            self.finished += 1
            self.bar.update(1)
        self._say(f"[{self.finished}/{self.total}] {describe(task.run)}: {outcome}, {seconds / 60:.1f} min")

    def _say(self, line: str) -> None:
        self.bar.write(line)
        sys.stdout.flush()

    def _dismiss(self, place: int) -> None:
        worker = self.workers.pop(place)
        worker.close(gently=worker.ready and place not in self.tasks)

    def _stop(self) -> int:
        """Ctrl-C: pass it on, and wait for the checkpoints."""
        self._say("stopping: the running runs save a checkpoint; Ctrl-C once more ends them at once")
        for place in [place for place in self.workers if place not in self.tasks]:
            self._dismiss(place)
        for worker in self.workers.values():
            worker.interrupt()
        deadline = time.monotonic() + GRACE
        try:
            while self.tasks and time.monotonic() < deadline:
                self._listen()
        except KeyboardInterrupt:
            pass
        for task in self.tasks.values():
            self._say(f"{describe(task.run)}: ended before it had saved a checkpoint")
        self._say(f"{self.name}: {self.finished} of {self.total} runs finished; the same command continues")
        return 130

    def _summary(self) -> int:
        for run, reason in self.failed:
            log = run.run_dir / "log.txt"
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:] if log.exists() else []
            why = "" if reason == FAILED else f"{reason}; "
            print("\n".join([f"\nFAILED {describe(run)} ({why}{log})", *(f"    {line}" for line in lines)]))
        elsewhere = [(run, news) for run, news in self.elsewhere if not is_done(run)]
        print(f"{self.name}: {self.total - len(self.failed) - len(elsewhere)} of {self.total} runs done")
        for run, news in elsewhere:
            print(f"    {describe(run)} ({run.run_dir}): {news}")
        return 1 if self.failed or elsewhere else 0

    def _show_status(self) -> None:
        now = time.monotonic()
        if now - self.status_at < (STATUS_EVERY if self.bar.disable else 1.0):
            return
        self.status_at = now
        progress = [(task.run, read_json(task.run.run_dir / "progress.json") or {}) for task in self.tasks.values()]
        parts = [f"{describe(run)} {_progress(at)}" for run, at in progress]
        left = seconds_left(progress, self.queue, self.seconds, self.jobs)
        if left is not None:
            parts.append(f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left")
        if self.bar.disable:
            self._say(f"{self.name}: {self.finished}/{self.total} runs; " + "; ".join(parts))
        else:
            self.bar.set_postfix_str("; ".join(parts))


def seconds_left(
    running: Sequence[tuple[Run, Mapping[str, Any]]],
    queue: Sequence[Run],
    finished: Sequence[tuple[float, Run]],
    jobs: int,
) -> float | None:
    """Estimate of the seconds until all runs have ended; ``None`` while nothing has been measured.

    A run is taken to need time in proportion to its ``cost``, as measured on those that finished and those that run.
    """
    left, pace = [], [seconds / run.cost for seconds, run in finished]
    for run, at in running:
        if at.get("step") and at.get("seconds") and at.get("max_steps"):
            whole = at["seconds"] / at["step"] * at["max_steps"]
            left.append(max(0.0, whole - at["seconds"]))
            pace.append(whole / run.cost)
    if not pace:
        return None
    mean = sum(pace) / len(pace)
    left += [mean * run.cost for run, at in running if not at.get("step")]
    return max([*left, (sum(left) + mean * sum(run.cost for run in queue)) / jobs])


def _progress(at: Mapping[str, Any]) -> str:
    if not at:
        return "starting"
    loss = at.get("loss")
    return f"{at.get('step')}/{at.get('max_steps')}" + (f" loss {loss:.3g}" if isinstance(loss, (int, float)) else "")


def _death(worker: Worker) -> str:
    worker.process.join(5)
    code = worker.process.exitcode or 0
    if code >= 0:
        return f"its worker ended with exit status {code}"
    hint = ", as when memory runs out" if -code == signal.SIGKILL else ""
    return f"its worker was killed by {signal.Signals(-code).name}{hint}"


def _share(place: int, jobs: int) -> dict[str, str]:
    """The environment that gives worker ``place`` of ``jobs`` its part of the cores and devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))}
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if len(devices) > 1:
        share["CUDA_VISIBLE_DEVICES"] = ",".join(devices[place::jobs] or [devices[place % len(devices)]])
    return share


def _delete(runs: Sequence[Run]) -> None:
    """Empty the folders of ``runs``, of none while another process trains in one of them, or one is no run's."""
    there = [RunFolder(run.run_dir) for run in runs if run.run_dir.is_symlink() or run.run_dir.exists()]
    for folder in there:
        check_run(folder.path)
        with folder.held():
            pass
    for folder in there:
        with folder.held():
            folder.clear()


def _refuse_other_recipes(runs: Sequence[Run]) -> None:
    problems = []
    for run in runs:
        result, saved = read_json(run.run_dir / "result.json"), run.run_dir / "recipe.yaml"
        changes = differences(compose(saved), run.recipe) if saved.exists() else []
        if changes or (result is not None and not is_done(run)):
            shown = [f"    {line}" for line in changes or ["(no recipe.yaml to compare with)"]]
            problems.append("\n".join([f"  {describe(run)} ({run.run_dir})", *shown]))
    if problems:
        raise RecipeError(
            f"{len(problems)} of {len(runs)} run folders were started from another recipe; "
            "set another run_dir, or start them again with fresh\n" + "\n".join(problems)
        )
