"""Texts that others wrote, made safe to show: in a terminal, in a message, in a page of markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 400
"""Characters of a line. The middle of a longer one is left out: it begins with the key and ends with what to do."""

_HEAD, _TAIL = 230, 150
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def readable(message: str) -> str:
    """``message`` with its long lines cut in the middle and without control characters."""
    return "\n".join(_cut(printable(line)) for line in message.split("\n"))


def printable(text: str) -> str:
    r"""``text`` with control characters (line breaks and tabs are none) written as ``\x1b``, as Python would."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:_HEAD]} … {line[-_TAIL:]}"


def inert(markdown: str) -> str:
    """Markdown in which nothing is HTML or a picture from elsewhere, whatever the names in it are. What stands between
    fences stays as it is.
    """
    lines, fenced = [], False
    for line in markdown.split("\n"):
        fenced ^= line.startswith("```")
        lines.append(line if fenced else re.sub("<(?=[A-Za-z/!?])", "&lt;", line).replace("![", "!&#91;"))
    return "\n".join(lines)


def one_line(text: object) -> str:
    """A text as it stands in a heading or in a cell of a markdown table, neither of which it can end."""
    return " ".join(str(text).replace("\\", r"\\").replace("|", r"\|").splitlines())


def closest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?``, if an X is ``name`` but for capitals, is like it, or holds it."""
    name = str(name)  # a key of YAML may be a number
    small, known = name.casefold(), list(known)
    close = [one for one in known if one.casefold() == small] or get_close_matches(name, known, n=1)
    close = close or [one for one in known if len(small) > 2 and small in one.casefold()]
    return f"; did you mean {close[0]}?" if close else ""
