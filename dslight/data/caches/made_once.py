"""Files beside the shards that hold what was found out about them, such as lengths and tokens: each is made once.

Of all processes that want such a file, on whatever rank, one makes it and the others wait. On a file system without
locks each makes it for itself, to the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dslight.files.atomic import remove_leftovers
from dslight.files.locks import FOREVER, locked

Held = TypeVar("Held")


def made_once(path: Path, what: str, load: Callable[[], Held | None], make: Callable[[], None]) -> Held:
    """What is in the file ``path``, which is made first where it is not there.

    Args:
        path: the file.
        what: it holds, for messages.
        load: reads it; ``None`` where it is missing, damaged, or of other shards.
        make: writes it, whole or not at all.

    Raises:
        PermissionError: naming the folder, if the file has to be made and the folder cannot be written.
    """
    found = load()
    if found is None:
        with _alone(path, what):
            found = load()  # another process may have made it meanwhile
            if found is None:
                make()
                found = load()
    assert found is not None, path
    return found


@contextmanager
def _alone(path: Path, what: str) -> Iterator[None]:
    """One process at a time, without what one that was killed has left."""
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"data.cache: needed, as {what} are kept beside the shards and {path.parent} is read-only"
        )
    with locked(path.with_name(f".{path.name}.lock"), FOREVER) as held:
        if held:
            remove_leftovers(path.parent, path.name)
        yield
