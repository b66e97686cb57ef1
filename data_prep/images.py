"""Where encoded images are read from by name: folders, zips and plain tars, read at random and never unpacked.

Decided here: a name is looked up as it is written in the entry, with its case. An archive is opened once, and what is
kept of it is 40 bytes per member (a hash of the name, where it lies, how long it is), so that a million members cost
40 MB and travel to a worker process as they are; the bytes are then read with ``pread``. Several places may stand
behind one prefix (``vg=VG_100K.zip vg=VG_100K_2.zip``), and are asked in turn.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from dslight.data.sample import BadSample
from dslight.data.shards import ShardError
from dslight.data.shards.elsewhere import Descriptor
from dslight.data.shards.foreign import Headers
from dslight.data.shards.format import member_hash
from dslight.limits import at_most, limit
from dslight.names import UnsafeNameError, below, checked

EXTENSIONS = ("jpg", "png", "gif", "jpeg", "webp", "JPG", "PNG")
"""Endings tried, in this order, where a file of another ending may stand for a missing one."""


class Place(ABC):
    """A folder or an archive of images.

    Attributes:
        path: of it.
    """

    path: Path

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of the image called ``name`` (packed, in a zip); ``None`` if there is none."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of an image that is there.

        Raises:
            BadSample: they cannot be read.
        """


class Folder(Place):
    """Images as files."""

    def __init__(self, root: Path) -> None:
        self.path = root

    def size(self, name: str) -> int | None:
        """See :meth:`Place.size`."""
        try:
            path = self._path(name)
            return path.stat().st_size if path.is_file() else None
        except OSError:  # a name too long for the file system
            return None

    def read(self, name: str) -> bytes:
        """See :meth:`Place.read`."""
        try:
            with self._path(name).open("rb") as file:
                _at_most(name, os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise BadSample(f"image {name!r}: {error.strerror}", "image-unreadable") from error

    def _path(self, name: str) -> Path:
        try:
            return below(self.path, name, "the name of an image")
        except UnsafeNameError as error:
            raise BadSample(str(error), "image-name") from error


class Archive(Place):
    """Members of one file, found by the hash of their names."""

    def __init__(self, path: Path, names: Iterable[str], spans: Sequence[tuple[int, int]]) -> None:
        self.path = path
        hashes = np.array([member_hash(_encoded(name.removeprefix("./"))) for name in names] or [b""], "S16")
        # an archive may hold a name twice; unpacking it leaves the last one
        self._hashes, last = np.unique(hashes[::-1], return_index=True)
        self._spans = np.array(spans or [(0, 0)], np.int64).reshape(len(hashes), -1)[::-1][last]
        self._file: tuple[int, Descriptor] | None = None  # (process, descriptor): one that was forked opens its own

    def size(self, name: str) -> int | None:
        """See :meth:`Place.size`."""
        span = self._span(name)
        return None if span is None else int(span[1])

    def read(self, name: str) -> bytes:
        """See :meth:`Place.read`."""
        span = self._span(name)
        if span is None:
            raise BadSample(f"image {name!r}: not in {self.path}", "image-missing")
        _at_most(name, int(span[1]))
        data = self._unpack(name, span)
        if data is None:
            raise BadSample(f"image {name!r}: damaged in {self.path}", "image-unreadable")
        return data

    @abstractmethod
    def _unpack(self, name: str, span: np.ndarray) -> bytes | None:
        """The bytes of a member; ``None`` if they are not what was packed."""

    def _span(self, name: str) -> np.ndarray | None:
        wanted = np.array(member_hash(_encoded(name)), "S16")
        at = int(np.searchsorted(self._hashes, wanted))
        return self._spans[at] if at < len(self._hashes) and self._hashes[at] == wanted else None

    def _pread(self, size: int, offset: int) -> bytes:
        if self._file is None or self._file[0] != os.getpid():
            self._file = (os.getpid(), Descriptor(self.path))
        try:
            return os.pread(self._file[1].number, size, offset)
        except OSError:  # no such place: a damaged directory of a zip
            return b""

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_file": None}


def _encoded(name: str) -> bytes:
    """A name that need not be UTF-8: tars of old systems have names in other codes, which come as half surrogates."""
    return name.encode("utf-8", "surrogatepass")


class Zip(Archive):
    """A ``.zip``, stored or deflated."""

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise SystemExit(f"{path}: not a zip that can be read ({error})") from error
        odd = next((m for m in members if m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)), None)
        if odd is not None or any(member.flag_bits & 1 for member in members):
            raise SystemExit(f"{path}: only stored or deflated members without a password can be read; unpack it")
        most = 1 << 62  # of a damaged directory
        spans = [(min(m.header_offset, most), min(m.compress_size, most), m.compress_type, m.CRC) for m in members]
        super().__init__(path, [member.filename for member in members], spans)  # pyright: ignore[reportArgumentType]

    def _unpack(self, name: str, span: np.ndarray) -> bytes | None:
        offset, size, method, crc = (int(value) for value in span)
        head = self._pread(30, offset)  # the local header, whose name and extra field have lengths of their own
        if len(head) < 30 or head[:4] != b"PK\3\4":
            return None
        data = self._pread(size, offset + 30 + sum(struct.unpack("<HH", head[26:])))
        if method == zipfile.ZIP_DEFLATED:
            most, unpacking = limit("member_bytes"), zlib.decompressobj(-15)
            try:
                data = unpacking.decompress(data, most + 1)
            except zlib.error:
                return None
            _at_most(name, len(data), "or more, unpacked")
            if not unpacking.eof:
                return None
        return data if zlib.crc32(data) == crc else None


