"""The pictures of tables by where they lie in the file, for training that reads them there.

Decided here: a picture is known by its bytes. Its place is that of a value of its column with the same hash, so that
the places need no counting of rows and missing values, and whatever is found is what the row holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from data_prep.entries import SourceError
from data_prep.pages import BLOCK, Page, pages, snappy_blocks
from data_prep.rows import Rows, Table, arrow
from dslight.data.shards.elsewhere import CODECS, Place, unpack
from dslight.data.shards.format import member_hash
from dslight.limits import at_most

_WHOLE = 1 << 22
"""Bytes of a page that may be unpacked for one picture."""
_OTHERWISE = "leave out --in-place, and the pictures are copied into shards"

Places = dict[bytes, Place]
"""Places by the hash of the picture; the number of the file is set by :class:`Finder`."""


class Finder:
    """Finds the pictures of some rows.

    Args:
        rows: where they are looked for.
        columns: of pictures.
        numbers: of the files, by their paths.
    """

    def __init__(self, rows: Rows, columns: tuple[str, ...], numbers: dict[str, int]) -> None:
        self._columns, self._numbers, self._found = columns, numbers, Places()
        self._groups = iter(_groups(rows))

    def __call__(self, picture: bytes) -> Place | None:
        """The place of a picture; ``None``: it is in none of the columns.

        Raises:
            SourceError: it lies where it cannot be read alone; says in which file, and why.
        """
        wanted = member_hash(picture)
        while wanted not in self._found:
            table, group = next(self._groups, (None, 0))
            if table is None:
                return None
            number = self._numbers[table.url]
            for name, place in _places(table, group, self._columns).items():
                self._found.setdefault(name, place._replace(file=number))
        return self._found[wanted]


def _groups(rows: Rows) -> Iterator[tuple[Table, int]]:
    """The row groups that rows lie in."""
    first = 0
    for table in rows.tables:
        for group, count in enumerate(_row_groups(table)):
            if first < rows.stop and first + count > rows.start:
                yield table, group
            first += count


@lru_cache(64)
def _row_groups(table: Table) -> tuple[int, ...]:
    """How many rows each row group of a file has; a file of arrow is one."""
    if table.kind != "parquet":
        return (table.rows,)
    metadata = arrow().parquet.ParquetFile(table.url).metadata
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(2)
def _places(table: Table, group: int, columns: tuple[str, ...]) -> Places:
    """The places of all pictures of a row group.

    Raises:
        SourceError: one of its columns is written in a way that is not known.
    """
    found: Places = {}
    try:
        with arrow().memory_map(table.url) as mapped:
            whole = mapped.read_buffer()
            of_file = (
                _of_parquet(whole, group, columns) if table.kind == "parquet" else _of_arrow(whole, table, columns)
            )
            for place in of_file:
                found.setdefault(place.hash, place)
    except (OSError, ValueError, arrow().ArrowException) as error:
        raise SourceError(f"{table.url}: its pictures cannot be read where they lie: {error}; {_OTHERWISE}") from error
    return found


def _of_parquet(whole: Any, group: int, columns: Sequence[str]) -> Iterator[Place]:
    pa = arrow()
    with ExitStack() as stack:
        file = pa.parquet.ParquetFile(stack.enter_context(pa.BufferReader(whole)))
        view, about = memoryview(whole).cast("B"), file.metadata.row_group(group)
        for number in range(about.num_columns):
            chunk, schema = about.column(number), file.schema.column(number)
            path = chunk.path_in_schema.split(".")
            if path[0] not in columns or chunk.physical_type != "BYTE_ARRAY" or path[-1] == "path":
                continue
            codec = "" if chunk.compression == "UNCOMPRESSED" else chunk.compression.lower()
            if codec not in CODECS:
                raise SourceError(f"column {path[0]} is packed by {codec}")
            starts = [chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset]
            start, levels = min(starts), (schema.max_repetition_level > 0) + (schema.max_definition_level > 0)
            for page in pages(view[start : start + chunk.total_compressed_size], start):
                yield from _of_page(view, page, codec if page.packed else "", levels if page.levels else 0)


def _of_page(view: memoryview, page: Page, codec: str, levels: int) -> Iterator[Place]:
    """The values of a page."""
    stored = view[page.offset : page.offset + page.stored]
    if not codec:
        for at, size in _plain(stored, levels):
            yield Place(0, 0, page.offset + at, size, size, 0, size, member_hash(bytes(stored[at : at + size])))
        return
    values = _Packed(stored, codec, page.unpacked)
    for at, size in _plain(values, levels):
        first, last = values.blocks(at, max(size, 1))
        begin, end, unpacked = values.span(first, last)
        if unpacked > max(_WHOLE, 4 * size):
            what = f"a picture lies in {unpacked:,} bytes that are packed by {codec} as one"
            raise SourceError(f"{what}, all of which would be unpacked for it")
        start, skip = page.offset + begin, at - first * BLOCK
        name = member_hash(values[at : at + size])
        yield Place(0, CODECS.index(codec), start, end - begin, unpacked, skip, size, name)


class _Packed:
    """A page that is packed, of which some blocks at a time are unpacked."""

    def __init__(self, stored: memoryview, codec: str, size: int) -> None:
        self._stored, self._codec, self._size = stored, codec, size
        self._starts = snappy_blocks(stored) if codec == "snappy" else [0]
        self._last: tuple[tuple[int, int], bytes] = ((-1, -1), b"")

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, cut: slice) -> bytes:
        which = self.blocks(cut.start, max(cut.stop - cut.start, 1))
        if self._last[0] != which:
            begin, end, unpacked = self.span(*which)
            at_most("file_bytes", unpacked, f"a page of {unpacked:,} bytes", SourceError)
            self._last = which, unpack(bytes(self._stored[begin:end]), self._codec, unpacked)
        begin = which[0] * BLOCK
        return self._last[1][cut.start - begin : cut.stop - begin]

    def blocks(self, at: int, size: int) -> tuple[int, int]:
        """The first and the last block that bytes lie in."""
        return (at // BLOCK, (at + size - 1) // BLOCK) if len(self._starts) > 1 else (0, 0)

    def span(self, first: int, last: int) -> tuple[int, int, int]:
        """Where blocks begin and end, packed, and how many bytes they are unpacked."""
        if last + 1 < len(self._starts):
            return self._starts[first], self._starts[last + 1], (last + 1 - first) * BLOCK
        return self._starts[first], len(self._stored), self._size - first * BLOCK


def _plain(values: memoryview | _Packed, levels: int) -> Iterator[tuple[int, int]]:
    """Where the values of a page lie in it, and their sizes, behind so many lists of levels."""
    at = 0
    for _ in range(levels):
        at += 4 + int.from_bytes(values[at : at + 4], "little")
    while at + 4 <= len(values):
        size = int.from_bytes(values[at : at + 4], "little")
        if at + 4 + size > len(values):
            raise SourceError("a value ends behind its page")
        yield at + 4, size
        at += 4 + size


def _of_arrow(whole: Any, table: Table, columns: Sequence[str]) -> Iterator[Place]:
    ipc, view = arrow().ipc, memoryview(whole).cast("B")
    reader = ipc.open_file(whole) if table.kind == "arrow" else ipc.open_stream(whole)
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if table.kind == "arrow" else reader
    for batch in batches:
        for column in columns:
            for array in _binary(batch.column(column)):
                wide = "8" if str(array.type).startswith("large") else "4"
                _, ends, data = array.buffers()
                if data is None:
                    continue
                begin = data.address - whole.address
                if not 0 <= begin <= len(view) - data.size:
                    raise SourceError(f"column {column} is packed")
                offsets = np.frombuffer(ends, f"<i{wide}")[array.offset : array.offset + len(array) + 1].tolist()
                for first, last in pairwise(offsets):
                    at, size = begin + first, last - first
                    yield Place(0, 0, at, size, size, 0, size, member_hash(bytes(view[at : at + size])))


def _binary(array: Any) -> Iterator[Any]:
    """The arrays of bytes within an array: of structs their ``bytes``, of lists those of their items."""
    types = arrow().types
    if types.is_struct(array.type):
        yield from _binary(array.field("bytes"))
    elif types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        yield from _binary(array.values)
    elif types.is_binary(array.type) or types.is_large_binary(array.type):
        yield array
    else:
        raise SourceError(f"pictures are stored as {array.type}")
