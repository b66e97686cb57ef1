"""A sweep of runs that take several processes each: what torchrun has started trains one run after the other, together.

    torchrun --nproc-per-node 2 -m dslight sweep recipes/ablations/effect.yaml

Decided here: one run at a time, in the processes that are there, whichever node they are on; all of them see the same
folders. A run that fails ends the sweep, because its processes may have stopped at different places; the same command
goes on where it ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from dslight.recipe.ablation import Run
from dslight.run.folder import RunFolder
from dslight.run.processes import is_first
from dslight.run.sweep_state import write_about


def train_together(name: str, total: int, queue: Sequence[Run]) -> int:
    """Train the runs of ``queue``; every process calls it with the same ones. Returns the exit status, 0 or 130."""
    from dslight.run.fit import fit

    for i, run in enumerate(queue, start=total - len(queue) + 1):
        with RunFolder(run.run_dir).held():
            if is_first():
                print(f"{name}: run {i} of {total}, {run.run_dir}", flush=True)
                write_about(name, run)
            try:
                fit(run.recipe, run.run_dir, resume=True)
            except KeyboardInterrupt:
                return 130
    return 0
