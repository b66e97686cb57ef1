"""What much of something costs: answers to score, runs to list, entries to convert.

    python -m benchmarks.load                                        # this checkout
    python -m benchmarks.load --against ../other-checkout --rounds 3   # and another one, in turn

Each number is that of a process of its own and of those that it starts: processor time (of all threads), and the most
memory that they hold at one time (proportional set size, so that shared pages count once). Rounds go through the
checkouts in turn, in a new order each; the table has the medians. What is made is compared, too: the same scores, list
and bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    "what",
    "is",
    "the",
    "number",
    "of",
    "visual",
    "tokens",
    "in",
    "this",
    "row",
    "and",
    "column",
    "seven",
    "invoice",
    "total",
    "12/04/2026",
    "$4,310.00",
]
SIZES = {"answers": 20_000, "runs": 2_000, "entries": 300_000}
WHAT = {
    "answers": "ANLS of {:,} answers, each with 5 references",
    "runs": "`sweep --list` of {:,} runs",
    "entries": "`data_prep.llava` of {:,} entries of text, two processes",
}


def prepare(folder: Path, sizes: dict[str, int]) -> None:
    """Write what the tasks read."""
    rng = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))

    answers = [(text(1, 12), [text(1, 12) for _ in range(5)]) for _ in range(sizes["answers"])]
    (folder / "answers.json").write_text(json.dumps(answers))
    seeds = list(range(-(-sizes["runs"] // 40)))
    (folder / "runs.yaml").write_text(
        f"bases: [{ROOT / 'recipes' / 'quickstart' / 'deepstack_l.yaml'}]\nname: runs\nvariants:\n"
        + "".join(f"  arm{i}: {{model: {{stacking: {{init_args: {{start: {i}}}}}}}}}\n" for i in range(4))
        + f"grid:\n  stage.train.projector.lr: {[round(0.001 * (i + 1), 3) for i in range(10)]}\n  seed: {seeds}\n"
    )
    with (folder / "entries.json").open("w") as file:
        file.write("[")
        for i in range(sizes["entries"]):
            turns = [{"from": who, "value": text(4, 40)} for who in ("human", "gpt", "human", "gpt")]
            file.write((", " if i else "") + json.dumps({"id": f"t{i}", "conversations": turns}))
        file.write("]")


def answers(folder: Path) -> bytes:
    """Score them."""
    from dslight.metrics.functional.anls import anls_score

    given = json.loads((folder / "answers.json").read_text())
    return json.dumps([anls_score(prediction, references) for prediction, references in given]).encode()


def runs(folder: Path) -> bytes:
    """List them."""
    from dslight.cli import main

    main(["sweep", str(folder / "runs.yaml"), "--list"])
    return b""


def entries(folder: Path) -> bytes:
    """Convert them."""
    from data_prep.llava import main

    with tempfile.TemporaryDirectory(dir=folder) as place:
        out = Path(place, "shards")
        main(["--json", str(folder / "entries.json"), "--out", str(out), "--workers", "2"])
        return json.dumps({path.name: _digest(path) for path in sorted(out.glob("shard-*"))}).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TASKS: dict[str, Callable[[Path], bytes]] = {"answers": answers, "runs": runs, "entries": entries}


def one(task: str, folder: Path) -> None:
    """Do a task in this process; print what it took as the last line."""
    made = TASKS[task](folder)
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in used)
    print(json.dumps({"seconds": seconds, "made": hashlib.sha256(made).hexdigest()}))


class Memory(threading.Thread):
    """The most that a process and its descendants hold at one time, in bytes."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.most, self.done = process, 0, threading.Event()

    def run(self) -> None:
        """Sample."""
        while not self.done.wait(0.2):
            self.most = max(self.most, sum(map(_held, _family(self.process))))


def _family(process: int) -> list[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        children = []
    return [process, *(one for child in children for one in _family(int(child)))]


def _held(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def measured(task: str, folder: Path, checkout: Path) -> dict[str, Any]:
    """Seconds, bytes, and a digest of what was made, of a process that imports from ``checkout``."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    call = [sys.executable, str(Path(__file__).resolve()), "--one", task, str(folder)]
    with subprocess.Popen(
        call, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        memory = Memory(process.pid)
        memory.start()
        printed, _ = process.communicate()
        memory.done.set()
        memory.join()
    if process.returncode:
        raise SystemExit(f"{task} in {checkout}: exit status {process.returncode}")
    *rest, last = printed.splitlines()
    listed = hashlib.sha256("\n".join(rest).encode()).hexdigest() if task == "runs" else ""
    found = json.loads(last)
    return {"seconds": found["seconds"], "bytes": memory.most, "made": found["made"] + listed}


def table(found: dict[str, dict[str, list[dict[str, Any]]]], sizes: dict[str, int]) -> str:
    """Markdown: a row for each task, the first checkout and what it is of the others."""
    names = list(next(iter(found.values())))
    head = ["", *(f"{name}: s of CPU" for name in names), *(f"{name}: MB" for name in names)]
    head += [f"of {name}: CPU, memory" for name in names[1:]] + (["made alike"] if names[1:] else [])
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for task, by_name in found.items():
        seconds = {name: statistics.median(each["seconds"] for each in rounds) for name, rounds in by_name.items()}
        held = {name: statistics.median(each["bytes"] for each in rounds) for name, rounds in by_name.items()}
        line = [WHAT[task].format(sizes[task]), *(f"{seconds[n]:.2f}" for n in names)]
        line += [f"{held[n] / 1e6:.0f}" for n in names]
        line += [f"{seconds[names[0]] / seconds[n]:.3f}, {held[names[0]] / held[n]:.2f}" for n in names[1:]]
        if names[1:]:
            line.append("yes" if len({each["made"] for rounds in by_name.values() for each in rounds}) == 1 else "NO")
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout to measure beside this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--share", type=float, default=1.0, help="of the sizes, to try it out")
    parser.add_argument("--one", nargs=2, metavar=("TASK", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], Path(args.one[1]))
        return
    sizes = {name: max(40, int(size * args.share)) for name, size in SIZES.items()}
    checkouts = {"here": ROOT} | ({"there": args.against.resolve()} if args.against else {})
    found: dict[str, dict[str, list[dict[str, Any]]]] = {task: {name: [] for name in checkouts} for task in args.tasks}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), sizes)
        for number in range(args.rounds):
            for task in args.tasks:
                for name in list(checkouts)[:: 1 if number % 2 else -1]:
                    found[task][name].append(measured(task, Path(folder), checkouts[name]))
                    print(time.strftime("%H:%M:%S"), task, name, found[task][name][-1], file=sys.stderr, flush=True)
    print(table(found, sizes))


if __name__ == "__main__":
    main()
