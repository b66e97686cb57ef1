"""The base of all errors that are the user's to mend: something in a file, on the command line, or with the disk.

A program shows such an error as it is, without a traceback. Decided here: whatever a file holds may stand in a message,
so a message is made fit to be read when it is made: no line is longer than :data:`LONGEST`, and nothing in it reaches
the terminal as a control sequence.
"""

from __future__ import annotations

import re

LONGEST = 400
"""Characters of a line. The middle of a longer one is left out: it begins with the key and ends with what to do."""

_HEAD, _TAIL = 230, 150
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(ValueError):
    """What the user can put right. The first line reads ``file or key: what, the value, what to do``."""

    def __init__(self, message: object) -> None:
        super().__init__(readable(str(message)))


class WeightsError(UserError):
    """A weights file or checkpoint that is damaged, or does not fit its part."""


class UnfinishedError(UserError):
    """A run was stopped before its end, with a checkpoint: the same command continues it."""


def readable(message: str) -> str:
    """``message`` with its long lines cut in the middle and without control characters."""
    return "\n".join(_cut(printable(line)) for line in message.split("\n"))


def printable(text: str) -> str:
    r"""``text`` with control characters (line breaks and tabs are none) written as ``\x1b``, as Python would."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _cut(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[:_HEAD]} … {line[-_TAIL:]}"
