"""Locks between processes, which end with the process that holds them.

Decided here: the kernel's ``flock``, so that no killed process leaves one behind. The lock file says who holds it and
is removed when they are done; one that is left over holds nothing. A forked process shares the lock of its parent,
so a killed program holds its folder until the last of its helpers is gone, which is waited for.

On a file system without locks (some NFS and Lustre mounts) nothing keeps two processes apart; that is said, once for
each folder. Mounts that lock on each node alone (``nolock``, ``local_lock``, ``localflock``) cannot be told.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)

FOREVER = math.inf
"""Patience that does not end."""

_WITHOUT = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_EVERY = 0.05  # seconds between two tries
_LINGERING = 30.0  # seconds that the helpers of a killed process get to end

_mine: set[tuple[int, int, str]] = set()
_warned: set[Path] = set()


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, by what it wrote into the file."""

    process: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.since}"

    @property
    def is_gone(self) -> bool:
        """Whether it has ended, so that only processes which it started can still hold the lock."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            return False
        return False


class HeldError(Exception):
    """Another process holds the lock; ``holder`` is how to call it."""

    def __init__(self, file: Path, holder: str) -> None:
        super().__init__(f"{file}: held by {holder}")
        self.file, self.holder = file, holder


@contextmanager
def locked(file: Path, patience: float = 0.0, again: bool = False) -> Iterator[bool]:
    """Hold the lock ``file``, which is made if it is missing and removed in the end.

    Args:
        file: its name; the folder has to be there.
        patience: seconds to wait for another process, or :data:`FOREVER`.
        again: whether a thread that holds it already goes on.

    Yields:
        Whether it is held; false where there are no locks.

    Raises:
        HeldError: another process holds it.
        OSError: the file cannot be made.
    """
    file = file.parent.resolve() / file.name
    me = (os.getpid(), threading.get_ident(), str(file))
    if again and me in _mine:
        yield True
        return
    descriptor = _acquired(file, patience)
    _mine.add(me)
    try:
        yield descriptor is not None
    finally:
        _mine.discard(me)
        if descriptor is not None:
            _released(file, descriptor)


def _acquired(file: Path, patience: float) -> int | None:
    """An open, locked file; ``None`` where there are no locks."""
    end = time.monotonic() + patience
    linger, said = time.monotonic() + max(patience, _LINGERING), False
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            os.close(descriptor)
            gone = holder is not None and holder.is_gone
            if time.monotonic() >= (linger if gone else end):
                raise HeldError(file, str(holder or "another process")) from None
            if gone and not said:
                log.warning("%s: waiting for what %s has started; it has ended itself", file, holder)
            said = said or gone
            time.sleep(_EVERY)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _WITHOUT:
                raise
            if file.parent not in _warned:
                _warned.add(file.parent)
                log.warning(
                    "%s: its file system has no locks (%s), so nothing keeps a second process out: start one at a time",
                    file.parent, error.strerror,
                )  # fmt: skip
            return None
        else:
            if _is(file, descriptor):
                _write(descriptor)
                return descriptor
            os.close(descriptor)  # who held it has removed it meanwhile


def _released(file: Path, descriptor: int) -> None:
    if _is(file, descriptor):
        file.unlink(missing_ok=True)
    fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked and have it open
    os.close(descriptor)


def _is(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(descriptor: int) -> None:
    holder = Holder(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
    with suppress(OSError):  # a full disk: the lock holds, and is nobody's by name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)


def _holder(descriptor: int) -> Holder | None:
    try:
        found = json.loads(os.pread(descriptor, 1000, 0))
        return Holder(int(found["process"]), str(found["host"]), str(found["since"]))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # it has not written it yet, or could not
        return None
