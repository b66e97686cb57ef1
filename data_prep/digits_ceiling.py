"""How well single digits of the quickstart can be read at all: an SVM on isolated tiles, at full and at half
resolution.

Run: ``python -m data_prep.digits_ceiling --out data/digits/ceiling.json``. It is a reference, not a bound: the tiles
are drawn as the pages' are, the classifier (RBF kernel) is strong on them and knows nothing of pages. The distance
between its two numbers is how much of the gap between two models is information that the low-resolution view does not
hold.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data_prep.digits import digit_split, draw_tiles, to_grey
from data_prep.processes import program
from dslight.files.typed import read_json_if_there, understood

TRAIN_TILES = 6400
TEST_TILES = 1600


def tiles(split: str, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``count`` tiles of a split, uint8 ``[count, 8, 8]``, and their classes."""
    images, classes = digit_split(split)
    chosen = rng.integers(len(images), size=count)
    return to_grey(draw_tiles(images[chosen], rng, augment=split == "train")), classes[chosen]


def half(pixels: np.ndarray) -> np.ndarray:
    """2 x 2 means, ``[n, 8, 8]`` to ``[n, 4, 4]``."""
    return pixels.reshape(len(pixels), 4, 2, 4, 2).mean((2, 4))


def svm_on(view: Callable[[np.ndarray], np.ndarray], tiles: np.ndarray, classes: np.ndarray) -> Any:
    """The classifier of digits, fitted to tiles as ``view`` shows them."""
    return make_pipeline(StandardScaler(), SVC(C=10.0)).fit(view(tiles).reshape(len(tiles), -1), classes)


def measure(seed: int) -> dict[str, float]:
    """Accuracy of the SVM on the digits of ``test``, at both resolutions."""
    rng = np.random.default_rng(seed)
    (train, train_classes), (test, test_classes) = tiles("train", TRAIN_TILES, rng), tiles("test", TEST_TILES, rng)
    scores = {}
    for name, view in (("high", np.asarray), ("low", half)):
        model = svm_on(view, train, train_classes)
        scores[name] = float(model.score(view(test).reshape(TEST_TILES, -1), test_classes))
    return scores


def main(argv: list[str] | None = None) -> None:
    """The program."""
    settings = {"train_tiles": TRAIN_TILES, "test_tiles": TEST_TILES, "model": "SVC, RBF, C=10"}
    write_ceiling(argv, (__doc__ or "").split("\n")[0], settings, measure)


def write_ceiling(
    argv: list[str] | None, about: str, settings: dict[str, Any], measure: Callable[[int], dict[str, float]]
) -> None:
    """The program that writes what is measured of a seed as JSON, once for its settings."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    settings = {"seed": args.seed, **settings}
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
