"""How much processor time ``dslight plan`` takes, and a refusal, beside ``import torch`` and another checkout.

    python -m benchmarks.start                           # this checkout
    python -m benchmarks.start --beside ../before        # and another one, round by round

User and system time of a process of its own, its end included. Every round runs each arm once: absolute times are the
machine's, so read the ratios to ``import torch``, medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

HERE = Path(__file__).parents[1]
RECIPE = "recipes/quickstart/deepstack_l.yaml"
ARMS = {
    "dslight plan": ["-m", "dslight", "plan", RECIPE],
    "a misspelt key": ["-m", "dslight", "plan", RECIPE, "modle.seed=1"],
    "a wrong value": ["-m", "dslight", "plan", RECIPE, "model.stacking.init_args.start=99"],
}


def seconds(tree: Path, arguments: list[str]) -> float:
    """Of the processor, of one process that runs in ``tree``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, help="another checkout of dslight")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    trees = {"": HERE} | ({f", {args.beside.name}": args.beside.resolve()} if args.beside else {})
    arms = {f"{name}{of}": (tree, run) for name, run in ARMS.items() for of, tree in trees.items()}
    arms = {"import torch": (HERE, ["-c", "import torch"])} | arms
    for tree, run in arms.values():
        seconds(tree, run)  # what is compiled once
    found = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, (tree, run) in arms.items():
            found[name].append(seconds(tree, run))
    print("| arm | seconds | times import torch |\n| --- | ---: | ---: |")
    for name, took in found.items():
        ratio = median(one / torch for one, torch in zip(took, found["import torch"], strict=True))
        print(f"| {name} | {median(took):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
