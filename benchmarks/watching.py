"""What does watching cost? The quickstart's DeepStack-L arm through Lightning's Trainer, with its rates and norms and
without.

    OMP_NUM_THREADS=1 python benchmarks/watching.py runs/quickstart/data     # as data_prep.digits writes it

Both arms train the same model on the same batches, some steps at a time, in turns; `again` is the arm without watching
once more, which shows what noise alone makes of a ratio. The clock is this process's share of the processor, so other
programs count little. Everything is logged in every step here, ten times as often as by default.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

from dslight.recipe.build import build
from dslight.recipe.compose import compose
from dslight.recipe.experiment import Experiment
from dslight.train.watch import DataWait, Watch

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart" / "deepstack_l.yaml"
ARMS = ("without", "again", "watched")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def seconds(experiment: Experiment, watched: bool, steps: int, folder: str) -> float:
    """Of the processor, for a step, over some steps; making the Trainer and the first two steps are left out."""
    waited, times = DataWait(), []

    class Clock(pl.Callback):
        def on_train_batch_end(self, *args: object) -> None:
            times.append(time.process_time())

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps + 2, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, logger=CSVLogger(folder), log_every_n_steps=1, num_sanity_val_steps=0,
        use_distributed_sampler=False, limit_val_batches=0, profiler=waited if watched else None,
        callbacks=[Watch(waited=waited), Clock()] if watched else [Clock()],
    )  # fmt: skip
    trainer.fit(experiment.model, datamodule=experiment.data)
    return (times[-1] - times[1]) / steps


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, help="the quickstart's data")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10, help="of each arm in a round")
    args = parser.parse_args()
    overrides = [
        f"data.train=[{args.data / 'train'}]", "data.val=null", "weights=null",
        f"model.language_model.init_args.tokenizer={args.data / 'tokenizer'}",
    ]  # fmt: skip
    experiment = build(compose(RECIPE, overrides))
    found: dict[str, list[float]] = {arm: [] for arm in ARMS}
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        seconds(experiment, True, 2, folder)
        for _ in range(args.rounds):
            for arm in order.sample(ARMS, len(ARMS)):
                found[arm].append(seconds(experiment, arm == "watched", args.steps, folder))
    for arm, times in found.items():
        ratio = statistics.median(a / b for a, b in zip(times, found["without"], strict=True))
        print(f"{arm:<10}{statistics.median(times):.4f} CPU s a step, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
