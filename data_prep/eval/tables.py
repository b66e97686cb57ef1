"""Tables of questions with their pictures inside: parquet as the Hub has it, VLMEvalKit's TSV, JSON, JSON lines.

Pictures in a parquet file are read when they are stored, not before: a row names them by file, row, column and place
(:class:`Cell`), so that a set of ten thousand documents needs no memory for them. Those that are the same bytes get the
same cell, so each is stored once. What stands in a TSV is base64; a cell there may also name the row that has the
picture, before or after it.
"""

from __future__ import annotations

import ast
import base64
import csv
import json
import sys
from collections.abc import Iterator
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.entries import SourceError
from data_prep.eval.files import Files, load, text
from data_prep.rows import UNREADABLE, Table
from dslight.limits import at_most

Row = dict[str, Any]


class Cell(NamedTuple):
    """Where a picture stands.

    Attributes:
        path: of the parquet file.
        row: in the file, from 0.
        column: its name.
        place: in the list that the column holds; -1: it is no list.
    """

    path: str
    row: int
    column: str
    place: int = -1

    def read(self) -> bytes:
        """The encoded picture."""
        value = _opened(self.path).cell(self.row, self.column)
        return _encoded(value if self.place < 0 else value[self.place])


LONGEST_NAME = 255
"""Characters of a file's name; a longer text in a column of pictures is one."""


@lru_cache(16)
def _opened(path: str) -> Table:
    return Table.open(path)


def _encoded(value: Any) -> bytes:
    """The bytes of a picture: themselves, in the Hub's ``{"bytes", "path"}``, or in base64."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return base64.b64decode(value) if isinstance(value, str) else value or b""


def pictures(value: Any) -> dict[str, Any]:
    """What an image column gives to an :class:`Asked`: cells, bytes and base64 inside, or names below ``--images``.

    Raises:
        ValueError: for a list of both.
    """
    found = [_inside(one) for one in (value if isinstance(value, list) else [value]) if one is not None]
    inside = [one for one in found if isinstance(one, Cell | bytes)]
    names = [one["path"] if isinstance(one, dict) else one for one in found if not isinstance(one, Cell | bytes)]
    if inside and any(names):
        raise ValueError(f"a list of pictures inside the file and of names, {', '.join(map(str, names))[:80]}")
    return {"inline": inside} if inside else {"images": [name for name in names if name]}


def _inside(one: Any) -> Any:
    """A picture that is written as base64, as its bytes; else the same."""
    if not isinstance(one, str) or len(one) <= LONGEST_NAME:
        return one
    try:
        return base64.b64decode(one, validate=True)
    except ValueError:
        return one


def rows(files: Files) -> Iterator[tuple[Row, str]]:
    """(row, name of its file) of all files of questions."""
    for path in files.found["questions"]:
        for item in table(path):
            yield item, path.name


def table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, by its ending; pictures inside are bytes (TSV) or :class:`Cell`.

    Raises:
        SystemExit: it is not readable as what its ending says.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix in (".tsv", ".csv"):
        yield from _text_rows(path)
    elif path.suffix == ".jsonl":
        yield from (json.loads(line) for line in text(path).splitlines() if line.strip())
    else:
        content = load(path)
        yield from content if isinstance(content, list) else content["data"]


def _parquet_rows(path: Path) -> Iterator[Row]:
    seen: dict[bytes, Cell] = {}
    try:
        found = Table.open(str(path))
        for number, item in enumerate(found.read(0, found.rows)):
            if item is None or UNREADABLE in item:
                raise SystemExit(f"{path}: row {number}: {(item or {}).get(UNREADABLE)}")
            yield {name: _as_cells(value, Cell(str(path), number, name), seen) for name, value in item.items()}
    except SourceError as error:
        raise SystemExit(str(error)) from error


def _as_cells(value: Any, cell: Cell, seen: dict[bytes, Cell]) -> Any:
    if isinstance(value, list) and value and _is_picture(value[0]):
        return [_as_cells(one, cell._replace(place=place), seen) for place, one in enumerate(value)]
    if not _is_picture(value):
        return value
    return seen.setdefault(sha256(_encoded(value)).digest(), cell)


def _is_picture(value: Any) -> bool:
    return isinstance(value, bytes) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes))


def _text_rows(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    size = path.stat().st_size
    at_most("file_bytes", size, f"{path}: has {size:,} bytes", SystemExit)
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        found: list[dict[str, Any]] = [
            {k: said(v) for k, v in row.items() if k} for row in csv.DictReader(file, delimiter=delimiter)
        ]
    images = {row.get("index", ""): row["image"] for row in found if row.get("image")}
    for row in found:
        if row.get("image"):
            row["image"] = _pictures(row["image"], images, f"{path.name}: index {row.get('index')}")
        yield row


def _pictures(cell: str, images: dict[str, str], where: str) -> list[bytes]:
    """Of a cell: base64, the Python text of a list of it, or the index of the row that has it."""
    followed = set()
    while cell in images and cell not in followed:
        followed.add(cell)
        cell = images[cell]
    try:
        return [base64.b64decode(one, validate=True) for one in listed(cell)]
    except ValueError:
        raise SystemExit(f"{where}: its image is neither base64 nor another row's index: {cell[:40]!r}") from None


def said(value: Any) -> str:
    """A cell of text; what pandas wrote for an empty one is empty."""
    found = "" if value is None else str(value).strip()
    return "" if found.lower() == "nan" else found


def listed(value: Any) -> list[str]:
    """A list, the Python text of one, or one value."""
    if isinstance(value, str) and value.startswith(("[", "(")):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return [value]
    return [str(one) for one in value] if isinstance(value, list | tuple) else [] if value is None else [str(value)]
