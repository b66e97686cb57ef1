"""A sheet that is drawn on, with a note of what was drawn where.

Everything lies on a grid of 28 x 28 cells of 8 pixels. *Small print* has a character in a cell, *large print* one
in 2 x 2 cells; so a view at half the resolution shows a character of small print in 4 x 4 pixels, and one of large
print as the whole sheet shows small print.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELLS: Final = 28
"""Cells per side."""
CELL: Final = 8
"""Pixels per side of a cell."""
SIDE: Final = CELLS * CELL
COLOURS: Final = {
    "red": (200, 40, 40),
    "blue": (40, 70, 200),
    "green": (30, 140, 60),
    "yellow": (240, 215, 60),
    "purple": (130, 50, 150),
    "orange": (245, 140, 30),
}
CHARACTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyz."
CLASSES: Final = 1 + len(CHARACTERS) + len(COLOURS)
"""Of a cell: 0 for nothing, then the characters, then the colours of areas without print."""

_SMALL, _LARGE = (8, 9), 17  # sizes of type, in pixels
_FACES: Final = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif")  # matplotlib's own files
_DARK, _LIGHT = (20, 20, 20), (250, 250, 250)


@dataclass(frozen=True)
class Drawn:
    """A text or an area on a sheet: cells ``row`` to ``row + height`` and ``col`` to ``col + width``."""

    text: str
    row: int
    col: int
    height: int
    width: int
    large: bool


class Sheet:
    """One page under the pen.

    Args:
        rng: of everything random: type faces, sizes, the place of a character within its cell, noise.
        paper: what is drawn on; white paper by default.
    """

    def __init__(self, rng: np.random.Generator, paper: Image.Image | None = None) -> None:
        self.rng = rng
        self.image = Image.new("RGB", (SIDE, SIDE), (250, 250, 248)) if paper is None else paper.copy()
        self.pen = ImageDraw.Draw(self.image)
        self.labels = np.zeros((CELLS, CELLS), np.int64)
        self.drawn: list[Drawn] = []
        self._face = _FACES[rng.integers(len(_FACES))]
        self._size = _SMALL[rng.integers(len(_SMALL))]

    def area(self, colour: str, row: int, col: int, height: int, width: int, shape: str = "box") -> None:
        """Fill cells with a colour; a ``disc`` or a ``diamond`` has the middle of its box."""
        low, high = (col * CELL, row * CELL), ((col + width) * CELL - 1, (row + height) * CELL - 1)
        middle = ((low[0] + high[0]) / 2, (low[1] + high[1]) / 2)
        if shape == "box":
            self.pen.rectangle([low, high], fill=COLOURS[colour])
        elif shape == "disc":
            self.pen.ellipse([low, high], fill=COLOURS[colour])
        else:
            corners = [(middle[0], low[1]), (high[0], middle[1]), (middle[0], high[1]), (low[0], middle[1])]
            self.pen.polygon(corners, fill=COLOURS[colour])
        y, x = (np.indices((height, width)) + 0.5) / np.array([height, width])[:, None, None] * 2 - 1
        inside = {"box": x == x, "disc": x**2 + y**2 < 1, "diamond": abs(x) + abs(y) < 1}[shape]
        value = 1 + len(CHARACTERS) + list(COLOURS).index(colour)
        self.labels[row : row + height, col : col + width][inside] = value
        self.drawn.append(Drawn(colour, row, col, height, width, True))

    def small(self, text: str, row: int, col: int, ink: tuple[int, int, int] = _DARK) -> None:
        """A character in each cell, from left to right."""
        self._write(text, row, col, 1, self._size, ink)

    def large(self, text: str, row: int, col: int, ink: tuple[int, int, int] = _DARK) -> None:
        """A character in 2 x 2 cells each."""
        self._write(text, row, col, 2, _LARGE, ink)

    def finished(self) -> Image.Image:
        """The sheet as a camera sees it: a little brighter or darker, with noise."""
        seen = np.asarray(self.image, np.float32) * self.rng.uniform(0.92, 1.0)
        seen += self.rng.normal(0, 5, seen.shape)
        return Image.fromarray(np.clip(seen.round(), 0, 255).astype(np.uint8))

    def _write(self, text: str, row: int, col: int, cells: int, size: int, ink: tuple[int, int, int]) -> None:
        font = _font(self._face, size)
        for place, character in enumerate(text):
            left = col + place * cells
            x, y = ((at + cells / 2) * CELL + self.rng.integers(-1, 2) / 2 for at in (left, row))
            self.pen.text((x, y), character, fill=ink, font=font, anchor="mm")
            self.labels[row : row + cells, left : left + cells] = 1 + CHARACTERS.index(character)
        self.drawn.append(Drawn(text, row, col, cells, cells * len(text), cells > 1))


def ink_on(colour: str) -> tuple[int, int, int]:
    """What can be read on a colour."""
    return _DARK if colour in ("yellow", "orange") else _LIGHT


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"), size)
