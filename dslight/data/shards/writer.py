"""Writing shards: nothing is visible under its final name before it is complete, synced and read back.

:class:`ShardWriter` writes a folder from one process, record by record. A program that writes the shards of a folder
from many processes holds :func:`locked` around all of them, calls :func:`write_shard` in each, and writes the manifest
when it has them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from dslight.data.shards import tar
from dslight.data.shards.check import tar_problems
from dslight.data.shards.format import (
    BLOCK,
    MANIFEST,
    Index,
    Manifest,
    Member,
    Record,
    ShardError,
    ShardInfo,
    index_name,
    member_hash,
)
from dslight.files.atomic import remove_leftovers, write_atomically
from dslight.files.digest import sha256
from dslight.files.locks import HeldError
from dslight.files.locks import locked as lock

LOCK = ".lock"
"""Of a folder that is written to."""

_encoded = json.JSONEncoder(ensure_ascii=False).encode
MARK = ".written-by-dslight"
"""In a folder whose shards were written, or are being written, by this program."""

_SHARD = re.compile(r"shard-\d{6}\.tar")
_KEY = re.compile(r"[a-z0-9_-]{1,80}")
_IMAGE_MAGIC = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"))
_IMAGE_MAGIC += ((b"BM", "bmp"), (b"II*\0", "tif"), (b"MM\0*", "tif"))
_AVIF = (b"ftypavif", b"ftypavis")


def image_extension(data: bytes) -> str:
    """The extension for encoded image bytes, from their first bytes (file names of public datasets lie).

    Raises:
        ValueError: if the bytes are no PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:12] in _AVIF:
        return "avif"
    for magic, extension in _IMAGE_MAGIC:
        if data.startswith(magic):
            return extension
    raise ValueError(
        f"not a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image: {len(data)} bytes starting with {data[:12]!r}"
    )


VIDEO_ENDINGS = ("mp4", "webm", "avi")
"""Of members that are videos, kept whole (:mod:`dslight.data.views.frames`)."""


def video_extension(data: bytes) -> str | None:
    """The extension for an encoded video, from its first bytes; ``None``: it is none of :data:`VIDEO_ENDINGS`."""
    if data[4:8] == b"ftyp" and data[4:12] not in _AVIF and data[8:12] not in (b"heic", b"mif1"):
        return "mp4"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def record_members(images: Sequence[bytes], record: Mapping[str, Any]) -> dict[str, bytes]:
    """The tar members of one record, by extension: the original bytes of images or videos, and ``json``, which lists
    them as ``images``."""
    names = [video_extension(data) or image_extension(data) for data in images]
    if len(names) > 1:
        names = [f"{i}.{name}" for i, name in enumerate(names)]
    text = _encoded({**record, "images": names})
    return {**dict(zip(names, images, strict=True)), "json": text.encode()}


