"""Shards that lie elsewhere: pulled whole into a folder of this node, checked against the manifest, and read there.

Any root with a scheme is remote (``s3://``, ``https://``, ``gs://``, ``memory://``, ``file://``): fsspec opens it, with
the package that it asks for.

Decided here, and why:

* The manifest is fetched at every start, so that changed shards are noticed before the first step; indexes and shards
  only where the cache has not the ones it names. Shards of another manifest are another folder of the cache.
* A shard is pulled when it is first read, under a lock file: of all processes of a node one pulls, the others wait. The
  kernel frees the lock of a process that dies.
* It gets its name only when its SHA-256 is that of the manifest. A cut connection is tried again; what it left
  is removed.
* With a limit, the shards that were longest not opened make room: those that were pulled into the cache, and none that
  lie there otherwise. A process that reads one of them reads on: its bytes go when the last descriptor does.
* Shards may lie in sub-folders, as a mix has them, and nowhere else: see :mod:`dslight.names`. No more is fetched than
  the manifest says, and of manifests and indexes no more than the limits allow.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any
from urllib.parse import quote

from dslight.data.shards.format import MANIFEST, Manifest, ShardError, ShardInfo, place
from dslight.files.atomic import write_atomically
from dslight.files.digest import file_sha256, sha256
from dslight.files.locks import FOREVER, locked
from dslight.files.system import no_space
from dslight.limits import LIMITS, limit, setting

TRIES = 4
"""Attempts to fetch a file, with a growing pause between them."""

_PULLED = ".pulled-by-dslight"
"""In a folder of the cache: what it holds was pulled, and may be removed to make room."""


def is_remote(root: str | Path) -> bool:
    """Whether ``root`` names a place by scheme."""
    return "://" in str(root)


@dataclass(frozen=True)
class Cache:
    """The folder of this node in which remote shards are kept.

    Attributes:
        folder: made if it is missing. Several roots, and several runs, may share it.
        limit: bytes of shards, of all roots together; default: as many as there are.
        pause: seconds before the second attempt to fetch a file; doubled for each further one.
    """

    folder: Path
    limit: int | None = None
    pause: float = 1.0

    def open(self, url: str) -> Remote:
        """The shards at ``url``, with their manifest and indexes fetched.

        Raises:
            ShardError: naming the file that cannot be fetched or is another than the manifest says.
        """
        url = url.rstrip("/")
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".manifest-") as tmp:
            _fetch(url, MANIFEST, Path(tmp.name), self.pause, _most("manifest_bytes"))
            manifest = Path(tmp.name).read_bytes()
        name = url.split("://", 1)[1].strip("/").replace("/", "_")[-60:]
        remote = Remote(url, self.folder / f"{name}-{sha256(url.encode() + manifest)[:12]}", self)
        remote.fetch_indexes(manifest)
        return remote


@dataclass(frozen=True)
class Remote:
    """One remote folder of shards and its place in the cache. Travels to the data workers.

    Attributes:
        url: of the folder.
        root: where its files are kept.
        cache: the cache that ``root`` is part of.
    """

    url: str
    root: Path
    cache: Cache

    def fetch_indexes(self, manifest: bytes) -> None:
        """Fetch each index that the cache has not."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root / f".{MANIFEST}.lock", FOREVER):
            (self.root / _PULLED).touch()
            write_atomically(self.root / MANIFEST, manifest)
            for shard in Manifest.load(self.root).shards:
                path = place(self.root, shard.index_name)
                if not path.exists() or file_sha256(path) != shard.index_sha256:
                    self._pull(shard.index_name, shard.index_sha256, _most("index_bytes"))

    def shard(self, shard: ShardInfo) -> Path:
        """The local file of a shard, pulled if it is not there.

        Raises:
            ShardError: naming the shard, if it cannot be pulled or is not the one that the manifest names.
        """
        path = place(self.root, shard.name)
        if not _is_there(path, shard):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(_beside(path, "lock"), FOREVER):
                if not _is_there(path, shard):  # nobody pulled it while we waited
                    with self._room_for(shard, path):
                        self._pull(shard.name, shard.sha256, (shard.bytes, "the manifest says no more"))
        os.utime(path)
        return path

    @contextmanager
    def _room_for(self, shard: ShardInfo, path: Path) -> Iterator[None]:
        """Remove what the limit leaves no room for, and hold the room while the shard comes."""
        limit = self.cache.limit
        if limit is None:
            yield
            return
        if shard.bytes > limit:
            raise ShardError(f"data.cache_bytes: {limit}, but {self.url}/{shard.name} alone has {shard.bytes}")
        held = _beside(path, "room")  # an empty file of the shard's size, which others count
        with locked(self.cache.folder / ".room.lock", FOREVER):
            held.unlink(missing_ok=True)
            kept = sorted(_pulled(self.cache.folder, "*.tar"), key=lambda entry: entry[1].st_mtime_ns)
            total = sum(stat.st_size for _, stat in [*kept, *_pulled(self.cache.folder, ".*.room")])
            for old, stat in kept:
                if total + shard.bytes <= limit:
                    break
                old.unlink(missing_ok=True)
                total -= stat.st_size
            with held.open("wb") as file:
                file.truncate(shard.bytes)
        try:
            yield
        finally:
            held.unlink(missing_ok=True)

    def _pull(self, name: str, digest: str, most: _Most) -> None:
        """Fetch one file and put it in place once it is what it should be; the caller holds its lock."""
        path = place(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp = _beside(path, "tmp")
        try:
            _fetch(self.url, name, tmp, self.cache.pause, most, lambda: _difference(tmp, digest))
            with tmp.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(tmp, path)
        finally:
            tmp.unlink(missing_ok=True)


_Most = tuple[int, str]
"""Bytes that are fetched at most, and who says so."""


def _most(name: str) -> _Most:
    return limit(name), f"{setting(name)}: {LIMITS[name].bounds}"


class _TooLongError(Exception):
    """More arrives than was to be."""


def _fetch(url: str, name: str, to: Path, pause: float, most: _Most, problem: Callable[[], str] = str) -> None:
    """Copy a file, again and again until ``problem`` finds none, but no more than ``most`` bytes of it."""
    import fsspec
    from fsspec.callbacks import Callback
    from fsspec.implementations.local import LocalFileSystem

    class Counted(Callback):
        def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
            if self.value > most[0]:
                raise _TooLongError

    try:
        fs, folder = fsspec.core.url_to_fs(url)
        path = f"{folder}/{quote(name) if isinstance(fs.protocol, tuple) and 'http' in fs.protocol else name}"
    except (ImportError, ValueError) as error:  # a package is missing, or there is no such scheme
        raise ShardError(f"{url}: {error}") from error
    found = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            if isinstance(fs, LocalFileSystem) and (fs.size(path) or 0) > most[0]:  # it is copied in one piece
                raise _TooLongError
            fs.get_file(path, str(to), callback=Counted())
            if to.stat().st_size > most[0]:
                raise _TooLongError
            found = problem()
            if not found:
                return
        except _TooLongError:
            raise ShardError(f"{url}/{name}: has more than {most[0]:,} bytes ({most[1]})") from None
        except FileNotFoundError:
            raise ShardError(f"{url}/{name}: there is no such file") from None
        except OSError as error:
            if full := no_space(error, to):
                raise ShardError(f"{url}/{name}: {full}") from error
            found = f"{type(error).__name__}: {error}"
        except Exception as error:  # each file system raises its own; all of them mean that it did not arrive
            found = f"{type(error).__name__}: {error}"
    raise ShardError(f"{url}/{name}: not fetched in {TRIES} attempts; the last: {found}")


def _is_there(path: Path, shard: ShardInfo) -> bool:
    return path.exists() and path.stat().st_size == shard.bytes


def _difference(path: Path, digest: str) -> str:
    found = file_sha256(path)
    if found == digest:
        return ""
    return f"{path.stat().st_size} bytes arrived; their SHA-256 is {found}, the manifest says {digest}"


def _pulled(folder: Path, pattern: str) -> list[tuple[Path, Any]]:
    """Files that were pulled into the folders of a cache."""
    found = []
    for mark in folder.glob(f"*/{_PULLED}"):
        for path in mark.parent.rglob(pattern):
            try:
                stat = path.lstat()
            except FileNotFoundError:  # another process was faster
                continue
            if S_ISREG(stat.st_mode):
                found.append((path, stat))
    return found


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")
