"""How well the question of ``data_prep.twice`` can be answered at all from single digits: an SVM on isolated tiles, at
full and at half resolution.

Run: ``python -m data_prep.twice_ceiling --out data/twice/ceiling.json``. Of a cell's four digits the answer is the
class that two of them most probably share, by the SVM of ``data_prep.digits_ceiling``. It is a reference, not a bound,
as that is.
"""

from __future__ import annotations

import numpy as np

from data_prep.digits import CELL
from data_prep.digits_ceiling import TRAIN_TILES, half, svm_on, tiles, write_ceiling
from data_prep.processes import program
from data_prep.twice import CELLS, draw_pages

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
        model = svm_on(view, train, classes)
        seen = view(cut(pages))
        votes = model.decision_function(seen.reshape(len(seen), -1)).reshape(len(single), 4, -1)
        scores[name] = float((most_shared(votes) == answers.ravel()).mean())
        scores[f"{name}_digit"] = float((votes.argmax(-1) == single).mean())
    return scores


def main(argv: list[str] | None = None) -> None:
    """The program."""
    settings = {
        "train_tiles": TRAIN_TILES,
        "test_pages": TEST_PAGES,
        "model": "SVC, RBF, C=10",
        "sharpness": SHARPNESS,
    }
    write_ceiling(argv, (__doc__ or "").split("\n\n")[0].replace("\n", " "), settings, measure)


if __name__ == "__main__":
    program(main)
