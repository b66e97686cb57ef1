"""The data of ``make evidence``: pages whose small print can be read at full size only, and questions about it.

Run: ``python -m data_prep.evidence.pages --out build/evidence/data``. Writes, as shards::

    letters/train, letters/val   sheets full of print, with the class of every cell: for the vision encoder alone
    align/train                  quarters of pages, and whole pages, with what can be read on them: stage 1
    train                        pages as conversations: stage 2
    val, test                    pages with questions; choices are made on val, test is what is reported
    text                         plain questions with answers and no picture

A page is 224 x 224 pixels; an encoder of 112 x 112 sees it whole at half its size, or a quarter of it as it is. No word
that is an answer, no name of an article and no photograph is in two of the splits; numbers are drawn anew.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from data_prep.drawn import Record, conversation, question, write_drawn
from data_prep.evidence.kinds import KINDS, Asked, crowded
from data_prep.evidence.photographs import photographs
from data_prep.evidence.sheet import CELL, CELLS, SIDE, Drawn, Sheet
from data_prep.evidence.texts import PLAIN
from data_prep.evidence.words import SPLITS, Split
from data_prep.processes import program

QUESTIONS: Final = 3
"""Of a page of val and test; all of a training page's are asked."""
READ: Final = "What is written here?"
"""Stage 1 asks nothing else."""

_KINDS = list(KINDS.values())


def page(split: Split, seed: int, number: int) -> tuple[Sheet, Image.Image, list[Asked], np.random.Generator]:
    """The page of that number: the sheet, its picture, what can be asked in random order, and what to draw on with."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    sheet, asked = _KINDS[number % len(_KINDS)](rng, split)
    return sheet, sheet.finished(), [asked[int(at)] for at in rng.permutation(len(asked))], rng


def caption(drawn: Sequence[Drawn], row: int, col: int, side: int, small: bool) -> str:
    """What stands wholly within ``side`` x ``side`` cells, from top to bottom; small print only if ``small``."""
    inside = [
        one
        for one in drawn
        if (one.large or small)
        and row <= one.row
        and one.row + one.height <= row + side
        and col <= one.col
        and one.col + one.width <= col + side
    ]
    return ", ".join(one.text for one in sorted(inside, key=lambda one: (one.row, one.col))) or "nothing"


def pages(split: Split, seed: int, count: int) -> Iterator[Record]:
    """Records of stage 2 and of its questions."""
    for number in range(count):
        _, picture, asked, _ = page(split, seed, number)
        record: dict[str, Any] = {"id": f"{split}-{number:06d}"}
        if split == "train":
            record["conversations"] = conversation([(one.question, one.answer) for one in asked])
        else:
            record["questions"] = [
                question(record["id"], str(i), one.question, one.answer, one.kind)
                for i, one in enumerate(asked[:QUESTIONS])
            ]
        yield [_jpeg(picture)], record


def readings(seed: int, count: int) -> Iterator[Record]:
    """Records of stage 1: three quarters of them cut-outs at full size, the others whole pages."""
    for number in range(count):
        sheet, picture, _, rng = page("train", seed, number)
        half = CELLS // 2
        if number % 4 == 0:
            text = caption(sheet.drawn, 0, 0, CELLS, small=False)
        else:
            row, col = (int(at) * half for at in rng.integers(0, 2, 2))
            text = caption(sheet.drawn, row, col, half, small=True)
            left, top = col * CELL, row * CELL
            picture = picture.crop((left, top, left + SIDE // 2, top + SIDE // 2))
        turns = conversation([(READ, text)])
        yield [_jpeg(picture)], {"id": f"align-{number:06d}", "conversations": turns}


def letters(split: Split, seed: int, count: int) -> Iterator[Record]:
    """Records of the vision encoder: every third an ordinary page of the split, the others crowded."""
    for number in range(count):
        if number % 3 == 0:
            sheet, picture, _, _ = page(split, seed, number)
        else:
            sheet = crowded(np.random.default_rng([seed, 10 + SPLITS.index(split), number]))
            picture = sheet.finished()
        turns = conversation([(READ, caption(sheet.drawn, 0, 0, CELLS, small=False))])
        labels = sheet.labels.tolist()
        yield [_jpeg(picture)], {"id": f"letters-{split}-{number:06d}", "labels_grid": labels, "conversations": turns}


def plain() -> Iterator[Record]:
    """Records without a picture."""
    for number, asked in enumerate(PLAIN):
        yield [], {"id": f"text-{number:03d}", "conversations": conversation([asked], picture=False)}


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train-pages", type=int, default=2400)
    parser.add_argument("--val-pages", type=int, default=120, help="pages of val, and of test")
    parser.add_argument("--align-pages", type=int, default=4000)
    parser.add_argument("--letter-sheets", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    seed, few = args.seed, max(args.letter_sheets // 60, 1)
    folders = {
        "letters/train": (letters("train", seed, args.letter_sheets), args.letter_sheets),
        "letters/val": (letters("val", seed, few), few),
        "align/train": (readings(seed, args.align_pages), args.align_pages),
        "train": (pages("train", seed, args.train_pages), args.train_pages),
        "val": (pages("val", seed, args.val_pages), args.val_pages),
        "test": (pages("test", seed, args.val_pages), args.val_pages),
        "text": (plain(), len(PLAIN)),
    }
    names = [path.name for path in photographs()]
    for name, (records, count) in folders.items():
        meta: dict[str, object] = {"program": "data_prep.evidence.pages", "version": 1, "records": count, "seed": seed}
        write_drawn(args.out / name, records, count, meta | {"photographs": names})


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92, subsampling=0)
    return out.getvalue()


if __name__ == "__main__":
    program(main)
