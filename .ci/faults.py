"""Thirty faults put into the code, one at a time: does `make test` turn red for each, as the whole suite does?

    python .ci/faults.py [NUMBER ...]

Each fault is a line that could have been written by mistake. It is put into a copy of the tree; the tests of its room
run there until the first failure: those of `make test`, and where they stay green the slow ones too. A fault that only
the slow ones see, or none, is named, and the exit status is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("dslight", "data_prep", "tests", "recipes", "benchmarks", "docs", "pyproject.toml", "README.md", ".ci")

# file, what stands there, the fault, tests of the room
FAULTS = (
    ("nn/sampling.py", "cells.permute(2, 4, 0, 1, 3, 5)", "cells.permute(4, 2, 0, 1, 3, 5)", "nn"),
    ("nn/sampling.py", ".mean(0, keepdim=True)", ".sum(0, keepdim=True)", "nn components"),
    (
        "nn/injector.py",
        "self.flat % self.length - start",
        "self.flat % self.length",
        "nn components",
    ),
    ("nn/injector.py", "row[:, None] * repeats + beam", "row[:, None] + beam * self.batch", "nn components"),
    (
        "nn/injector.py",
        "return hidden + values.sum().to(hidden.dtype)",
        "return hidden",
        "nn test_vlm.py distributed/test_fit.py",
    ),
    ("nn/window.py", "return start + width - count", "return start", "nn components"),
    ("nn/window.py", "return said.pop()", "return 0", "nn components"),
    ("places.py", "IGNORE = -100", "IGNORE = -1", "nn data test_vlm.py"),
    ("nn/cross_attention.py", "gate.tanh() * change", "gate.sigmoid() * change", "nn components"),
    ("data/plan.py", "done = consumed - consumed % self.global_batch", "done = consumed", "data"),
    (
        "data/plan.py",
        "return np.minimum(numbers, items - 1), numbers < items",
        "return np.minimum(numbers, items - 1), numbers <= items",
        "data",
    ),
    ("data/plan.py", "order[:missing]", "order[-missing:]", "data"),
    ("data/collate.py", "before += slots - 1", "before += slots", "data"),
    ("data/images.py", "max(grids, key=fit)", "min(grids, key=fit)", "data"),
    (
        "data/shards/reader.py",
        "bisect_right(self._starts, row) - 1\n        shard, descriptor",
        "bisect_right(self._starts, row + 1) - 1\n        shard, descriptor",
        "data",
    ),
    ("data/shards/reader.py", 'elif self.check == "full" and whole', 'elif self.check == "never" and whole', "data"),
    ("metrics/functional/vqa.py", "needed = min(3, n - 1)", "needed = 3", "metrics"),
    (
        "metrics/functional/anls.py",
        'similarity > threshold if protocol == "pix2struct" else similarity >= threshold',
        "similarity > threshold",
        "metrics",
    ),
    ("metrics/base.py", "SCALE = 10**9", "SCALE = 10**2", "metrics"),
    ("train/schedule.py", "num_warmup_steps=warmup", "num_warmup_steps=0", "train"),
    ("components/component.py", "parameter.ndim < 2", "parameter.ndim < 1", "train components"),
    (
        "checkpoints/complete.py",
        ".st_size == size",
        ".st_size >= 0",
        "safety checkpoints run/test_folder.py distributed/test_resume.py",
    ),
    (
        "run/deletion.py",
        'if path.is_symlink():\n            raise RecipeError(f"{path}: is a symbolic link, beside',
        'if False:\n            raise RecipeError(f"{path}: is a symbolic link, beside',
        "safety run/test_folder.py",
    ),
    ("names.py", "if real != home and not real.startswith", "if False and not real.startswith", "safety"),
    ("files/atomic.py", "os.replace(partial, path)", "path.write_bytes(partial.read_bytes())", "files safety run"),
    ("recipe/compose.py", "os.path.normpath(file.parent / base)", "os.path.normpath(base)", "recipe"),
    ("recipe/spelling.py", "list(constructor.given)[given:]", "list(constructor.given)", "recipe"),
    ("run/sweep_worker.py", "if is_done(run):", "if False:", "safety/test_locks.py run/test_sweep.py"),
    ("report/rows.py", "over_questions.p >= 0.05", "over_questions.p >= 0.5", "report"),
    (
        "components/schedulers/deepstack.py",
        "for s in self.stacks for _ in s.sites",
        "for s in self.stacks for _ in s.sites[:1]",
        "components",
    ),
)


def main() -> int:
    """Try them, and say which test program sees each."""
    chosen = [int(text) for text in sys.argv[1:]] or range(len(FAULTS))
    missed = 0
    for number in chosen:
        file, was, fault, tests = FAULTS[number]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            seen = _seen(Path(folder), file, was, fault, tests)
        missed += seen != "make test"
        print(f"{number:2}  {file:32} {time.monotonic() - began:5.0f} s  seen by {seen}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} faults turn `make test` red")
    return 1 if missed else 0


def _seen(copy: Path, file: str, was: str, fault: str, tests: str) -> str:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    path = copy / "dslight" / file
    text = path.read_text()
    if text.count(was) != 1:
        raise SystemExit(f"{file}: {text.count(was)} times: {was}")
    path.write_text(text.replace(was, fault))
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(f"tests/{one}" for one in tests.split()),
    ]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    for name, more in (("make test", []), ("make test-all alone", ["-m", "slow"])):
        done = subprocess.run(
            [*call, *more],
            cwd=copy,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 1:
            return name
        if done.returncode not in (0, 5):
            raise SystemExit(done.stdout[-3000:])
    return "nothing"


if __name__ == "__main__":
    sys.exit(main())
