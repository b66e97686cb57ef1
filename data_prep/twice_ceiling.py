"""How well the question of ``data_prep.twice`` can be answered at all from single digits: an SVM on isolated tiles, at
full and at half resolution.

Run: ``python -m data_prep.twice_ceiling --out data/twice/ceiling.json``. Of a cell's four digits the answer is the
class that two of them most probably share, by the SVM of ``data_prep.digits_ceiling``. It is a reference, not a bound,
as that is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data_prep.digits import CELL
from data_prep.digits_ceiling import TRAIN_TILES, half, tiles
from data_prep.processes import program
from data_prep.twice import CELLS, draw_pages
from dslight.files.typed import read_json_if_there, understood

TEST_PAGES = 400
SHARPNESS = 4.0
"""What the SVM's votes are multiplied by before they become probabilities."""


def most_shared(votes: np.ndarray) -> np.ndarray:
    """Which class two of four digits share, ``[n]``, by a classifier's votes ``[n, 4, classes]``."""
    odds = np.exp(SHARPNESS * (votes - votes.max(-1, keepdims=True)))
    odds /= odds.sum(-1, keepdims=True)
    pairs = [odds[:, i] * odds[:, j] for i in range(4) for j in range(i)]
    return np.sum(pairs, axis=0).argmax(-1)


def cut(pages: np.ndarray) -> np.ndarray:
    """Pages ``[n, 32, 32]`` into the tiles of their digits, cell by cell, ``[n * 4 * 4, 8, 8]``."""
    places = pages.reshape(len(pages), CELLS, CELLS, CELL, CELLS, CELLS, CELL)
    return places.transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1, CELL, CELL)


def measure(seed: int) -> dict[str, float]:
    """Accuracy on pages of ``test``, at both resolutions: of answers (``high``, ``low``) and of single digits."""
    rng = np.random.default_rng(seed)
    train, classes = tiles("train", TRAIN_TILES, rng)
    pages, digits, answers = draw_pages(TEST_PAGES, "test", rng)
    single = digits.reshape(-1, CELLS, CELLS, CELLS, CELLS).swapaxes(2, 3).reshape(-1, 4)
    scores = {}
    for name, view in (("high", np.asarray), ("low", half)):
        model = make_pipeline(StandardScaler(), SVC(C=10.0))
        model.fit(view(train).reshape(TRAIN_TILES, -1), classes)
        seen = view(cut(pages))
        votes = model.decision_function(seen.reshape(len(seen), -1)).reshape(len(single), 4, -1)
        scores[name] = float((most_shared(votes) == answers.ravel()).mean())
        scores[f"{name}_digit"] = float((votes.argmax(-1) == single).mean())
    return scores


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    settings = {
        "seed": args.seed,
        "train_tiles": TRAIN_TILES,
        "test_pages": TEST_PAGES,
        "model": "SVC, RBF, C=10",
        "sharpness": SHARPNESS,
    }
    known = read_json_if_there(args.out, dict[str, Any]) or {}
    if known.items() >= settings.items():
        with understood(args.out):
            print(f"{args.out}: there already: {known['high']:.3f} high, {known['low']:.3f} low")
        return
    scores = measure(args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**scores, **settings}, indent=1) + "\n")
    print(f"{args.out}: {scores['high']:.3f} at full resolution, {scores['low']:.3f} at half")


if __name__ == "__main__":
    program(main)
