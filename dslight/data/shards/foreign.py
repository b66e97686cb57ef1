"""Plain WebDataset tars of other tools (img2dataset, OpenCLIP), indexed where they lie."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from dslight.data.shards.format import (
    BLOCK,
    Index,
    Manifest,
    Member,
    Record,
    ShardError,
    ShardInfo,
    member_hash,
    padded,
)
from dslight.data.shards.writer import image_extension
from dslight.files.atomic import write_atomically
from dslight.files.digest import file_sha256, sha256
from dslight.files.typed import read_json_if_there
from dslight.limits import LIMITS, at_most, limit, setting

_CHUNK = 1 << 20


class Headers:
    """A file of which tar headers are read, and no more at once than a header may have: what tells how a member is
    called, or where its holes are, may itself be of any size. They are read forwards: the size of a member may be a
    number below zero, which would lead back to its own header, for ever.

    Raises:
        ShardError: by :meth:`read` and :meth:`seek`.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path, self._file, self.tell = path, file, file.tell
        self._reached, self._end = 0, os.fstat(file.fileno()).st_size

    def seek(self, place: int) -> int:
        """As of a file."""
        if place < self._reached:
            raise ShardError(f"{self.path}: damaged after {self._reached:,} bytes: a member ends before it begins")
        return self._file.seek(min(place, self._end))  # no system seeks to any number

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        most = max(limit("header_bytes"), tarfile.RECORDSIZE)
        if not 0 <= size <= most:
            raise ShardError(
                f"{self.path}: has a header of {size:,} bytes; at most {most:,} ({setting('header_bytes')}: "
                f"{LIMITS['header_bytes'].bounds})"
            )
        data = self._file.read(size)
        self._reached = self._file.tell()
        return data

    def members(self, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
        """What such a tar holds."""
        for member in tar:
            if member.size < 0:
                raise ShardError(f"{self.path}: {member.name}: a member of {member.size:,} bytes")
            yield member


IMAGE_ENDING = re.compile(r"jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|avif|heic|jp2|jxl|p[bgnp]m")
"""The last part of the extension of a member that is an image."""


class _Indexed(NamedTuple):
    """What was found in one tar."""

    info: ShardInfo
    index: bytes


Map = Callable[[Callable[[Path], _Indexed], Sequence[Path]], Iterable[_Indexed]]
"""``map``, or one that calls in several processes and gives the results in order (``ProcessPoolExecutor.map``)."""


def index_tars(
    root: str | Path,
    meta: dict[str, Any] | None = None,
    each: Map = map,
    leave_out: Collection[str] = (),
    take: Collection[str] = (),
) -> Manifest:
    """Index plain WebDataset tars where they lie (img2dataset's, OpenCLIP's): an ``.idx.npz`` beside each, and the
    manifest.

    Reads every byte, tar by tar; ``each`` may do so with several at once, to the same result. A record is, as
    WebDataset says, the run of members whose names agree up to the first dot of the file name; files whose names begin
    with a dot (macOS writes ``._a.jpg``) are passed over, and so are extensions in ``leave_out``. An image of another
    name (``a.bin``) gets the ending of its bytes in the index; what is called a mask (``a.seg.png``) is a picture of
    its record if its extension is in ``take``. Nothing else is skipped: a cut tar, a repeated key, members of one key
    that lie apart or a count that differs from img2dataset's ``_stats.json`` is an error.

    Raises:
        ShardError: naming tar and key.
    """
    root = Path(root)
    paths = sorted(root.glob("*.tar"))
    if not paths:
        raise ShardError(f"{root}: holds no .tar file")
    seen: set[bytes] = set()
    shards = []
    for path, found in zip(
        paths, each(partial(_index_tar, leave_out=frozenset(leave_out), take=frozenset(take)), paths), strict=True
    ):
        for key in Index.from_bytes(found.index).keys.tolist():
            if key in seen:
                name = key.decode()
                raise ShardError(f"{path}: {name}: the key occurs twice, and WebDataset would merge or drop one")
            seen.add(key)
        write_atomically(root / found.info.index_name, found.index)
        shards.append(found.info)
    manifest = Manifest(tuple(shards), {"indexed_in_place": True, **(meta or {})})
    manifest.save(root)
    return manifest


def _index_tar(path: Path, leave_out: Collection[str], take: Collection[str]) -> _Indexed:
    records = _scan_tar(path, leave_out, take)
    stats = path.with_name(f"{path.stem}_stats.json")
    said = read_json_if_there(stats, dict[str, Any]) or {}
    if said.get("successes", len(records)) != len(records):
        raise ShardError(f"{path}: has {len(records)} records, {stats.name} says another number; the tar was cut")
    index = Index.build(records)
    data = index.to_bytes()
    info = ShardInfo(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        records=len(index),
        questions=int(index.questions.sum()),
        index_sha256=sha256(data),
    )
    return _Indexed(info, data)


def _scan_tar(path: Path, leave_out: Collection[str], take: Collection[str]) -> list[Record]:
    records: list[Record] = []
    before: dict[str, set[str]] = {}  # the extensions of earlier keys, as they stand in the tar
    for key, members in tar_records(path, leave_out):
        new = [extension for extension in members if key in before and extension not in before[key]]
        if new:
            what = f"its members do not lie together ({key.rpartition('/')[2]}.{new[0]} comes after other keys)"
            raise ShardError(
                f"{path}: {key}: {what}, so WebDataset would take them for several records; pack it again with tar "
                "--sort=name"
            )
        before.setdefault(key, set()).update(members)
        found = [
            Member(known_extension(extension, data, take), offset, len(data), member_hash(data))
            for extension, (offset, data) in members.items()
        ]
        names = [member.extension for member in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ShardError(f"{path}: {key}: two of its members would be called .{twice}, as their bytes say")
        questions = _count_questions(members["json"].data) if "json" in members else 0
        records.append(Record(key, tuple(found), questions))
    return records


class Content(NamedTuple):
    """What a member of a tar holds, and where."""

    offset: int
    data: bytes


def tar_records(path: Path, leave_out: Collection[str] = ()) -> Iterator[tuple[str, dict[str, Content]]]:
    """The keys of a tar of any tool, in their order, and the members of each by extension (in lower case); see
    :func:`index_tars`.

    Raises:
        ShardError: the tar is cut or damaged, or has a member twice; at its end if not before.
    """
    key, members = "", dict[str, Content]()
    end = 0
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=cast(BinaryIO, headers := Headers(file, path)), mode="r:") as tar,
        ):
            whole = os.fstat(file.fileno()).st_size
            for header in headers.members(tar):
                end = header.offset_data + padded(header.size)
                # a name that is not UTF-8 comes with half surrogates, which nothing can print
                whole_name = header.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                folder, _, name = whole_name.rpartition("/")
                stem, _, extension = name.partition(".")
                extension = extension.lower()
                if not header.isfile() or not stem or extension in leave_out:
                    continue
                full = f"{folder}/{stem}" if folder else stem
                if members and full != key:
                    yield key, members
                    members = {}
                if extension in members:
                    raise ShardError(f"{path}: {full}: has .{extension} twice; two records of one key would be merged")
                if header.offset_data + header.size > whole:
                    raise ShardError(f"{path}: {header.name}: the tar was cut inside this member")
                what = f"{path}: {header.name}: has {header.size:,} bytes"
                at_most("member_bytes", header.size, what, ShardError)
                file.seek(header.offset_data)
                key, members[extension] = full, Content(header.offset_data, file.read(header.size))
            file.seek(end)
            rest = 0
            while block := file.read(_CHUNK):
                rest += -whole if block.strip(b"\0") else len(block)
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path}: after {key or 'the start'}: {error}") from error
    if rest < 2 * BLOCK:
        raise ShardError(f"{path}: does not end as a tar after {key or 'the start'}; it was cut or damaged there")
    if members:
        yield key, members


def known_extension(extension: str, data: bytes, take: Collection[str] = ()) -> str:
    """An extension by which an image is known as one; see :func:`index_tars`."""
    if extension in take:
        return f"taken.{extension}"
    last = extension.rpartition(".")[2]
    if last in ("txt", "json") or IMAGE_ENDING.fullmatch(last) or data.startswith(b"BM"):  # BM: texts begin so too
        return extension
    try:
        return f"{extension}.{image_extension(data)}".lstrip(".")
    except ValueError:
        return extension


def _count_questions(data: bytes) -> int:
    try:
        record = json.loads(data) if len(data) <= limit("json_bytes") else None
    except (ValueError, RecursionError):
        return 0
    questions = record.get("questions") if isinstance(record, dict) else None
    return len(questions) if isinstance(questions, list) else 0
