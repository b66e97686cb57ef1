"""Tar shards: writing them atomically, reading any record at random, and naming what is wrong with them.

A dataset is a folder of plain WebDataset tars (every WebDataset tool reads them), an index beside each tar, and a
manifest::

    shard-000000.tar  shard-000000.idx.npz  shard-000001.tar  ...  manifest.json

Decided here, and why:

* The manifest is written last and is the commit marker: a shard that it does not name does not exist. Handlers of a
  streaming reader cannot notice a tar that was cut at a sample boundary; the counts, sizes and hashes of a manifest
  can.
* A shard appears under its final name only when it is complete, synced and re-read (``.tmp`` file, fsync, rename, fsync
  of the folder). An exception in the producer finalises nothing.
* The same records give the same bytes (mtime 0, a fixed zip date in the index), so two runs can be compared by hash.
* Records are read with ``pread`` at indexed offsets: random order costs no more than sequential order, and no file
  position is shared between worker processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, cast

import numpy as np

MANIFEST = "manifest.json"
VERSION = 1
BLOCK = 512
"""Size of a tar header, and what member data is padded to."""

Check = Literal["size", "full"]
"""How a read is checked: ``size``, every byte is there; ``full``, and has the hash it was written with."""

_KEY = re.compile(r"[a-z0-9_-]{1,80}")
_IMAGE_MAGIC = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"), (b"BM", "bmp"))


class ShardError(Exception):
    """A shard, its index or the manifest is not what was written; the message names the file and the key."""


def image_extension(data: bytes) -> str:
    """The extension for encoded image bytes, from their first bytes (file names of public datasets lie).

    Raises:
        ValueError: if the bytes are no PNG, JPEG, WebP, GIF or BMP.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for magic, extension in _IMAGE_MAGIC:
        if data.startswith(magic):
            return extension
    raise ValueError(f"not a PNG, JPEG, WebP, GIF or BMP image: {len(data)} bytes starting with {data[:12]!r}")


def record_members(images: Sequence[bytes], record: Mapping[str, Any]) -> dict[str, bytes]:
    """The tar members of one record, by extension: the original image bytes and ``json``, which lists them as
    ``images``."""
    names = [image_extension(data) for data in images]
    if len(names) > 1:
        names = [f"{i}.{name}" for i, name in enumerate(names)]
    text = json.dumps({**record, "images": names}, ensure_ascii=False)
    return {**dict(zip(names, images, strict=True)), "json": text.encode()}


@dataclass(frozen=True)
class ShardInfo:
    """One line of the manifest."""

    name: str
    bytes: int
    sha256: str
    records: int
    questions: int
    index_sha256: str

    @property
    def index_name(self) -> str:
        """File name of the index beside the tar."""
        return index_name(self.name)


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds. ``meta`` is free for the program that wrote it (its arguments, counts of
    rejects)."""

    shards: tuple[ShardInfo, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of the content of all shards in order; equal content has an equal digest wherever it lies."""
        return _sha256("\n".join(shard.sha256 for shard in self.shards).encode())

    def save(self, root: Path) -> None:
        """Write ``manifest.json`` atomically."""
        body = {"format": "dslight-shards", "version": VERSION, **asdict(self)}
        text = json.dumps({**body, "checksum": _checksum(body)}, indent=1, ensure_ascii=False) + "\n"
        _write_atomically(root / MANIFEST, text.encode())

    @classmethod
    def load(cls, root: str | Path) -> Manifest:
        """Read and check the manifest of ``root``.

        Raises:
            ShardError: if there is none (the writer did not finish, or these are not our shards), or it was edited.
        """
        path = Path(root) / MANIFEST
        try:
            body = json.loads(path.read_text())
        except FileNotFoundError:
            hint = "plain WebDataset tars are first indexed with dslight.data.shards.index_tars"
            raise ShardError(f"{path}: missing. The folder holds no finished shards; {hint}") from None
        except ValueError as error:
            raise ShardError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(body, dict) or body.get("version") != VERSION:
            raise ShardError(f"{path}: not a manifest of version {VERSION}")
        if body.pop("checksum", None) != _checksum(body):
            raise ShardError(f"{path}: its checksum does not fit, so it was edited or damaged")
        return cls(tuple(ShardInfo(**shard) for shard in body["shards"]), body["meta"])