@contextmanager
def locked(root: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold ``root`` (made if it is missing) as its only writer, and clear it of the parts that a killed one left.

    Args:
        root: folder of a dataset.
        patience: seconds to wait for another writer, whose last processes may be ending just now.

    Raises:
        ShardError: another writer holds the folder, its shards are finished, or tars lie there that are none of ours.
    """
    root.mkdir(parents=True, exist_ok=True)
    if (root / MANIFEST).exists():
        raise ShardError(f"{root / MANIFEST}: these shards are finished; write to another folder or delete them")
    try:
        with lock(root / LOCK, patience), _claimed(root):
            remove_leftovers(root)
            yield
    except HeldError as error:
        raise ShardError(f"{root}: another writer is at work there: {error.holder}") from error


@contextmanager
def _claimed(root: Path) -> Iterator[None]:
    """Mark a folder as one whose shards are written here, so that those of a killed run may be replaced or deleted."""
    mark = root / MARK
    if not mark.exists() and (tar := next(root.glob("*.tar"), None)):
        raise ShardError(
            f"{tar}: lies there already, and no unfinished run of this program wrote it (no {MARK}); it is neither "
            f"replaced nor deleted: write to another folder"
        )
    mark.touch()
    try:
        yield
    finally:
        if not any(root.glob("*.tar")):
            mark.unlink(missing_ok=True)


def shard_name(number: int) -> str:
    """File name of a folder's shard."""
    return f"shard-{number:06d}.tar"


def stale_shards(root: Path, expected: Container[str]) -> list[Path]:
    """Shards, and their indexes, of an earlier, killed run with other arguments; the caller holds :func:`locked`."""
    found = [path for path in root.glob("shard-*.tar") if _SHARD.fullmatch(path.name) and path.name not in expected]
    return [one for path in found for one in (path, root / index_name(path.name))]


def check_key(key: str) -> None:
    """Raise ``ValueError`` for a key that WebDataset tools would misread (a dot would merge samples)."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {key!r}: only a-z, 0-9, _ and -, at most 80 characters")


def write_shard(root: Path, name: str, records: Iterable[tuple[str, Mapping[str, bytes], int]]) -> ShardInfo:
    """Write one whole shard and its index from (key, :func:`record_members`, number of its questions); the caller
    holds :func:`locked`.

    An exception out of ``records`` leaves no shard. The same records give the same bytes, whatever was there before.

    Raises:
        ValueError: as :meth:`ShardWriter.write`.
    """
    shard, keys = _OpenShard(root, name), set[str]()
    try:
        for key, members, questions in records:
            check_key(key)
            if key in keys:
                raise ValueError(f"key {key!r}: written twice")
            keys.add(key)
            shard.write(key, members, questions)
        return shard.finish()
    finally:
        shard.discard()  # nothing, once it is finished


class ShardWriter:
    """Write records into shards; leaving the ``with`` block without an exception writes the manifest.

    The folder is :func:`locked`. A killed or failed run is simply run again: the shards it finished are replaced by the
    same bytes, and its ``.tmp`` files are removed.

    Args:
        root: folder of this dataset; made if it is missing.
        shard_bytes: a shard is closed once its members exceed this.
        shard_records: or once it holds this many records.
        meta: put into the manifest; may be filled until the block ends.

    Raises:
        ShardError: another writer holds the folder, or the folder already has a manifest.
    """

    def __init__(
        self,
        root: str | Path,
        shard_bytes: int = 256 << 20,
        shard_records: int = 100_000,
        meta: dict[str, Any] | None = None,
    ) -> None:
        self.root, self.shard_bytes, self.shard_records = Path(root), shard_bytes, shard_records
        self.meta: dict[str, Any] = {} if meta is None else meta
        self.shards: list[ShardInfo] = []
        self._keys: set[str] = set()
        self._open: _OpenShard | None = None
        self._lock = ExitStack()

    def __enter__(self) -> ShardWriter:
        self._lock.enter_context(locked(self.root))
        return self

    def write(self, key: str, images: Sequence[bytes], record: Mapping[str, Any]) -> None:
        """Add one record: the encoded ``images`` as they are, and ``record`` as JSON (``images`` in it is set here).

        Raises:
            ValueError: the key is not of ``[a-z0-9_-]``, at most 80 characters (a dot would merge WebDataset samples),
                was used before, or image bytes are not an image format we keep.
        """
        check_key(key)
        if key in self._keys:
            raise ValueError(f"key {key!r}: written twice")
        members = record_members(images, record)
        if self._open is None:
            self._open = _OpenShard(self.root, shard_name(len(self.shards)))
        self._open.write(key, members, len(record.get("questions", ())))
        self._keys.add(key)
        if self._open.size >= self.shard_bytes or len(self._open.records) >= self.shard_records:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._open is not None:
            self.shards.append(self._open.finish())
            self._open = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish_shard()
                expected = {shard.name for shard in self.shards}
                for stale in stale_shards(self.root, expected):
                    stale.unlink(missing_ok=True)
                Manifest(tuple(self.shards), self.meta).save(self.root)
        finally:
            if self._open is not None:
                self._open.discard()
            self._lock.close()


class _OpenShard:
    """The shard under construction: a ``.tmp`` file that hashes what passes through it.

    It has a name of its own: a process of another node, which was taken for dead, may be at the same shard.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.path, self.tmp = root / name, root / f".{name}.{secrets.token_hex(4)}.tmp"
        self.file = _HashingFile(self.tmp)
        self.records: list[Record] = []
        self.size = 0

    def write(self, key: str, members: Mapping[str, bytes], questions: int) -> None:
        entries = []
        for extension, data in sorted(members.items()):
            entries.append(Member(extension, self.size + BLOCK, len(data), member_hash(data)))
            self.size += self.file.write(tar.member(f"{key}.{extension}", data))
        self.records.append(Record(key, tuple(entries), questions))

    def finish(self) -> ShardInfo:
        self.file.write(tar.ending(self.size))
        self.file.sync_and_close()
        index = Index.build(self.records)
        data = index.to_bytes()
        info = ShardInfo(
            name=self.path.name,
            bytes=self.file.count,
            sha256=self.file.sha256.hexdigest(),
            records=len(index),
            questions=int(index.questions.sum()),
            index_sha256=sha256(data),
        )
        problems = list(tar_problems(self.tmp, info, index))
        if problems:
            raise ShardError(f"{self.tmp}: read back wrong: {problems[0]}")
        os.replace(self.tmp, self.path)
        write_atomically(self.path.parent / info.index_name, data)  # syncs the folder too
        return info

    def discard(self) -> None:
        self.file.close()
        self.tmp.unlink(missing_ok=True)


class _HashingFile:
    """A file opened for writing that counts and hashes its bytes, and says how far it got when the disk is full."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.sha256 = path, 0, hashlib.sha256()
        self._file = path.open("wb", buffering=1 << 20)

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._named(error, f"after {self.count} bytes, writing {len(data)} more") from error
        self.count += len(data)
        self.sha256.update(data)
        return len(data)

    def sync_and_close(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._named(error, f"writing the last of {self.count} bytes") from error
        self._file.close()

    def _named(self, error: OSError, where: str) -> OSError:
        text = f"{error.strerror} ({where}; this shard is given up, earlier ones are safe)"
        return OSError(error.errno, text, str(self.path))

    def close(self) -> None:
        with suppress(OSError):  # a full disk again, of a file that is thrown away
            self._file.close()
