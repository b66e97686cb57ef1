"""The quickstart's second task: pages on which an answer takes all four digits of a cell, so that each stack of
DeepStack holds something that is nowhere else.

Run: ``python -m data_prep.twice --out data/twice``. Writes ``train/``, ``val/``, ``test/`` and ``tokenizer/`` as
``data_prep.digits`` does, of the same digits, split in the same way.

A page is 32 x 32 pixels of 8-bit grey: 2 x 2 cells of 2 x 2 handwritten digits, each about 6 pixels high. Three of a
cell's digits differ and one of them occurs twice, in two images. A question names a cell, ``B1``, and the answer is the
digit that occurs twice in it: who has not read three of the four cannot know. With an encoder of 16 x 16 pixels in
patches of 8, a patch of the base view shows one cell, a patch of a crop one digit, and each stack of the 2-D sampler
one of a cell's four.

Every record carries ``labels_grid`` for fitting the vision encoder alone: 8 x 8 classes, 2 x 2 for each digit, but
where the four digits of a cell meet stands the one that occurs twice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_prep.digits import CELL, SPLITS, asked_about, digit_split, draw_tiles, finish, png, to_grey
from data_prep.drawn import Record, write_splits
from data_prep.processes import program

CELLS = 2
"""Cells per side of a page, and digits per side of a cell."""
DIGITS = CELLS * CELLS
SIDE = DIGITS * CELL
"""Pixels per side of a page."""
NAMES = ["A1", "A2", "B1", "B2"]

_CHUNK = 1000  # pages drawn at once


def draw_classes(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cells: int64 ``[count, 4]``, three different digits of which one occurs twice, and ``[count]``, which one."""
    three = rng.permuted(np.tile(np.arange(10), (count, 1)), axis=1)[:, :3]
    return rng.permuted(np.concatenate([three, three[:, :1]], 1), axis=1), three[:, 0]


def draw_pages(count: int, split: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pages uint8 ``[count, 32, 32]``, their digits int64 ``[count, 4, 4]``, and ``[count, 2, 2]``, the digit that
    occurs twice in each cell.
    """
    images, classes = digit_split(split)
    digits, twice = draw_classes(count * CELLS * CELLS, rng)
    chosen = np.empty(digits.size, np.int64)
    for digit in range(10):
        of = digits.ravel() == digit
        chosen[of] = rng.choice(np.flatnonzero(classes == digit), of.sum())
    tiles = to_grey(draw_tiles(images[chosen], rng, augment=split == "train"))
    places = tiles.reshape(count, CELLS, CELLS, CELLS, CELLS, CELL, CELL).transpose(0, 1, 3, 5, 2, 4, 6)
    grid = digits.reshape(count, CELLS, CELLS, CELLS, CELLS).swapaxes(2, 3).reshape(count, DIGITS, DIGITS)
    return places.reshape(count, SIDE, SIDE), grid, twice.reshape(count, CELLS, CELLS)


def labels_grid(digits: np.ndarray, twice: np.ndarray) -> np.ndarray:
    """Classes int64 ``[8, 8]`` over a page of digits ``[4, 4]``: under the centre of a crop's patch lies its digit,
    under that of a base view's patch the digit that occurs twice.
    """
    labels = digits.repeat(2, 0).repeat(2, 1)
    labels[2::4, 2::4] = twice
    return labels


def records(split: str, count: int, seed: int) -> Iterator[Record]:
    """``count`` pages of a split."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    for start in range(0, count, _CHUNK):
        drawn = draw_pages(min(_CHUNK, count - start), split, rng)
        for i, (page, digits, twice) in enumerate(zip(*drawn, strict=True), start):
            record = {"id": f"{split}-{i:06d}", "labels_grid": labels_grid(digits, twice).tolist()}
            order = rng.permutation(len(NAMES))
            yield [png(page)], record | asked_about(record["id"], i, split, NAMES, order, twice, len(NAMES))


def main(argv: list[str] | None = None) -> None:
    """The program."""
    about = (__doc__ or "").split("\n\n")[0].replace("\n", " ")
    finish(write_splits(argv, about, {"program": "data_prep.twice", "version": 1}, (16000, 512), records, 2000))


if __name__ == "__main__":
    program(main)
