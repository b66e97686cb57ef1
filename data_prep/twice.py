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

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.digits import CELL, SPLITS, digit_split, draw_tiles, png, to_grey, write_tokenizer
from data_prep.processes import program
from dslight.data.sample import IMAGE_TOKEN
from dslight.data.shards import MANIFEST, Manifest, ShardWriter

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


def write_split(root: Path, split: str, count: int, seed: int, meta: dict[str, object]) -> None:
    """Draw ``count`` pages and write them as shards."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    with ShardWriter(root, shard_records=2000, meta=meta) as writer, tqdm(total=count, desc=split, unit="page") as bar:
        for start in range(0, count, _CHUNK):
            drawn = draw_pages(min(_CHUNK, count - start), split, rng)
            for i, (page, digits, twice) in enumerate(zip(*drawn, strict=True), start):
                key = f"{split}-{i:06d}"
                record = {"id": key, "labels_grid": labels_grid(digits, twice).tolist()}
                order = rng.permutation(len(NAMES))
                if split == "train":  # some conversations are short: an answer's end has to be seen after each question
                    record["conversations"] = conversation(order[: len(order) if i % 4 else 1 + i // 4 % 4], twice)
                else:
                    record["questions"] = questions(key, order, twice)
                writer.write(key, [png(page)], record)
                bar.update()


def conversation(order: np.ndarray, twice: np.ndarray) -> list[dict[str, str]]:
    """One question and answer per cell, LLaVA's format; the image stands before the first."""
    turns = []
    for i, cell in enumerate(order):
        turns.append({"from": "human", "value": f"{IMAGE_TOKEN}\n{NAMES[cell]}" if i == 0 else NAMES[cell]})
        turns.append({"from": "gpt", "value": str(twice.flat[cell])})
    return turns


def questions(key: str, order: np.ndarray, twice: np.ndarray) -> list[dict[str, object]]:
    """The questions of a record of val or test: one per cell."""
    return [
        {
            "question_id": f"{key}-{NAMES[cell]}",
            "question": NAMES[cell],
            "answers": [str(twice.flat[cell])],
            "type": "",
        }
        for cell in order
    ]


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0].replace("\n", " "))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train-pages", type=int, default=16000)
    parser.add_argument("--val-pages", type=int, default=512, help="pages of val, and of test")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for split, count in (("train", args.train_pages), ("val", args.val_pages), ("test", args.val_pages)):
        meta: dict[str, object] = {"program": "data_prep.twice", "version": 1, "pages": count, "seed": args.seed}
        root = args.out / split
        if (root / MANIFEST).exists():
            if Manifest.load(root).meta == meta:
                print(f"{root}: {count} pages of seed {args.seed} are there already")
                continue
            raise SystemExit(
                f"{root}: holds pages made with other arguments; delete the folder or choose another --out"
            )
        write_split(root, split, count, args.seed, meta)
    if not (args.out / "tokenizer" / "tokenizer_config.json").exists():
        write_tokenizer(args.out / "tokenizer")


if __name__ == "__main__":
    program(main)
