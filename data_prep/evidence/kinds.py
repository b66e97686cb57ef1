"""The kinds of pages: what is drawn, and what can be asked about it.

A question names what is large or coloured and asks for what is small beside it. ``title`` asks for large print itself,
so that a model that sees too little of the page can be told from one that cannot read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from data_prep.evidence.photographs import cut_out
from data_prep.evidence.sheet import CELLS, CHARACTERS, COLOURS, Sheet, ink_on
from data_prep.evidence.words import FIELDS, Split, words


@dataclass(frozen=True)
class Asked:
    """A question with its one answer; ``kind`` is the key of the table per kind."""

    question: str
    answer: str
    kind: str


Page = tuple[Sheet, list[Asked]]
Item = TypeVar("Item")


def chart(rng: np.random.Generator, split: Split) -> Page:
    """Bars with their numbers in small print and a title in large."""
    sheet = Sheet(rng)
    asked = [_title(sheet, rng, split)]
    for place, colour in enumerate(_colours(rng, 5)):
        height, col = 2 * int(rng.integers(3, 11)), 2 + 5 * place
        number = _number(rng)
        sheet.area(colour, CELLS - 1 - height, col, height, 4)
        sheet.small(number, _even(CELLS - height), _even(col + 1), ink_on(colour))
        asked.append(Asked(f"Number on the {colour} bar?", number, "chart"))
    return sheet, asked


def form(rng: np.random.Generator, split: Split) -> Page:
    """Names of fields in large print, their values in small."""
    sheet = Sheet(rng)
    asked = [_title(sheet, rng, split)]
    for place, field in enumerate(rng.permutation(FIELDS)):
        row, col = 6 + 4 * (place % 5) if place < 5 else 26, 2
        value = _number(rng)
        sheet.large(str(field), row, col)
        sheet.small(value, row + int(rng.integers(2)), col + 8 + 2 * int(rng.integers(1, 4)))
        asked.append(Asked(f"Value of {field}?", value, "form"))
    return sheet, asked


def prices(rng: np.random.Generator, split: Split) -> Page:
    """Names of goods in large print, their prices in small."""
    sheet = Sheet(rng)
    asked = []
    for place, item in enumerate(_some(rng, words(split), 6)):
        row, price = 2 + 4 * place, _price(rng)
        sheet.large(item, row, 2 + 2 * int(rng.integers(3)))
        sheet.small(price, row + int(rng.integers(2)), 18 + 2 * int(rng.integers(2)))
        asked.append(Asked(f"Price of {item}?", price, "prices"))
    return sheet, asked


def receipt(rng: np.random.Generator, split: Split) -> Page:
    """Everything but the title in small print: names and prices."""
    sheet = Sheet(rng)
    asked = [_title(sheet, rng, split)]
    top, left = 2 * int(rng.integers(4, 7)), 2 * int(rng.integers(1, 5))
    title = asked[0].answer
    for place, item in enumerate(_some(rng, [word for word in words(split) if word != title], 6)):
        price = _price(rng)
        sheet.small(item, top + 2 * place, left)
        sheet.small(price, top + 2 * place, left + 8)
        asked.append(Asked(f"Price of {item}?", price, "receipt"))
    return sheet, asked


def signs(rng: np.random.Generator, split: Split) -> Page:
    """Road signs, each with a word in small print."""
    sheet = Sheet(rng)
    asked = []
    names = _some(rng, words(split), 4)
    for place, (colour, word) in enumerate(zip(_colours(rng, 4), names, strict=True)):
        row, col = 2 + 14 * (place // 2), 2 + 14 * (place % 2)
        shape = ("box", "disc", "diamond")[rng.integers(3)]
        sheet.area(colour, row, col, 10, 10, shape)
        sheet.small(word, row + 4 + int(rng.integers(2)), _even(col + 3), ink_on(colour))
        asked.append(Asked(f"Word on the {colour} sign?", word, "signs"))
    return sheet, asked


def photo(rng: np.random.Generator, split: Split) -> Page:
    """A photograph with coloured labels stuck on it, each with a number in small print."""
    sheet = Sheet(rng, cut_out(split, rng))
    asked = []
    places = _some(rng, [(row, col) for row in range(4) for col in range(4)], 4)
    for colour, (row, col) in zip(_colours(rng, 4), places, strict=True):
        top, left = 2 + 6 * row + 2 * int(rng.integers(2)), 2 + 6 * col
        number = _number(rng)
        sheet.area(colour, top, left, 2, 4)
        sheet.small(number, top + int(rng.integers(2)), left + 2 * int(rng.integers(2)), ink_on(colour))
        asked.append(Asked(f"Number on the {colour} label?", number, "photo"))
    return sheet, asked


def crowded(rng: np.random.Generator) -> Sheet:
    """A sheet full of print and colours without a sense: what the vision encoder learns its letters from."""
    sheet = Sheet(rng, cut_out("train", rng) if rng.random() < 0.15 else None)
    letters = list(CHARACTERS)
    for row in range(0, CELLS, 4):
        for col in range(0, CELLS, 4):
            what, colour = rng.random(), _colours(rng, 1)[0]
            on = what < 0.35
            if on:
                sheet.area(colour, row, col, 4, 4)
            ink = {"ink": ink_on(colour)} if on else {}
            text = rng.choice(letters, 16)
            if what % 0.35 < 0.2:
                for line in range(4):
                    if rng.random() < 0.8:
                        sheet.small("".join(text[4 * line : 4 * line + 4]), row + line, col, **ink)
            elif what % 0.35 < 0.3:
                for line in range(2):
                    sheet.large("".join(text[2 * line : 2 * line + 2]), row + 2 * line, col, **ink)
    return sheet


KINDS: Final[dict[str, Callable[[np.random.Generator, Split], Page]]] = {
    "chart": chart,
    "form": form,
    "prices": prices,
    "receipt": receipt,
    "signs": signs,
    "photo": photo,
}


def _title(sheet: Sheet, rng: np.random.Generator, split: Split) -> Asked:
    word = _some(rng, words(split), 1)[0]
    sheet.large(word, 2, 2 + 2 * int(rng.integers(8)))
    return Asked("What is the title?", word, "title")


def _some(rng: np.random.Generator, of: Sequence[Item], count: int) -> list[Item]:
    return [of[int(number)] for number in rng.permutation(len(of))[:count]]


def _colours(rng: np.random.Generator, count: int) -> list[str]:
    return _some(rng, list(COLOURS), count)


def _number(rng: np.random.Generator) -> str:
    return f"{rng.integers(10, 100)}"


def _price(rng: np.random.Generator) -> str:
    return f"{rng.integers(1, 10)}.{rng.integers(10, 100)}"


def _even(cell: int) -> int:
    return cell // 2 * 2
