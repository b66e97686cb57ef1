"""Reading any record of a folder of shards at random."""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dslight.data.shards.elsewhere import AT, IN_PLACE, Descriptor, Elsewhere
from dslight.data.shards.format import (
    BLOCK,
    MANIFEST,
    Index,
    Manifest,
    ShardError,
    ShardInfo,
    load_index,
    member_hash,
    place,
    size_problem,
)
from dslight.data.shards.memory import SharedMemory, give_back, is_starting
from dslight.data.shards.remote import Remote

Check = Literal["size", "full"]
"""How a read is checked: ``size``, every byte is there; ``full``, and has the hash it was written with."""


_TEXT, _PLACED = ("json", "txt"), f".{AT}"
_SMALL = 1 << 16


class ShardReader:
    """Random access to the records of a folder of shards.

    A process that is started with one shares its index; otherwise only the folder and the check travel, and the index
    is read again.

    Args:
        root: folder with a manifest.
        check: ``size`` finds missing bytes, ``full`` hashes every member that is read and so also finds changed ones.
        remote: where the folder is only a cache of; each shard is then pulled when it is first read.
        manifest: of some of the shards of the folder, which are then all that there is; default: the folder's.

    Raises:
        ShardError: the manifest, an index or a shard is missing or has another size than the manifest says.
    """

    def __init__(
        self, root: str | Path, check: Check = "size", remote: Remote | None = None, manifest: Manifest | None = None
    ) -> None:
        self.root, self.remote = Path(root), remote
        self.check: Check = check
        self._given, self.manifest = manifest, manifest or Manifest.load(root)
        if not self.manifest.shards:
            raise ShardError(f"{self.root / MANIFEST}: names no shard, so there is nothing to read")
        self._open_index(*self._joined())
        self._elsewhere = self._in_place()
        if len(self.manifest.shards) > 1:
            give_back()

    def _joined(self) -> tuple[Index, SharedMemory | None]:
        """The index of all shards, which are looked at as far as that costs nothing."""
        parts = [load_index(self.root, shard) for shard in self.manifest.shards]
        for shard, part in zip(self.manifest.shards, parts, strict=True) if self.remote is None else ():
            problem = size_problem(self.root, shard) or self._start_problem(shard, part)
            if problem:
                raise ShardError(f"{self.root / shard.name}: {problem}")
        return Index.concatenate(parts)

    def _in_place(self, check: bool = True) -> Elsewhere | None:
        """Where the pictures are, if they are not in the shards."""
        if IN_PLACE not in self.manifest.meta:
            return None
        if self.remote is not None:
            what = "its pictures lie in files of the machine that converted them"
            raise ShardError(f"{self.remote.url}: {what}; convert them without --in-place")
        return Elsewhere(self.root, self.manifest, check)

    def _open_index(self, index: Index, memory: SharedMemory | None) -> None:
        self.index, self._memory, remote = index, memory, self.remote
        self.starts = np.cumsum([0, *(shard.records for shard in self.manifest.shards)])
        self._starts: list[int] = self.starts.tolist()  # one number is found faster in a list
        self._descriptor = lru_cache(maxsize=64 if remote is None or remote.cache.limit is None else 4)(self._open)

    def _start_problem(self, shard: ShardInfo, index: Index) -> str:
        """What is wrong with a tar as far as its first header tells. Tars are padded, so two that were swapped often
        agree in size."""
        if not len(index) or self.manifest.meta.get("indexed_in_place"):  # others may write names in several headers
            return ""
        with place(self.root, shard.name).open("rb") as file:
            file.seek(int(index.offsets[0]) - BLOCK)
            header = file.read(BLOCK)
        expected = f"{index.key(0)}.{index.extension(0)}"
        try:
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except tarfile.HeaderError as error:
            return f"its first header, of {expected}, was changed ({error})"
        return "" if name == expected else f"begins with {name}, its index with {expected}; shards were exchanged"

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._memory is not None and is_starting():
            return _shared, (
                self.root,
                self.check,
                self.remote,
                self.manifest,
                self._memory,
                self.index.arrays,
                self.index.names,
            )
        return ShardReader, (self.root, self.check, self.remote, self._given)

    def locate(self, row: int) -> tuple[ShardInfo, str]:
        """The shard and the key of a record, for messages."""
        return self.manifest.shards[bisect_right(self._starts, row) - 1], self.index.key(row)

    def row(self, shard: int, row: int) -> int:
        """The number of record ``row`` of shard ``shard`` in the whole folder."""
        return int(self.starts[shard]) + row

    def _open(self, number: int) -> Descriptor:
        shard = self.manifest.shards[number]
        if self.remote is None:
            return Descriptor(place(self.root, shard.name))
        while True:
            try:
                return Descriptor(self.remote.shard(shard))
            except FileNotFoundError:  # another process made room before we had it open
                continue

    def _small_record(self, descriptor: Descriptor, row: int) -> tuple[int, bytes | None]:
        """Where a record without pictures begins, and all of it at once; ``None``: it is large."""
        members = self.index.members(row)
        if not members:
            return 0, None
        first, last = members[0], members[-1]
        begin = int(self.index.offsets[first])
        size = int(self.index.offsets[last]) + int(self.index.sizes[last]) - begin
        return begin, os.pread(descriptor.number, size, begin) if 0 <= size <= _SMALL else None

    def read(self, row: int, head: int | None = None) -> dict[str, bytes]:
        """The members of a record by extension; with ``head``, only as many bytes of each that is no text, unchecked.

        Raises:
            ShardError: naming shard, key, member and offset, if bytes are missing or (``check="full"``) changed.
        """
        number = bisect_right(self._starts, row) - 1
        shard, descriptor, members = self.manifest.shards[number], self._descriptor(number), {}
        begin, block = self._small_record(descriptor, row) if self._elsewhere is not None else (0, None)
        for m in self.index.members(row):
            extension = self.index.extension(m)
            offset, size = int(self.index.offsets[m]), int(self.index.sizes[m])
            whole = head is None or extension in _TEXT or (self._elsewhere and extension.endswith(_PLACED))
            size = size if head is None or whole else min(size, head)
            if block is None:
                data = os.pread(descriptor.number, size, offset)
            else:
                data = block[offset - begin : offset - begin + size]
            if len(data) != size:
                problem = f"{len(data)} of {size} bytes are left; the shard was cut"
            elif self.check == "full" and whole and member_hash(data) != (expected := self.index.hashes[m].tobytes()):
                problem = f"has hash {member_hash(data).hex()}, was written with {expected.hex()}"
            else:
                members[extension] = data
                continue
            name = f"{self.index.key(row)}.{extension}"
            raise ShardError(f"{self.root / shard.name}: {name} at byte {offset}: {problem}")
        if self._elsewhere is None:
            return members
        try:
            return self._elsewhere.fill(members, head, self.check == "full")
        except ValueError as error:
            raise ShardError(f"{self.root / shard.name}: {self.index.key(row)}.{error}") from error


def name_of_record(root: Path, row: int) -> str:
    """What record ``row`` of a folder is called in messages, where no reader of it is at hand."""
    try:
        manifest = Manifest.load(root)
        starts = [0, *accumulate(shard.records for shard in manifest.shards)]
        number = bisect_right(starts, row) - 1
        shard = manifest.shards[number]
        return f"{root / shard.name}: {load_index(root, shard).key(row - starts[number])}"
    except (ShardError, OSError, IndexError):
        return f"{root}: record {row}"


def _shared(
    root: Path,
    check: Check,
    remote: Remote | None,
    manifest: Manifest,
    memory: SharedMemory,
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]],
    names: tuple[bytes, ...],
) -> ShardReader:
    """A reader as it was in the process that started this one."""
    reader = ShardReader.__new__(ShardReader)
    reader.root, reader.check, reader.remote, reader._given, reader.manifest = root, check, remote, None, manifest
    reader._open_index(Index.within(memory, arrays, names), memory)
    reader._elsewhere = reader._in_place(check=False)
    return reader
