"""Names that stand in files (manifests, indexes, shard lists, tables of contents, entries) as paths below a folder.

Decided here: one rule for all of them, reading and writing. A name is relative, in POSIX's way of writing, may go down
into sub-folders, and never leads out of its folder: not by being absolute, not by ``..``, a drive letter or a
backslash, and not over a symbolic link. Whoever has links inside of a folder on purpose (a data folder with a link to
another disk) says so with ``DSLIGHT_ALLOW_LINKS=1``; names that lead out are refused with it too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

ALLOW_LINKS = "DSLIGHT_ALLOW_LINKS"
"""The environment variable with which links may lead out of a folder."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST = 4096


class UnsafeNameError(ValueError):
    """A name that is no path below its folder."""


def checked(name: object, what: str = "a name") -> PurePosixPath:
    """``name`` as a relative path that stays below wherever it begins; nothing is looked up.

    Raises:
        UnsafeNameError: saying what is wrong; the message begins with ``what``.
    """
    wrong = _problem(name)
    if wrong:
        raise UnsafeNameError(f"{what} is {_shown(name)}: {wrong}; it must be a path below its folder")
    return PurePosixPath(str(name))


def below(root: str | Path, name: object, what: str = "a name") -> Path:
    """The path ``root/name``, which need not exist.

    Raises:
        UnsafeNameError: as :func:`checked`; or a symbolic link on the way leads out of ``root``.
    """
    path = Path(root) / checked(name, what)
    if os.environ.get(ALLOW_LINKS) != "1":
        home, real = os.path.realpath(root), os.path.realpath(path)
        if real != home and not real.startswith(home.rstrip("/") + "/"):
            raise UnsafeNameError(
                f"{what} is {_shown(name)}: a symbolic link leads out of {root}, to {real}; {ALLOW_LINKS}=1 allows that"
            )
    return path


def _problem(name: object) -> str:
    if not isinstance(name, str):
        return f"a {type(name).__name__} and no text"
    if len(name) > _LONGEST:
        return f"{len(name):,} characters long"
    if _CONTROL.search(name):
        return "holds control characters"
    if "\\" in name:
        return "holds a backslash"
    if name.startswith("/"):
        return "absolute"
    if _DRIVE.match(name):
        return "begins with a drive letter"
    parts = PurePosixPath(name).parts
    if not parts:
        return "empty"
    if ".." in parts:
        return "leads out by .."
    return ""


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-10:]}"
