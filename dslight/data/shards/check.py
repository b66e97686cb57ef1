"""Naming what is wrong with shards: which one, which key, which bytes."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dslight.data.shards.elsewhere import AT, IN_PLACE, Elsewhere
from dslight.data.shards.format import (
    BLOCK,
    MANIFEST,
    Index,
    Manifest,
    ShardError,
    ShardInfo,
    load_index,
    member_hash,
    padded,
    place,
)
from dslight.files.digest import file_sha256


@dataclass(frozen=True)
class Problem:
    """One finding of :func:`verify`."""

    shard: str
    key: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.what) if part)


Each = Callable[[Callable[[ShardInfo], list[Problem]], Sequence[ShardInfo]], Iterable[list[Problem]]]
"""``map``, or one that calls in several processes and gives the results in order."""


def verify(root: str | Path, each: Each = map) -> Iterator[Problem]:
    """Read every byte of every shard and yield what is wrong with it, shard by shard and key by key.

    Args:
        root: the folder.
        each: looks at the shards.
    """
    root = Path(root)
    try:
        manifest = Manifest.load(root)
    except ShardError as error:
        yield Problem(MANIFEST, "", str(error))
        return
    try:
        if IN_PLACE in manifest.meta:
            Elsewhere(root, manifest)  # its files are those
    except ShardError as error:
        yield Problem("", "", str(error))
        return
    placed = replace(manifest, shards=()) if IN_PLACE in manifest.meta else None
    for found in each(partial(_problems, root, placed), manifest.shards):
        yield from found
    known = {shard.name for shard in manifest.shards}
    folders = {root, *((root / name).parent for name in known)}  # a mix has its sources' shards in theirs
    for path in sorted(path for folder in folders for end in ("*.tar", ".*.tmp") for path in folder.glob(end)):
        if (name := path.relative_to(root).as_posix()) not in known:
            yield Problem(name, "", "is not in the manifest, so no reader sees it")


def _problems(root: Path, placed: Manifest | None, shard: ShardInfo) -> list[Problem]:
    """Those of a shard, and of the pictures elsewhere of which it holds the places."""
    found = list(verify_shard(root, shard))
    if not found and placed is not None:
        found = list(_elsewhere_problems(root, shard, Elsewhere(root, placed, check=False)))
    return found


def verify_shard(root: Path, shard: ShardInfo) -> Iterator[Problem]:
    """The problems of one shard and its index."""
    try:
        path = place(root, shard.name)
    except ShardError as error:
        yield Problem(shard.name, "", str(error))
        return
    try:
        index = load_index(root, shard)
    except ShardError as error:
        yield Problem(shard.index_name, "", str(error))
        if path.exists() and file_sha256(path) != shard.sha256:
            yield Problem(shard.name, "", "differs from what was written; without its index the keys cannot be named")
        return
    yield from tar_problems(path, shard, index)


def tar_problems(path: Path, shard: ShardInfo, index: Index) -> Iterator[Problem]:
    """The problems of a tar with an intact index."""
    if not path.exists():
        yield Problem(shard.name, "", f"is missing, with its {shard.records} records")
        return
    size = path.stat().st_size
    if size == shard.bytes and file_sha256(path) == shard.sha256:
        return
    if size != shard.bytes:
        yield Problem(shard.name, "", f"has {size} bytes, was written with {shard.bytes}")
    named = False
    with path.open("rb") as file:
        for m in range(len(index.offsets)):
            what = _member_problem(file, int(index.offsets[m]), int(index.sizes[m]), index.hashes[m].tobytes())
            if what:
                named = True
                extension = index.extension(m)
                yield Problem(shard.name, index.key(index.row_of(m)), f"{extension} at byte {index.offsets[m]}: {what}")
    if not named:
        last = index.key(len(index) - 1) if len(index) else ""
        yield Problem(shard.name, last, "the end of the tar (after this last record) is not what was written")


def _elsewhere_problems(root: Path, shard: ShardInfo, elsewhere: Elsewhere) -> Iterator[Problem]:
    """The problems of pictures that lie in other files, of a shard that has none."""
    index = load_index(root, shard)
    with place(root, shard.name).open("rb") as file:
        for m in range(len(index.offsets)):
            extension = index.extension(m)
            file.seek(int(index.offsets[m]))
            try:
                if extension.endswith(f".{AT}"):
                    elsewhere.fill({extension: file.read(int(index.sizes[m]))}, None, full=True)
            except ValueError as error:
                yield Problem(shard.name, index.key(index.row_of(m)), str(error))


def _member_problem(file: BinaryIO, offset: int, size: int, expected: bytes) -> str:
    file.seek(offset - BLOCK)
    data = file.read(BLOCK + padded(size))
    if len(data) < BLOCK + size:
        return f"cut, {max(0, len(data) - BLOCK)} of {size} bytes are left"
    if member_hash(data[BLOCK : BLOCK + size]) != expected:
        return "its bytes were changed"
    try:
        header = tarfile.TarInfo.frombuf(data[:BLOCK], "utf-8", "strict")
    except (tarfile.HeaderError, UnicodeDecodeError) as error:
        return f"its tar header was changed ({error})"
    if header.size != size:
        return f"its tar header says {header.size} bytes, the index {size}"
    if data[BLOCK + size :].strip(b"\0") or len(data) < BLOCK + padded(size):
        return "the padding after it was changed or cut"
    return ""
