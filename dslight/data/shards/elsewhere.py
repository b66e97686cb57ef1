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
_ENDING = f".{AT}"
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

    def fill(self, members: dict[str, bytes], head: int | None, full: bool) -> dict[str, bytes]:
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
            if not extension.endswith(_ENDING):
                filled[extension] = data
                continue
            name = extension[: -len(_ENDING)]
            try:
                filled[name] = self._read(data, head, full)
            except (ValueError, OSError, OverflowError) as error:
                raise ValueError(f"{name}: {error}") from error
        return filled

    def _read(self, data: bytes, head: int | None, full: bool) -> bytes:
        # in every record of a training run, behind a picture that has emptied the caches: no step more than needed
        if len(data) != _LAYOUT.size:
            raise ValueError(f"a place has {_LAYOUT.size} bytes, this one {len(data)}")
        file, codec, offset, stored, unpacked, skip, size, expected = _LAYOUT.unpack(data)
        if file >= len(self.paths) or codec >= len(CODECS) or skip + size > (unpacked if codec else stored):
            raise ValueError(f"is no place in {len(self.paths)} files: {Place(*_LAYOUT.unpack(data))}")
        if stored > self._most or unpacked > self._most:
            what = f"has {stored:,} bytes, {unpacked:,} bytes unpacked"
            at_most("member_bytes", max(stored, unpacked), what)
        wanted = size if head is None or head > size else head
        if not codec:
            offset, stored = offset + skip, wanted
        found = os.pread(self._descriptor(file).number, stored, offset)
        if len(found) != stored:
            raise ValueError(f"{self.paths[file]}: {len(found)} of {stored} bytes are left at byte {offset}")
        if codec and wanted:
            found = unpack(found, CODECS[codec], unpacked)[skip : skip + wanted]
        if full and wanted == size and member_hash(found) != expected:
            raise ValueError(f"{self.paths[file]}: its bytes at {offset} were changed")
        return found if wanted else b""


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