@dataclass(frozen=True)
class Index:
    """Where every member of one or of many shards lies. ``R`` records, ``M`` members.

    Attributes:
        keys: bytes ``[R]``, UTF-8.
        first: int64 ``[R + 1]``; the members of record ``i`` are ``first[i] : first[i + 1]``.
        extensions: bytes ``[M]``.
        offsets, sizes: int64 ``[M]``, of the member's data within its tar.
        hashes: uint8 ``[M, 16]``, BLAKE2b-128 of the member's data.
        questions: int32 ``[R]``, questions of the record (0 for a training record).
    """

    keys: np.ndarray
    first: np.ndarray
    extensions: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    questions: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """Key of a record."""
        return self.keys[row].decode()

    def members(self, row: int) -> range:
        """Positions of a record's members in the member arrays."""
        return range(int(self.first[row]), int(self.first[row + 1]))

    def row_of(self, member: int) -> int:
        """The record that a member belongs to."""
        return int(np.searchsorted(self.first, member, side="right")) - 1

    def to_bytes(self) -> bytes:
        """The ``.npz`` file, the same bytes for the same index (``numpy.savez`` stamps the time)."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, value in vars(self).items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Read what :meth:`to_bytes` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})

    @classmethod
    def build(cls, records: Sequence[_Record]) -> Index:
        """Lay records out as arrays."""
        members = [member for record in records for member in record.members]
        return cls(
            keys=np.array([record.key.encode() for record in records] or [b""])[: len(records)],
            first=np.cumsum([0, *(len(record.members) for record in records)], dtype=np.int64),
            extensions=np.array([m.extension.encode() for m in members] or [b""])[: len(members)],
            offsets=np.array([m.offset for m in members], dtype=np.int64),
            sizes=np.array([m.size for m in members], dtype=np.int64),
            hashes=np.frombuffer(b"".join(m.hash for m in members), dtype=np.uint8).reshape(-1, 16),
            questions=np.array([record.questions for record in records], dtype=np.int32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Index]) -> Index:
        """One index over the records of all parts, in order."""
        starts = np.cumsum([0, *(part.first[-1] for part in parts)])
        first = [part.first[:-1] + start for part, start in zip(parts, starts, strict=False)]
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in cls.__dataclass_fields__
            if name != "first"
        }
        return cls(first=np.concatenate([*first, starts[-1:]]), **joined)


@dataclass(frozen=True)
class _Member:
    extension: str
    offset: int
    size: int
    hash: bytes


@dataclass(frozen=True)
class _Record:
    key: str
    members: tuple[_Member, ...]
    questions: int


class ShardWriter:
    """Write records into shards; leaving the ``with`` block without an exception writes the manifest.

    The lock is the kernel's (``flock``), so a killed writer leaves none behind. A killed or failed run is simply run
    again: the shards it finished are replaced by the same bytes, and its ``.tmp`` files are removed.

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
        self._lock: BinaryIO | None = None

    def __enter__(self) -> ShardWriter:
        self.root.mkdir(parents=True, exist_ok=True)
        if (self.root / MANIFEST).exists():
            raise ShardError(
                f"{self.root / MANIFEST}: these shards are finished; write to another folder or delete them"
            )
        self._lock = (self.root / ".lock").open("wb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ShardError(f"{self.root}: another writer is at work there") from None
        for leftover in self.root.glob(".*.tmp"):
            leftover.unlink()
        return self

    def write(self, key: str, images: Sequence[bytes], record: Mapping[str, Any]) -> None:
        """Add one record: the encoded ``images`` as they are, and ``record`` as JSON (``images`` in it is set here).

        Raises:
            ValueError: the key is not of ``[a-z0-9_-]``, at most 80 characters (a dot would merge WebDataset samples),
                was used before, or image bytes are not an image format we keep.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"key {key!r}: only a-z, 0-9, _ and -, at most 80 characters")
        if key in self._keys:
            raise ValueError(f"key {key!r}: written twice")
        members = record_members(images, record)
        if self._open is None:
            self._open = _OpenShard(self.root, f"shard-{len(self.shards):06d}.tar")
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
                for stale in self.root.glob("shard-*.tar"):  # of an earlier, killed run with other arguments
                    if stale.name not in expected:
                        stale.unlink()
                        (self.root / index_name(stale.name)).unlink(missing_ok=True)
                Manifest(tuple(self.shards), self.meta).save(self.root)
        finally:
            if self._open is not None:
                self._open.discard()
            if self._lock is not None:
                self._lock.close()


class _OpenShard:
    """The shard under construction: a ``.tmp`` file that hashes what passes through it."""

    def __init__(self, root: Path, name: str) -> None:
        from webdataset.writer import TarWriter  # imports torch, which a reader of indexes does not need

        self.path, self.tmp = root / name, root / f".{name}.tmp"
        self.file = _HashingFile(self.tmp)
        self.tar = TarWriter(cast(BinaryIO, self.file), encoder=False, mtime=0)
        self.records: list[_Record] = []
        self.size = 0

    def write(self, key: str, members: Mapping[str, bytes], questions: int) -> None:
        entries = []
        for extension in sorted(members):  # TarWriter's own order; a header is one block because keys are short
            data = members[extension]
            entries.append(_Member(extension, self.size + BLOCK, len(data), _hash(data)))
            self.size += BLOCK + _padded(len(data))
        self.tar.write({"__key__": key, **members})
        if self.tar.tarstream.offset != self.size:
            raise ShardError(f"{self.tmp}: {key}: the tar is at {self.tar.tarstream.offset}, the index at {self.size}")
        self.records.append(_Record(key, tuple(entries), questions))

    def finish(self) -> ShardInfo:
        self.tar.close()
        self.file.sync_and_close()
        index = Index.build(self.records)
        data = index.to_bytes()
        info = ShardInfo(
            name=self.path.name,
            bytes=self.file.count,
            sha256=self.file.sha256.hexdigest(),
            records=len(index),
            questions=int(index.questions.sum()),
            index_sha256=_sha256(data),
        )
        problems = list(_tar_problems(self.tmp, info, index))
        if problems:
            raise ShardError(f"{self.tmp}: read back wrong: {problems[0]}")
        os.replace(self.tmp, self.path)
        _write_atomically(self.path.parent / info.index_name, data)  # syncs the folder too
        return info

    def discard(self) -> None:
        self.file.close()
        self.tmp.unlink(missing_ok=True)


class _HashingFile:
    """A file opened for writing that counts and hashes its bytes, and says how far it got when the disk is full."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.sha256 = path, 0, hashlib.sha256()
        self._file = path.open("wb")

    def write(self, data: bytes) -> int:
        if self._file.closed:  # given up: tarfile still flushes its end when it is collected
            return len(data)
        try:
            self._file.write(data)
        except OSError as error:
            where = f"after {self.count} bytes, writing {len(data)} more; this shard is given up, earlier ones are safe"
            raise OSError(error.errno, f"{error.strerror} ({where})", str(self.path)) from error
        self.count += len(data)
        self.sha256.update(data)
        return len(data)

    def sync_and_close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        with suppress(OSError):  # a full disk again, of a file that is thrown away
            self._file.close()


class ShardReader:
    """Random access to the records of a folder of shards.

    Only the folder and the check travel to a worker process; the index is read there again.

    Args:
        root: folder with a manifest.
        check: ``size`` finds missing bytes, ``full`` hashes every member that is read and so also finds changed ones.

    Raises:
        ShardError: the manifest, an index or a shard is missing or has another size than the manifest says.
    """

    def __init__(self, root: str | Path, check: Check = "size") -> None:
        self.root = Path(root)
        self.check: Check = check
        self.manifest = Manifest.load(root)
        if not self.manifest.shards:
            raise ShardError(f"{self.root / MANIFEST}: names no shard, so there is nothing to read")
        parts = [_load_index(self.root, shard) for shard in self.manifest.shards]
        for shard in self.manifest.shards:
            problem = _size_problem(self.root, shard)
            if problem:
                raise ShardError(f"{self.root / shard.name}: {problem}")
        self.index = Index.concatenate(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self._descriptor = lru_cache(maxsize=64)(_Descriptor)

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[type[ShardReader], tuple[Path, Check]]:
        return ShardReader, (self.root, self.check)

    def locate(self, row: int) -> tuple[ShardInfo, str]:
        """The shard and the key of a record, for messages."""
        shard = self.manifest.shards[int(np.searchsorted(self.starts, row, side="right")) - 1]
        return shard, self.index.key(row)

    def row(self, shard: int, row: int) -> int:
        """The number of record ``row`` of shard ``shard`` in the whole folder."""
        return int(self.starts[shard]) + row

    def read(self, row: int) -> dict[str, bytes]:
        """The members of a record by extension.

        Raises:
            ShardError: naming shard, key, member and offset, if bytes are missing or (``check="full"``) changed.
        """
        shard, key = self.locate(row)
        descriptor = self._descriptor(self.root / shard.name)
        members = {}
        for m in self.index.members(row):
            extension = self.index.extensions[m].decode()
            offset, size = int(self.index.offsets[m]), int(self.index.sizes[m])
            data = os.pread(descriptor.number, size, offset)
            where = f"{self.root / shard.name}: {key}.{extension} at byte {offset}"
            if len(data) != size:
                raise ShardError(f"{where}: {len(data)} of {size} bytes are left; the shard was cut")
            if self.check == "full" and _hash(data) != self.index.hashes[m].tobytes():
                raise ShardError(
                    f"{where}: has hash {_hash(data).hex()}, was written with {self.index.hashes[m].tobytes().hex()}"
                )
            members[extension] = data
        return members


class _Descriptor:
    """An open file that closes itself when the cache lets it go."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@dataclass(frozen=True)
class Problem:
    """One finding of :func:`verify`."""

    shard: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.what) if part)


def verify(
    root: str | Path, progress: Callable[[Sequence[ShardInfo]], Iterable[ShardInfo]] = iter
) -> Iterator[Problem]:
    """Read every byte of every shard and yield what is wrong with it, shard by shard and key by key.

    ``progress`` wraps the loop over the shards (``tqdm`` fits).
    """
    root = Path(root)
    try:
        manifest = Manifest.load(root)
    except ShardError as error:
        yield Problem(MANIFEST, "", str(error))
        return
    for shard in progress(manifest.shards):
        yield from verify_shard(root, shard)
    known = {shard.name for shard in manifest.shards}
    for path in sorted([*root.glob("*.tar"), *root.glob(".*.tmp")]):
        if path.name not in known:
            yield Problem(path.name, "", "is not in the manifest, so no reader sees it")


def verify_shard(root: Path, shard: ShardInfo) -> Iterator[Problem]:
    """The problems of one shard and its index."""
    try:
        index = _load_index(root, shard)
    except ShardError as error:
        yield Problem(shard.index_name, "", str(error))
        if (root / shard.name).exists() and _file_sha256(root / shard.name) != shard.sha256:
            yield Problem(shard.name, "", "differs from what was written; without its index the keys cannot be named")
        return
    yield from _tar_problems(root / shard.name, shard, index)


def _tar_problems(path: Path, shard: ShardInfo, index: Index) -> Iterator[Problem]:
    if not path.exists():
        yield Problem(shard.name, "", f"is missing, with its {shard.records} records")
        return
    size = path.stat().st_size
    if size == shard.bytes and _file_sha256(path) == shard.sha256:
        return
    if size != shard.bytes:
        yield Problem(shard.name, "", f"has {size} bytes, was written with {shard.bytes}")
    named = False
    with path.open("rb") as file:
        for m in range(len(index.offsets)):
            what = _member_problem(file, int(index.offsets[m]), int(index.sizes[m]), index.hashes[m].tobytes())
            if what:
                named = True
                extension = index.extensions[m].decode()
                yield Problem(shard.name, index.key(index.row_of(m)), f"{extension} at byte {index.offsets[m]}: {what}")
    if not named:
        last = index.key(len(index) - 1) if len(index) else ""
        yield Problem(shard.name, last, "the end of the tar (after this last record) is not what was written")


def _member_problem(file: BinaryIO, offset: int, size: int, expected: bytes) -> str:
    file.seek(offset - BLOCK)
    data = file.read(BLOCK + _padded(size))
    if len(data) < BLOCK + size:
        return f"cut, {max(0, len(data) - BLOCK)} of {size} bytes are left"
    if _hash(data[BLOCK : BLOCK + size]) != expected:
        return "its bytes were changed"
    try:
        header = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return f"its tar header was changed ({error})"
    if header.size != size:
        return f"its tar header says {header.size} bytes, the index {size}"
    if data[BLOCK + size :].strip(b"\0") or len(data) < BLOCK + _padded(size):
        return "the padding after it was changed or cut"
    return ""


def index_tars(root: str | Path, meta: dict[str, Any] | None = None) -> Manifest:
    """Index plain WebDataset tars where they lie (img2dataset's, OpenCLIP's): an ``.idx.npz`` beside each, and the
    manifest.

    Reads every byte once. A record is, as WebDataset says, the run of members whose names agree up to the first dot of
    the file name. Nothing is skipped: a cut tar, a repeated key or a count that differs from img2dataset's
    ``_stats.json`` is an error.

    Raises:
        ShardError: naming tar and key.
    """
    root = Path(root)
    paths = sorted(root.glob("*.tar"))
    if not paths:
        raise ShardError(f"{root}: holds no .tar file")
    seen: set[str] = set()
    shards = []
    for path in paths:
        records = _scan_tar(path)
        for record in records:
            if record.key in seen:
                raise ShardError(f"{path}: {record.key}: the key occurs twice, and WebDataset would merge or drop one")
            seen.add(record.key)
        stats = root / f"{path.stem}_stats.json"
        if stats.exists() and json.loads(stats.read_text()).get("successes", len(records)) != len(records):
            raise ShardError(f"{path}: has {len(records)} records, {stats.name} says another number; the tar was cut")
        index = Index.build(records)
        data = index.to_bytes()
        _write_atomically(root / index_name(path.name), data)
        shards.append(
            ShardInfo(
                name=path.name,
                bytes=path.stat().st_size,
                sha256=_file_sha256(path),
                records=len(index),
                questions=int(index.questions.sum()),
                index_sha256=_sha256(data),
            )
        )
    manifest = Manifest(tuple(shards), {"indexed_in_place": True, **(meta or {})})
    manifest.save(root)
    return manifest


def _scan_tar(path: Path) -> list[_Record]:
    records: list[_Record] = []
    key, members, questions = "", [], 0
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + _padded(member.size)
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                full = f"{folder}/{stem}" if folder else stem
                if full != key and members:
                    records.append(_Record(key, tuple(members), questions))
                    members, questions = [], 0
                key = full
                file.seek(member.offset_data)
                data = file.read(member.size)
                if len(data) != member.size:
                    raise ShardError(f"{path}: {member.name}: the tar was cut inside this member")
                members.append(_Member(extension.lower(), member.offset_data, member.size, _hash(data)))
                if extension.lower() == "json":
                    questions = _count_questions(data)
            file.seek(end)
            rest = file.read()
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path}: after {key or 'the start'}: {error}") from error
    if len(rest) < 2 * BLOCK or rest.strip(b"\0"):
        raise ShardError(f"{path}: does not end as a tar after {key or 'the start'}; it was cut or damaged there")
    if members:
        records.append(_Record(key, tuple(members), questions))
    return records


def _count_questions(data: bytes) -> int:
    try:
        record = json.loads(data)
    except ValueError:
        return 0
    return len(record.get("questions", ())) if isinstance(record, dict) else 0


def index_name(tar: str) -> str:
    """File name of the index of a tar."""
    return tar.removesuffix(".tar") + ".idx.npz"


def _load_index(root: Path, shard: ShardInfo) -> Index:
    path = root / shard.index_name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{path}: missing, though the manifest names its shard") from None
    if _sha256(data) != shard.index_sha256:
        raise ShardError(f"{path}: is not the index that the manifest names; it is stale or damaged")
    return Index.from_bytes(data)


def _size_problem(root: Path, shard: ShardInfo) -> str:
    path = root / shard.name
    if not path.exists():
        return f"missing, with its {shard.records} records"
    size = path.stat().st_size
    return "" if size == shard.bytes else f"has {size} bytes, the manifest says {shard.bytes}; it was cut or replaced"


def _write_atomically(path: Path, data: bytes) -> None:
    tmp = path.with_name(f".{path.name}.tmp")
    with tmp.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(tmp, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checksum(body: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())
