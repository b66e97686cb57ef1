"""The base of all errors that are the user's to mend: something in a file, on the command line, or with the disk.

A program shows such an error as it is, without a traceback. Decided here: whatever a file holds may stand in a message,
so a message is made fit to be read when it is made (:func:`dslight.texts.readable`).
"""

from __future__ import annotations

from dslight.texts import readable


class UserError(ValueError):
    """What the user can put right. The first line reads ``file or key: what, the value, what to do``."""

    def __init__(self, message: object) -> None:
        super().__init__(readable(str(message)))


class WeightsError(UserError):
    """A weights file or checkpoint that is damaged, or does not fit its part."""


class UnfinishedError(UserError):
    """A run was stopped before its end, with a checkpoint: the same command continues it."""
