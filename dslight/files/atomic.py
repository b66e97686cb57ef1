"""Files that are there whole or not at all.

A file is written beside its place, so on the same file system, synced, and renamed. What a killed process leaves is
hidden (``.NAME.xxxxxxxx.tmp``) and is removed by whoever next works in the folder (:func:`remove_leftovers`).
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dslight.files.system import room_for

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part; a text as UTF-8.

    Raises:
        NoSpaceError: naming the file and the bytes it needs.
        OSError: it cannot be written.
    """
    data = data.encode() if isinstance(data, str) else data
    with replacing(path, len(data)) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """A new file, which takes the place of ``path`` when the block ends well.

    Args:
        path: in a folder that is there.
        needed: its bytes, as far as they are known, for the message.

    Raises:
        NoSpaceError: naming the file.
    """
    with beside(path, needed) as partial, partial.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def beside(path: Path, needed: int | None = None) -> Iterator[Path]:
    """The name of a file to write, as others' functions want one; see :func:`replacing`."""
    partial = path.with_name(f".{path.name.lstrip('.')[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        with room_for(path, needed):
            yield partial
            os.replace(partial, path)
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes have left of a file, or of all, in a folder that the caller holds the lock of."""
    for path in folder.glob(f".{name}.*tmp"):
        if _PARTIAL.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
