"""The quickstart's data: pages of real handwritten digits, too small to be read well at half resolution.

Run: ``python -m data_prep.digits --out data/digits``. Writes::

    train/      shards of pages; each is a conversation of one question per cell, in random order
                (every fourth page asks for one to four cells only: answers must be seen to end after few questions too)
    val/, test/ shards of pages of other digits, with questions: choices are made on val, test is what is reported
    tokenizer/  word-level: ten digits, sixteen cell names, <pad> <eos> <unk> <image>

A page is 32 x 32 pixels of 8-bit grey, 4 x 4 cells, one digit of about 6 pixels in each (scikit-learn's
``load_digits``: 1,797 digits; the first 1,197 for training, the other 600 in turn for val and for test, so no digit
image is in two of them). Training digits are also scaled, turned, sheared and varied in strength; the others are only
shifted within their cell. A page is stored losslessly, and every record carries ``labels_grid``, the 4 x 4 digits, for
fitting the vision encoder alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from data_prep.drawn import Record, conversation, question, write_splits
from data_prep.processes import program
from dslight.data.sample import IMAGE_TOKEN

CELLS = 4
"""Cells per side of a page."""
CELL = 8
"""Pixels per side of a cell."""
NAMES = [f"{row}{col}" for row in "ABCD" for col in range(1, CELLS + 1)]
SPLITS = {"train": slice(1197), "val": slice(1197, None, 2), "test": slice(1198, None, 2)}
"""Which digits of ``load_digits`` a split's pages show."""
QUESTIONS = 8
"""Questions per page of val and test."""

_CHUNK = 500  # pages drawn at once


def digit_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 ``[n, 8, 8]`` in 0..1 and classes int64 ``[n]`` of a split's digits."""
    from sklearn.datasets import load_digits  # the extra "quickstart"

    digits: Any = load_digits()
    part = SPLITS[split]
    return (digits.images[part] / 16).astype(np.float32), digits.target[part].astype(np.int64)


def draw_tiles(digits: np.ndarray, rng: np.random.Generator, augment: bool) -> np.ndarray:
    """Draw each digit into a cell of its own: ink, float32 ``[n, 8, 8]``, with the paper's noise.

    The digit is 6 pixels high, shifted by up to one pixel, sampled at twice the resolution and averaged.

    Args:
        digits: float32 ``[n, 8, 8]`` in 0..1.
        rng: of everything random.
        augment: also scale by 8 %, turn and shear by .12, vary the strength by 15 %.
    """
    n = len(digits)

    def spread(amount: float) -> np.ndarray:
        return rng.uniform(-amount, amount, n) if augment else np.zeros(n)

    scale, turn, shear, gain = spread(0.08), spread(0.12), spread(0.12), spread(0.15)
    shift = rng.uniform(-1, 1, (n, 2)) * 2 / CELL
    cos, sin = np.cos(turn), np.sin(turn)
    rotate = np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)
    slant = np.tile(np.eye(2), (n, 1, 1))
    slant[:, 0, 1] = shear
    matrix = rotate @ slant * (CELL / 6 / (1 + scale))[:, None, None]  # from the cell to the digit
    theta = np.concatenate([matrix, -(matrix @ shift[:, :, None])], 2).astype(np.float32)
    grid = F.affine_grid(torch.from_numpy(theta), [n, 1, 2 * CELL, 2 * CELL], align_corners=False)
    fine = F.grid_sample(torch.from_numpy(digits)[:, None], grid, align_corners=False)
    ink = F.avg_pool2d(fine, 2)[:, 0].numpy() * (1 + gain)[:, None, None]
    return (ink + rng.normal(0, 0.05, ink.shape)).astype(np.float32)


def to_grey(ink: np.ndarray) -> np.ndarray:
    """Ink to 8-bit grey, dark on white: -.25 and below is 255, 1.25 and above is 0."""
    return np.round(255 * (1 - (np.clip(ink, -0.25, 1.25) + 0.25) / 1.5)).astype(np.uint8)


def draw_pages(count: int, split: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pages uint8 ``[count, 32, 32]`` and their digits int64 ``[count, 4, 4]``."""
    images, classes = digit_split(split)
    chosen = rng.integers(len(images), size=count * CELLS * CELLS)
    tiles = to_grey(draw_tiles(images[chosen], rng, augment=split == "train"))
    pages = tiles.reshape(count, CELLS, CELLS, CELL, CELL).swapaxes(2, 3).reshape(count, CELLS * CELL, CELLS * CELL)
    return pages, classes[chosen].reshape(count, CELLS, CELLS)


def records(split: str, count: int, seed: int) -> Iterator[Record]:
    """``count`` pages of a split."""
    rng = np.random.default_rng([seed, list(SPLITS).index(split)])
    for start in range(0, count, _CHUNK):
        pages, digits = draw_pages(min(_CHUNK, count - start), split, rng)
        for i, (page, labels) in enumerate(zip(pages, digits, strict=True), start):
            record = {"id": f"{split}-{i:06d}", "labels_grid": labels.tolist()}
            order = rng.permutation(len(NAMES))
            yield [png(page)], record | asked_about(record["id"], i, split, NAMES, order, labels, QUESTIONS)


def asked_about(
    key: str, number: int, split: str, names: Sequence[str], order: np.ndarray, answers: np.ndarray, scored: int
) -> dict[str, Any]:
    """What a page is asked, a question for each of its cells in ``order``: a conversation, or ``scored`` questions of
    val and test. Every fourth conversation is short: the end of an answer has to be seen after few questions, too.
    """
    asked = [(names[int(cell)], str(answers.flat[cell])) for cell in order]
    if split == "train":
        return {"conversations": conversation(asked[: len(asked) if number % 4 else 1 + number // 4 % 4])}
    return {"questions": [question(key, name, name, answer) for name, answer in asked[:scored]]}


def png(page: np.ndarray) -> bytes:
    """Encode a grey page."""
    out = io.BytesIO()
    Image.fromarray(page).save(out, "PNG")
    return out.getvalue()


def write_tokenizer(root: Path) -> None:
    """A word-level tokenizer over the words of the task, for ``AutoTokenizer.from_pretrained``."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<eos>", "<unk>", IMAGE_TOKEN]
    words = [*specials, *(str(digit) for digit in range(10)), *NAMES]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=[IMAGE_TOKEN],
        model_max_length=1024,
    )
    tokenizer.save_pretrained(root)


def main(argv: list[str] | None = None) -> None:
    """The program."""
    about, meta = (__doc__ or "").split("\n")[0], {"program": "data_prep.digits", "version": 2}
    finish(write_splits(argv, about, meta, (8000, 256), records))


def finish(out: Path) -> None:
    """Write the tokenizer beside the splits, where there is none."""
    if not (out / "tokenizer" / "tokenizer_config.json").exists():
        write_tokenizer(out / "tokenizer")


if __name__ == "__main__":
    program(main)
