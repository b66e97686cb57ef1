"""Pictures that stay in the parquet and arrow files that they came in, and are read there.

A folder of shards may hold the text of its records alone. In place of a picture ``jpg`` stands a member ``jpg.at`` of
64 bytes, which says where its bytes lie: in which of the files that the manifest lists under
``in_place``, from where to where, and how they are packed. So text is read as from any shard, order, lengths and resume
are those of any shards, and a picture costs one ``pread``.

Decided here, and why:

* A file is opened only if its size and the hash of its end are those of the manifest: another version of it would give
  other pictures, and a manifest that somebody hands over cannot ask for a file that its author does not know.
* Of a page that is packed by snappy no more is read than the 64 KiB blocks that the picture touches: they are packed
  one by one, whatever the size of the page.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from dslight.data.shards.format import MANIFEST, Manifest, ShardError, member_hash
from dslight.limits import at_most, limit

IN_PLACE = "in_place"
"""In the manifest: the files that pictures are read from."""
AT = "at"
"""Ends the extension of a member that says where a picture lies."""
CODECS = ("", "snappy", "gzip", "brotli", "lz4_raw", "zstd")
"""How bytes are packed, by number; the first: they are not."""
_TAIL = 1 << 16
_LAYOUT = struct.Struct("<IIQQQQQ16s")


class Place(NamedTuple):
    """Where a picture lies.

    Attributes:
        file: its number in the manifest.
        codec: number in :data:`CODECS`.
        offset, stored: of the packed bytes in the file, and how many.
        unpacked: bytes that they unpack to.
        skip, size: of the picture among those.
        hash: of the picture.
    """

    file: int
    codec: int
    offset: int
    stored: int
    unpacked: int
    skip: int
    size: int
    hash: bytes

    def to_bytes(self) -> bytes:
        """The content of a member."""
        return _LAYOUT.pack(*self)

    @classmethod
    def parse(cls, data: bytes, files: int, most: int) -> Place:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            ValueError: it is no place in one of so many files, or more than ``most`` bytes would be read.
        """
        if len(data) != _LAYOUT.size:
            raise ValueError(f"a place has {_LAYOUT.size} bytes, this one {len(data)}")
        place = cls(*_LAYOUT.unpack(data))
        if place.file >= files or place.codec >= len(CODECS):
            raise ValueError(f"file {place.file} of {files}, packed by method {place.codec} of {len(CODECS)}")
        if place.skip + place.size > (place.unpacked if place.codec else place.stored):
            raise ValueError("the picture ends behind the bytes that it is among")
        if place.stored > most or place.unpacked > most:
            what = f"has {place.stored:,} bytes, {place.unpacked:,} bytes unpacked"
            at_most("member_bytes", max(place.stored, place.unpacked), what)
        return place


def end_sha256(file: Any) -> tuple[int, str]:
    """The size of an open file, and the hash of that and its end: hashing 400 GB would take longer than reading."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    return size, hashlib.sha256(f"{size} ".encode() + file.read(_TAIL)).hexdigest()


class Elsewhere:
    """The files that the pictures of a folder of shards lie in.

    Args:
        root: the folder.
        manifest: of the folder.
        check: whether the files are looked at; not, where this was done already.

    Raises:
        ShardError: one is missing, or another than the manifest says.
    """

    def __init__(self, root: Path, manifest: Manifest, check: bool = True) -> None:
        self.root = root
        listed = manifest.meta[IN_PLACE]
        if not isinstance(listed, list) or not all(map(_is_listed, listed)):
            raise ShardError(f"{root / MANIFEST}: {IN_PLACE} is no list of files with their bytes and end_sha256")
        self.paths = [root / entry["file"] for entry in listed]
        for path, entry in zip(self.paths, listed if check else (), strict=check):
            if not path.is_file():
                raise ShardError(f"{path}: missing; the pictures of {root} lie in it")
            with path.open("rb") as file:
                found = end_sha256(file)
            if found != (entry["bytes"], entry["end_sha256"]):
                raise ShardError(f"{path}: is not the file that {root} was made of; convert it again")
        self._most = limit("member_bytes")
        self._descriptor = lru_cache(maxsize=64)(self._open)

    def _open(self, number: int) -> Descriptor:
        return Descriptor(self.paths[number])

    def fill(self, members: Mapping[str, bytes], head: int | None, full: bool) -> dict[str, bytes]:
        """Members of a record with the pictures in the place of where they lie.

        Args:
            members: by extension.
            head: how many bytes of each are wanted; ``None``: all.
            full: whether the hash of a whole picture is compared.

        Raises:
            ValueError: beginning with the extension of what cannot be read.
        """
        filled = {}
        for extension, data in members.items():
            name, dot, last = extension.rpartition(".")
            if not dot or last != AT:
                filled[extension] = data
                continue
            try:
                filled[name] = self._read(Place.parse(data, len(self.paths), self._most), head, full)
            except (ValueError, OSError) as error:
                raise ValueError(f"{name}: {error}") from error
        return filled

    def _read(self, place: Place, head: int | None, full: bool) -> bytes:
        size = place.size if head is None else min(place.size, head)
        if not size:
            return b""
        start, stored = place.offset, place.stored
        if not place.codec:
            start, stored = start + place.skip, size
        data = os.pread(self._descriptor(place.file).number, stored, start)
        if len(data) != stored:
            raise ValueError(f"{self.paths[place.file]}: {len(data)} of {stored} bytes are left at byte {start}")
        if place.codec:
            data = unpack(data, CODECS[place.codec], place.unpacked)[place.skip : place.skip + size]
        if len(data) != size or (full and size == place.size and member_hash(data) != place.hash):
            raise ValueError(f"{self.paths[place.file]}: its bytes at {start} were changed")
        return data


def _is_listed(entry: Any) -> bool:
    names = {"file": str, "bytes": int, "end_sha256": str}
    return isinstance(entry, dict) and all(type(entry.get(name)) is kind for name, kind in names.items())


def unpack(data: bytes, codec: str, size: int) -> bytes:
    """Bytes as they were before they were packed by one of :data:`CODECS`; of snappy, without the length in front.

    Raises:
        ValueError: they do not unpack to ``size`` bytes.
    """
    import pyarrow

    if codec == "snappy":
        data = varint(size) + data
    try:
        return pyarrow.decompress(data, decompressed_size=size, codec=codec, asbytes=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"does not unpack ({error})") from error


def varint(number: int) -> bytes:
    """A number as snappy and thrift write it: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


class Descriptor:
    """An open file that closes itself when nobody has it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)