class Tar(Archive):
    """A ``.tar`` that is not compressed."""

    def __init__(self, path: Path) -> None:
        try:
            with (
                path.open("rb") as file,
                tarfile.open(fileobj=cast(BinaryIO, headers := Headers(file, path)), mode="r:") as tar,
            ):
                members = [(one.name, one.offset_data, one.size) for one in headers.members(tar) if one.isfile()]
        except tarfile.ReadError as error:
            raise SystemExit(f"{path}: not a plain tar ({error}); a compressed one must be unpacked first") from error
        except ShardError as error:
            raise SystemExit(str(error)) from error
        super().__init__(path, [name for name, *_ in members], [(offset, size) for _, offset, size in members])

    def _unpack(self, name: str, span: np.ndarray) -> bytes | None:
        data = self._pread(int(span[1]), int(span[0]))
        return data if len(data) == span[1] else None


def _at_most(name: str, size: int, how: str = "") -> None:
    what = f"image {name!r}: has {size:,} bytes {how}".rstrip()
    at_most("member_bytes", size, what, partial(BadSample, reason="image-too-large"))


class Images:
    """All the places of a source.

    Args:
        places: (prefix, place); the prefix (``coco``) is taken off the names that begin with it. ``""`` takes all.
        any_ending: prefixes below which, where the named file is missing, one that differs in nothing but its ending
            is taken (LLaVA's OCR-VQA: the json says .jpg, the download may have written .gif or .png).
    """

    def __init__(self, places: Sequence[tuple[str, Place]], any_ending: Sequence[str] = ()) -> None:
        self.places, self.any_ending = list(places), tuple(f"{prefix.strip('/')}/" for prefix in any_ending)

    @classmethod
    def open(cls, specs: Sequence[str], any_ending: Sequence[str] = (), at: str = "--images") -> Images:
        """The places that ``PATH`` and ``PREFIX=PATH`` name; errors begin with ``at``.

        Raises:
            SystemExit: one is not there, or no archive that can be read at random.
        """
        return cls([_mount(spec, at) for spec in specs], any_ending)

    @property
    def paths(self) -> list[Path]:
        """The folders and archives."""
        return [place.path for _, place in self.places]

    def size(self, name: str) -> int:
        """Bytes of an image; 0 if there is none, or none that may be read."""
        try:
            found = self._find(name)
        except BadSample:
            return 0
        return 0 if found is None else found[0].size(found[1]) or 0

    def read(self, name: str) -> tuple[bytes, str]:
        """The bytes of an image, and its name: another one where ``any_ending`` took another file.

        Raises:
            BadSample: there is none, or the name leads out of the place.
        """
        try:
            path = checked(name, "the name of an image")
        except UnsafeNameError as error:
            raise BadSample(str(error), "image-name") from error
        found = self._find(name)
        taken = name
        if found is None and name.startswith(self.any_ending or ("\0",)):
            stem = name.removesuffix(path.suffix)
            for ending in EXTENSIONS:
                taken = f"{stem}.{ending}"
                if found := self._find(taken):
                    break
        if found is None:
            raise BadSample(f"image {name!r}: there is none", "image-missing")
        return found[0].read(found[1]), taken

    def _find(self, name: str) -> tuple[Place, str] | None:
        for prefix, place in self.places:
            inner = name.removeprefix(f"{prefix}/") if prefix else name
            if (not prefix or inner != name) and place.size(inner) is not None:
                return place, inner
        return None


def _mount(spec: str, at: str) -> tuple[str, Place]:
    prefix, _, path = spec.rpartition("=") if not Path(spec).exists() else ("", "", spec)
    place = Path(path)
    if place.is_dir():
        return prefix.strip("/"), Folder(place)
    if not place.is_file():
        raise SystemExit(f"{at}: {spec!r} names no folder, zip or tar (seen from {Path.cwd()})")
    return prefix.strip("/"), Zip(place) if zipfile.is_zipfile(place) else Tar(place)
