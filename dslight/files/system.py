"""What the system refuses, in sentences; above all full disks: which file, what it needs, what there is."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dslight.errors import UserError
from dslight.texts import readable

_FULL = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "no space left of the disk quota",
    errno.EFBIG: "the file would be larger than this system or `ulimit -f` allows",
}


class NoSpaceError(OSError):
    """A file that could not be written for want of space; its text names the file, what it needs and what is free."""

    def __init__(self, number: int, path: Path, needed: int | None = None) -> None:
        super().__init__(number, os.strerror(number), str(path))
        self.path, self.needed = path, needed

    def __str__(self) -> str:
        found = []
        if self.needed is not None:
            found.append(f"it needs {megabytes(self.needed)}")
        if self.errno != errno.EFBIG and (free := _free(self.path)) is not None:
            found.append(f"{megabytes(free)} are free")
        said = f" ({', '.join(found)})" if found else ""
        return f"{self.path}: {_FULL[self.errno or errno.ENOSPC]}{said}; make room, then the same command continues"


_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.EMFILE, errno.ENFILE, errno.EEXIST),
)


@contextmanager
def room_for(path: Path, needed: int | None = None) -> Iterator[None]:
    """Name ``path``, and the bytes that it needs, where a disk turns out to be full.

    Raises:
        NoSpaceError: for an error that means so.
    """
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is no Exception
        if (found := no_space(error, path, needed)) is None:
            raise
        raise found from error


def no_space(error: BaseException | None, path: Path | None = None, needed: int | None = None) -> NoSpaceError | None:
    """What ``error``, and those that led to it, say of a full disk; ``None``: they are about something else.

    The first in time counts: whoever cleans up after it meets the full disk again. ``path`` and ``needed`` are for one
    that names no file.
    """
    named: NoSpaceError | None = None
    plain: NoSpaceError | None = None
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, NoSpaceError):
            named = error
        elif number := _number(error, path, needed):
            plain = NoSpaceError(number, path or Path(str(getattr(error, "filename", None) or "a file")), needed)
        ranks = [rank[0] for rank in getattr(error, "failures", {}).values()]  # of a sharded checkpoint
        error = error.__cause__ or error.__context__ or next(iter(ranks), None)
    return named or plain


def _number(error: BaseException, path: Path | None, needed: int | None) -> int | None:
    """The system's number of a full disk, as Python, Rust (safetensors) or torch say it."""
    if isinstance(error, OSError):
        return error.errno if error.errno in _FULL else None
    text = str(error)
    if (rust := re.search(r"\(os error (\d+)\)", text)) and int(rust[1]) in _FULL:
        return int(rust[1])
    if "inline_container.cc" in text and path is not None and needed is not None:  # all that torch's writer says
        free = _free(path)
        return errno.ENOSPC if free is not None and free < needed else None
    return None


def said_of(error: BaseException) -> str | None:
    """What to tell the user of an error instead of a traceback; ``None``: it is no user's error, as far as one knows.

    Such are a :class:`~dslight.errors.UserError`, a full disk, and a file that the system does not give or take.
    """
    if isinstance(error, UserError):
        return str(error)
    if full := no_space(error):
        return readable(str(full))
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        # of a file that takes another one's place, the place
        return readable(f"{error.filename2 or error.filename}: {(error.strerror or '').lower()}")
    return None


def megabytes(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _free(path: Path) -> int | None:
    try:
        return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.is_dir())).free
    except (OSError, StopIteration):
        return None
