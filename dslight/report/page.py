"""The report as a document: titled sections of tables, figures, pictures, claims and prose.

One HTML file that needs nothing else (no script, no font, no picture from elsewhere), and the same in markdown, without
what is drawn. Pages of their own (``question_pages``) share its style and macros.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from dslight.texts import inert, one_line, printable

Pages = Mapping[tuple[str, str | None, str], str]
"""Address of a page of questions by (arm, arm that it is compared with or ``None``, source)."""


@dataclass(frozen=True)
class Table:
    """Text cells (HTML where a cell is ``Markup``, see ``link``); the first ``names`` columns are words, the others
    numbers. ``caption`` stands below.
    """

    kind: ClassVar = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """An SVG with what it shows."""

    kind: ClassVar = "figure"
    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Picture:
    """A PNG, JPEG or WebP file that is put into the page, with lines below it; a ``small`` one is shown enlarged."""

    data: bytes
    caption: str = ""
    small: bool = False

    @property
    def source(self) -> str:
        """The file as an address."""
        kind = {b"\x89P": "png", b"\xff\xd8": "jpeg", b"RI": "webp"}[self.data[:2]]
        return f"data:image/{kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row, which wraps."""

    kind: ClassVar = "gallery"
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Outcome:
    """A claim, whether it held (``None``: it cannot be checked), and the numbers that say so."""

    kind: ClassVar = "outcome"
    say: str
    held: bool | None
    numbers: Sequence[str]

    @property
    def verdict(self) -> str:
        """In capitals."""
        return {True: "HELD", False: "NOT HELD", None: "NOT CHECKED"}[self.held]


@dataclass(frozen=True)
class Section:
    """A titled card of the report, its parts in their order; a string is markdown.

    ``style``: ``headline``, ``warn``, ``figures`` (a card for each), or nothing.
    """

    title: str
    parts: Sequence[Table | Figure | Gallery | Outcome | str]
    style: str = ""


def render(template: str, **content: Any) -> str:
    """The HTML that a template of this folder makes of ``content``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "svg": Markup, "cut": _cut}
    return printable(environment.get_template(template).render(content).lstrip())


def _cut(text: Any) -> str:
    text, most = str(text), 1200
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most:,} more characters)"


def link(text: str, target: str | None) -> str:
    """A cell that leads to a file beside the page, if there is one."""
    return Markup('<a href="{}">{}</a>').format(target, text) if target else text


def prose(text: str) -> Markup:
    """Markdown as HTML; whatever looks like HTML in it is shown as it stands, and no picture is loaded."""
    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(text))


def to_markdown(sections: Sequence[Section]) -> str:
    """The sections that have words, with their titles."""
    found = [(section.title, list(filter(None, map(_part_to_markdown, section.parts)))) for section in sections]
    return inert("\n".join(f"## {title}\n\n" + "\n".join(parts) for title, parts in found if parts))


def _part_to_markdown(part: Table | Figure | Gallery | Outcome | str) -> str:
    if isinstance(part, Table):
        caption = f"\n{part.caption}\n" if part.caption else ""
        return table_to_markdown(part) + caption
    if isinstance(part, Outcome):
        mark = {True: "✅", False: "❌", None: "❔"}[part.held]
        return "".join(
            [
                f"- {mark} **{part.verdict}**: {part.say}\n",
                *(f"  - {_cell_to_markdown(line)}\n" for line in part.numbers),
            ]
        )
    return f"{part.rstrip()}\n" if isinstance(part, str) and part else ""


def table_to_markdown(table: Table) -> str:
    """A table in (GitHub's) markdown, numbers to the right."""
    cells = [[_cell_to_markdown(cell) for cell in line] for line in (table.head, *table.rows)]
    columns = []
    for i, column in enumerate(zip(*cells, strict=True)):
        width = max(3, *map(len, column))  # a rule of fewer dashes is none everywhere
        rule, side = ("-" * width, "<") if i < table.names else ("-" * (width - 1) + ":", ">")
        columns.append([f"{text:{side}{width}}" for text in (column[0], rule, *column[1:])])
    return "".join(f"| {' | '.join(line)} |\n" for line in zip(*columns, strict=True))


def _cell_to_markdown(cell: str) -> str:
    if isinstance(cell, Markup):
        cell = Markup(re.sub("</?strong>", "**", cell)).striptags()
    return one_line(cell)
