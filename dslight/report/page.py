"""The report as one HTML file that needs nothing else: no script, no font, no picture from elsewhere.

Whoever has something to add to it gives a ``Section``; pages of their own (``diffs``) share its style and macros.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape


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
class Section:
    """A titled card of the report: tables, figures, pictures and prose (a string, see ``prose``) in their order."""

    title: str
    parts: Sequence[Table | Figure | Gallery | str]


@dataclass(frozen=True)
class Page:
    """Everything that the page shows, in its order."""

    title: str
    summary: str
    table: Table
    notes: Sequence[str]
    figures: Sequence[Figure]
    runs: Table
    sections: Sequence[Section] = ()
    missing: Sequence[str] = ()
    comparisons: Table | None = None
    references: Table | None = None
    text: str = ""
    commands: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def render(page: Any, template: str = "page.html") -> str:
    """The HTML of a page by a template of this folder, which sees it as ``page``."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"prose": prose, "svg": Markup}
    return environment.get_template(template).render(page=page).lstrip()


def link(text: str, target: str) -> Markup:
    """A cell that leads to a file beside the page."""
    return Markup('<a href="{}">{}</a>').format(target, text)


def prose(text: str) -> Markup:
    """Paragraphs, ``- lists``, ``# headings``, ``**bold**``, ``*italics*``, `` `code` `` as HTML; the rest escaped."""
    parts = []
    for block in re.split(r"\n\s*\n", text.strip()):
        # a line that begins an item begins a piece of its own; the lines after it belong to it
        pieces: list[str] = []
        for line in map(str.strip, block.splitlines()):
            if not pieces or line.startswith(("- ", "#")) or pieces[-1].startswith("#"):
                pieces.append(line)
            else:
                pieces[-1] += f" {line}"
        for tag, group in itertools.groupby(pieces, key=_tag):
            texts = [_inline(piece.lstrip("#").removeprefix("- ").strip()) for piece in group]
            if tag == "li":
                parts.append("<ul>" + "".join(f"<li>{text}</li>" for text in texts) + "</ul>")
            else:
                parts += [f"<{tag}>{text}</{tag}>" for text in texts]
    return Markup("\n".join(parts))


def _tag(piece: str) -> str:
    return "h3" if piece.startswith("#") else "li" if piece.startswith("- ") else "p"


def _inline(text: str) -> str:
    html = str(escape(text))
    parts = re.split(r"`([^`]+)`", html)  # every second part is code, in which a star is a star
    for i, part in enumerate(parts):
        if i % 2:
            parts[i] = f"<code>{part}</code>"
        else:
            part = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", part)
            parts[i] = re.sub(r"\*(\S(?:.*?\S)?)\*", r"<em>\1</em>", part)
    return "".join(parts)
