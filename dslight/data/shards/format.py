"""What lies in a folder of shards: the manifest, the index of a tar, and how bytes are hashed and put in place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as dataclass_fields
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dslight.data.shards.memory import SharedMemory
from dslight.errors import UserError
from dslight.files.atomic import write_atomically
from dslight.files.digest import sha256
from dslight.limits import at_most
from dslight.names import UnsafeNameError, below, checked

MANIFEST = "manifest.json"
VERSION = 1
BLOCK = 512
"""Size of a tar header, and what member data is padded to."""


class ShardError(UserError):
    """A shard, its index or the manifest is not what was written; the message names the file and the key."""


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

    @classmethod
    def parse(cls, line: Any, where: object) -> ShardInfo:
        """A line of a manifest or a journal, once its name stays below the folder and its numbers are numbers.

        Raises:
            ShardError: beginning with ``where``.
        """
        fields = {field.name: field.type for field in dataclass_fields(cls)}
        if not isinstance(line, dict) or line.keys() != fields.keys():
            raise ShardError(f"{where}: a shard is described by {', '.join(fields)}, not by {str(line)[:200]}")
        try:
            checked(line["name"], f"{where}: the name of a shard")
        except UnsafeNameError as error:
            raise ShardError(str(error)) from error
        if not line["name"].endswith(".tar"):
            raise ShardError(f"{where}: the name of a shard is {line['name']!r}; it must end in .tar")
        for name, kind in fields.items():
            value = line[name]
            good = isinstance(value, str) if kind == "str" else type(value) is int and 0 <= value < 1 << 62
            if not good:
                raise ShardError(f"{where}: {line['name']}: its {name} is {str(value)[:80]!r}")
        return cls(**line)


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds. ``meta`` is free for the program that wrote it."""

    shards: tuple[ShardInfo, ...]
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of the content of all shards in order; equal content has an equal digest wherever it lies."""
        return sha256("\n".join(shard.sha256 for shard in self.shards).encode())

    def save(self, root: Path) -> None:
        """Write ``manifest.json`` atomically."""
        body = {"format": "dslight-shards", "version": VERSION, **asdict(self)}
        text = json.dumps({**body, "checksum": _checksum(body)}, indent=1, ensure_ascii=False) + "\n"
        write_atomically(root / MANIFEST, text.encode())

    @classmethod
    def load(cls, root: str | Path) -> Manifest:
        """Read and check the manifest of ``root``.

        Raises:
            ShardError: if there is none (the writer did not finish, or these are not our shards), or it was edited.
        """
        path = place(Path(root), MANIFEST)
        try:
            size = path.stat().st_size
            at_most("manifest_bytes", size, f"{path}: has {size:,} bytes", ShardError)
            body = json.loads(path.read_text())
        except FileNotFoundError:
            if not Path(root).is_dir():
                raise ShardError(f"{root}: there is no such folder") from None
            hint = "plain WebDataset tars are first indexed: dslight data verify --index FOLDER"
            raise ShardError(f"{path}: missing. The folder holds no finished shards; {hint}") from None
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(body, dict) or body.get("version") != VERSION:
            raise ShardError(f"{path}: not a manifest of version {VERSION}")
        if body.pop("checksum", None) != _checksum(body):
            raise ShardError(f"{path}: its checksum does not fit, so it was edited or damaged")
        if not isinstance(body.get("shards"), list) or not isinstance(body.get("meta"), dict):
            raise ShardError(f"{path}: not a manifest of version {VERSION}")
        shards = tuple(ShardInfo.parse(shard, path) for shard in body["shards"])
        names = {str(PurePosixPath(shard.name)) for shard in shards}
        if len(names) < len(shards) or any(str(up) in names for name in names for up in PurePosixPath(name).parents):
            raise ShardError(f"{path}: names a shard twice, or as the folder of another")
        return cls(shards, body["meta"])


@dataclass(frozen=True)
class Member:
    """One file of a record inside a tar."""

    extension: str
    offset: int
    size: int
    hash: bytes


@dataclass(frozen=True)
class Record:
    """The files of one key."""

    key: str
    members: tuple[Member, ...]
    questions: int


@dataclass(frozen=True)
class Index:
    """Where every member of one or of many shards lies. ``R`` records, ``M`` members.

    Attributes:
        keys: bytes ``[R]``, UTF-8.
        first: int64 ``[R + 1]``; the members of record ``i`` are ``first[i] : first[i + 1]``.
        extensions: bytes ``[M]``, or uint8 ``[M]``, their numbers among ``names``: see :meth:`extension`.
        offsets, sizes: int64 ``[M]``, of the member's data within its tar.
        hashes: uint8 ``[M, 16]``, BLAKE2b-128 of the member's data.
        questions: int32 ``[R]``, questions of the record (0 for a training record).
        names: of a joined index, the extensions that there are.
    """

    keys: np.ndarray
    first: np.ndarray
    extensions: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    hashes: np.ndarray
    questions: np.ndarray
    names: tuple[bytes, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, row: int) -> str:
        """Key of a record."""
        return self.keys[row].decode()

    def extension(self, member: int) -> str:
        """What the name of a member ends in."""
        found = self.extensions[member]
        return (self.names[found] if self.names else found).decode()

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
            for name, value in self._arrays():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)
        return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Read what :meth:`to_bytes` wrote; no array is larger than its bytes.

        Raises:
            ShardError: it is no index, or one whose arrays do not fit each other.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                arrays: dict[str, Any] = {name: _array(archive, name) for name in _ARRAYS}
        except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, EOFError) as error:
            raise ShardError(f"is no index of a shard ({type(error).__name__}: {error})") from error
        index = cls(**arrays)
        index._check()
        return index

    def _check(self) -> None:
        records, members = len(self.keys), len(self.offsets)
        shapes = {"keys": (records,), "first": (records + 1,), "questions": (records,), "hashes": (members, 16)}
        for name, value in self._arrays():
            kinds = "S" if name in ("keys", "extensions") else "u" if name == "hashes" else "i"
            if value.dtype.kind not in kinds or value.shape != shapes.get(name, (members,)):
                raise ShardError(f"is no index of a shard: {name} is {value.dtype} {list(value.shape)}")
            if kinds == "i" and len(value) and value.min() < 0:
                raise ShardError(f"is no index of a shard: {name} has a number below 0")
        if self.first[0] or self.first[-1] != members or (np.diff(self.first) < 0).any():
            raise ShardError("is no index of a shard: its records are not one behind the other")
        if int(self.questions.sum(dtype=np.int64)) > int(self.sizes.sum(dtype=np.int64)):
            raise ShardError("is no index of a shard: it has more questions than bytes")
        try:
            for texts in (self.keys, self.extensions):
                if len(texts) and np.frombuffer(texts.tobytes(), np.uint8).max() > 0x7F:  # of ASCII there is no doubt
                    b"\n".join(texts.tolist()).decode()
        except UnicodeDecodeError as error:
            raise ShardError(f"is no index of a shard: {error}") from error

    @classmethod
    def build(cls, records: Sequence[Record]) -> Index:
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

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
        """Shape and type of each of its arrays."""
        return {name: (value.shape, value.dtype) for name, value in self._arrays()}

    def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        return ((name, getattr(self, name)) for name in _ARRAYS)

    @classmethod
    def concatenate(cls, parts: Sequence[Index]) -> tuple[Index, SharedMemory | None]:
        """One index over the records of all parts, in order, its numbers no wider than they need to be, and the memory
        that it lies in; ``None``: it lies in this process alone, as on systems that have no such memory."""
        arrays, columns = {}, {name: [getattr(part, name) for part in parts] for name in _ARRAYS}
        columns["extensions"], names = _numbered(columns["extensions"])
        for name, values in columns.items():
            shape = (sum(map(len, values)) - (len(parts) - 1 if name == "first" else 0), *values[0].shape[1:])
            arrays[name] = shape, _narrow(name, parts) or np.result_type(*values)
        memory = None
        if hasattr(os, "memfd_create"):
            cold = sum(SharedMemory.room(*arrays[name]) for name in _COLD)
            memory = SharedMemory(sum(SharedMemory.room(*array) for array in arrays.values()) - cold, cold=cold)
        joined = cls.within(memory, arrays, names)
        for name, values in columns.items():
            if name != "first":
                np.concatenate(values, out=getattr(joined, name), casting="unsafe")
        members = 0
        for part, record in zip(parts, np.cumsum([0, *map(len, parts)]), strict=False):
            np.add(part.first, members, out=joined.first[record : record + len(part.first)], casting="unsafe")
            members += int(part.first[-1])
        if memory is not None:
            memory.cool()
        return joined, memory

    @classmethod
    def within(
        cls,
        memory: SharedMemory | None,
        arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
        names: tuple[bytes, ...],
    ) -> Index:
        """The index of such :attr:`arrays` and names that lies in ``memory``, or an empty one of this process alone."""
        if memory is None:
            made = {name: np.empty(shape, dtype) for name, (shape, dtype) in arrays.items()}
        else:
            made = {name: memory.array(shape, dtype, name in _COLD) for name, (shape, dtype) in arrays.items()}
        return cls(**made, names=names)


_ARRAYS = tuple(name for name in Index.__dataclass_fields__ if name != "names")
_COLD = ("keys", "hashes")
"""Of a joined index, what is asked for in messages and by ``check="full"`` only, or a record at a time."""


def _numbered(parts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], tuple[bytes, ...]]:
    """The extensions of all parts by their numbers among those that there are, in a byte each; as they are, and
    no names, where there are more than 256."""
    names: dict[bytes, int] = {}
    numbered = []
    for part in parts:
        words = part.astype("S8").view(np.uint64) if part.dtype.itemsize <= 8 else part  # numbers are compared faster
        numbers, left = np.empty(len(part), np.uint8), np.ones(len(part), bool)
        while left.any():
            one = int(left.argmax())
            number = names.setdefault(bytes(part[one]), len(names))
            if number > np.iinfo(np.uint8).max:
                return list(parts), ()
            same = words == words[one]
            numbers[same] = number
            left &= ~same
        numbered.append(numbers)
    return numbered, tuple(names)


def _narrow(name: str, parts: Sequence[Index]) -> np.dtype[Any] | None:
    """The type in which all numbers of ``name`` fit, sums of an offset and a size too; ``None``: as they are."""
    if name == "first":
        most = sum(int(part.first[-1]) for part in parts)
    elif name in ("offsets", "sizes"):
        most = max((int(part.offsets.max()) + int(part.sizes.max()) for part in parts if len(part.sizes)), default=0)
    elif name == "questions":
        most = max((int(part.questions.max()) for part in parts if len(part)), default=0)
    else:
        return None
    kinds = (np.uint8, np.uint32, np.int64) if name == "questions" else (np.uint32, np.int64)
    return np.dtype(next(kind for kind in kinds if most <= np.iinfo(kind).max))


def index_name(tar: str) -> str:
    """File name of the index of a tar."""
    return tar.removesuffix(".tar") + ".idx.npz"


def load_index(root: Path, shard: ShardInfo) -> Index:
    """Read the index of a shard, which must be the one that the manifest names.

    Raises:
        ShardError: it is not; or it leads out of the shard, or names a member that is too large to be read.
    """
    path = place(root, shard.index_name)
    try:
        size = path.stat().st_size
        at_most("index_bytes", size, f"{path}: has {size:,} bytes", ShardError)
        data = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{path}: missing, though the manifest names its shard") from None
    if sha256(data) != shard.index_sha256:
        raise ShardError(f"{path}: is not the index that the manifest names; it is stale or damaged")
    try:
        index = Index.from_bytes(data)
    except ShardError as error:
        raise ShardError(f"{path}: {error}") from error
    if len(index) != shard.records:
        raise ShardError(f"{path}: has {len(index)} records, the manifest says {shard.records}")
    if len(index.sizes):
        if index.sizes.max() > shard.bytes or (index.offsets > shard.bytes - index.sizes).any():
            raise ShardError(f"{path}: has members behind the end of the shard")
        m = int(index.sizes.argmax())
        name, size = f"{index.key(index.row_of(m))}.{index.extension(m)}", int(index.sizes[m])
        at_most("member_bytes", size, f"{root / shard.name}: {name} has {size:,} bytes", ShardError)
    return index


def place(root: Path, name: str) -> Path:
    """The path of a shard or an index below ``root``.

    Raises:
        ShardError: the name, or a symbolic link, leads out of it; or there is a folder, or a pipe, which would be
            waited for.
    """
    try:
        path = below(root, name, f"{root / MANIFEST}: the name of a file")
    except UnsafeNameError as error:
        raise ShardError(str(error)) from error
    if not path.is_file() and path.exists():
        raise ShardError(f"{path}: is no file")
    return path


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of an index, which is as large as its bytes."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is packed, and may unpack to any size")
    file = io.BytesIO(archive.read(info))
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if fortran and len(shape) > 1:
        raise ValueError(f"{name} is laid out by columns")
    if dtype.hasobject or not dtype.itemsize:
        raise ValueError(f"{name} holds objects")
    return np.frombuffer(file.getbuffer(), dtype, prod(shape), file.tell()).reshape(shape)


def size_problem(root: Path, shard: ShardInfo) -> str:
    """What is wrong with a shard as far as its size tells; ``""`` if nothing."""
    path = place(root, shard.name)
    if not path.exists():
        return f"missing, with its {shard.records} records"
    size = path.stat().st_size
    return "" if size == shard.bytes else f"has {size} bytes, the manifest says {shard.bytes}; it was cut or replaced"


def padded(size: int) -> int:
    """``size`` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def member_hash(data: bytes) -> bytes:
    """BLAKE2b-128: as good as SHA-256 here, and faster."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _checksum(body: Mapping[str, Any]) -> str:
    return sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode())
