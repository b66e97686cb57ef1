"""A run that was trained, read from its folder: its scores, and how they came about."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from dslight.files.typed import read_json, understood


class Run:
    """What a training left in its folder.

    Args:
        path: the folder.
        model: what was trained, where this process has it.

    Attributes:
        result: all of ``result.json``.
        scores: of the last validation: ``val/SOURCE/SCORE`` -> value.

    Example:
        >>> run = dslight.Run("runs/mine")
        >>> run
        Run('runs/mine': 4 steps, val/textvqa/vqa_accuracy 0.0000, val/textvqa/unresolved 0.0000)
        >>> len([row["train/loss"] for row in run.history if "train/loss" in row])
        2
        >>> run.plot().savefig("curves.png")
    """

    def __init__(self, path: str | Path, model: Any = None) -> None:
        self.path, self.model = Path(path), model
        file = self.path / "result.json"
        if not file.exists():
            raise FileNotFoundError(f"{self.path}: no finished run (result.json); continue it with the same call")
        self.result: dict[str, Any] = read_json(file, dict[str, Any])
        with understood(file):
            self.scores: dict[str, float] = {key: float(score) for key, score in self.result["scores"].items()}

    @property
    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``, with what was logged at each ``step``."""
        path = self.path / "metrics.csv"
        with understood(path), path.open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]

    def plot(self) -> Any:
        """The loss and the scores over the steps, as a figure of matplotlib."""
        import matplotlib.pyplot as plt

        headlines = {facts["headline"] for facts in self.result.get("sources", {}).values()}
        rows = self.history
        shown = headlines or {key for row in rows for key in row if key.startswith("val/")}
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        plt.close(figure)  # a notebook shows what a cell returns, and would show it twice
        for axes, keys in ((left, {"train/loss"}), (right, shown)):
            for key in sorted(keys):
                points = [(row["step"], row[key]) for row in rows if key in row]
                axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=key)
            axes.set_xlabel("step")
            axes.legend(frameon=False)
        return figure

    def push_to_hub(self, repository: str, public: bool = False) -> str:
        """Export the run and upload it to ``OWNER/NAME``, as ``dslight push`` does; private where it is made.

        Returns:
            The address of the commit.

        Raises:
            ValueError: nothing was uploaded.
        """
        from dslight.run.push import push

        return push(self.path, repository, public, key="repository")

    def __repr__(self) -> str:
        scores = "".join(f", {key} {value:.4f}" for key, value in self.scores.items())
        return f"Run({str(self.path)!r}: {self.result['steps']} steps{scores})"
