"""The rows of parquet and arrow files, read where they lie (a path, or a URL that fsspec opens) a few at a time.

Decided here:

* A worker reads the rows of its shard itself, and of a row group no more than the pages that it is at, so that memory
  depends neither on the size of a file nor on that of its row groups (some have 2 GB).
* A process goes on where it stopped in a file. There is no way into the middle of a row group, so that each shard of a
  large one would be read from the beginning of it otherwise; as it is, a process unpacks a row group once.
* What a file holds is known from its end: a hash of that tells one download from another, where hashing 400 GB would
  take longer than reading.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_prep.entries import RawEntry, SourceError
from dslight.data.shards.elsewhere import end_sha256
from dslight.limits import at_most

_ROWS = 16  # made into Python objects at once
_BUFFER = 1 << 20
_OPEN = 4  # files of a process
_KEPT = 1 << 28  # bytes of rows that are asked for one by one
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "!=": lambda a, b: a != b,
    "==": lambda a, b: a == b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


def arrow() -> Any:
    """pyarrow.

    Raises:
        SourceError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise SourceError("parquet and arrow files need pyarrow: pip install 'dslight[parquet]'") from None
    return pyarrow


@dataclass(frozen=True)
class Condition:
    """Which rows are taken: those whose ``column`` is to ``value`` as ``operator`` says; an empty one is not.

    Raises:
        SourceError: by :meth:`check` and in a call, where column and value cannot be compared.
    """

    column: str
    operator: str
    value: Any

    def check(self, kind: Any) -> None:
        """Refuse a column of a type that ``value`` is never equal to, or greater than: nothing would be taken."""
        column, value = _kind_of_column(kind), _kind_of_value(self.value)
        if column != value and column != "anything" and (self.value is not None or self.operator != "!="):
            hint = f"; a text is written with quotes: {self.column}{self.operator}'{self.value}'"
            raise SourceError(
                f"--where: {self.column} holds {column} ({kind}), which cannot be compared with {self.value!r}, {value}"
                + (hint if column == "texts" and value == "numbers" else "")
            )

    def __call__(self, found: Any) -> bool:
        """Whether a value of the column fits."""
        try:
            return found is not None and _OPERATORS[self.operator](found, self.value)
        except TypeError:
            raise SourceError(
                f"--where: {self.column} holds {str(found)[:40]!r}, which cannot be compared with {self.value!r}"
            ) from None


def _kind_of_column(kind: Any) -> str:
    types = arrow().types
    if types.is_dictionary(kind):
        return _kind_of_column(kind.value_type)
    for name, tests in (
        ("texts", (types.is_string, types.is_large_string, types.is_string_view)),
        ("numbers", (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean)),
        ("lists", (types.is_list, types.is_large_list, types.is_fixed_size_list)),
        ("structs", (types.is_struct, types.is_map)),
        ("anything", (types.is_null,)),
    ):
        if any(test(kind) for test in tests):
            return name
    return "what is no text or number"


def _kind_of_value(value: Any) -> str:
    kinds = {str: "texts", bool: "numbers", int: "numbers", float: "numbers", list: "lists", dict: "structs"}
    return kinds.get(type(value), "nothing")


@dataclass(frozen=True)
class Table:
    """One file.

    Attributes:
        url: a path, or what fsspec opens.
        kind: ``parquet``, ``arrow`` (a file with an index) or ``stream`` (what ``datasets`` caches and saves).
        rows, bytes: how many.
        digest: of its end.
        schema: its columns, of pyarrow.
    """

    url: str
    kind: str
    rows: int
    bytes: int
    digest: str
    schema: Any = field(repr=False, compare=False)

    @classmethod
    def open(cls, url: str) -> Table:
        """Look at a file.

        Raises:
            SourceError: it is not there, or neither parquet nor arrow.
        """
        pa = arrow()
        with _named(url), _opened(url) as file:
            size, digest = end_sha256(file)
            file.seek(0)
            start = file.read(8)
            file.seek(0)
            if start.startswith(b"PAR1"):
                parquet = pa.parquet.ParquetFile(file)
                kind, rows, schema = "parquet", parquet.metadata.num_rows, parquet.schema_arrow
            else:
                kind = "arrow" if start.startswith(b"ARROW1") else "stream"
                reader = pa.ipc.open_file(file) if kind == "arrow" else pa.ipc.open_stream(file)
                rows, schema = sum(map(len, _batches(reader, kind))), reader.schema
            return cls(url, kind, rows, size, digest, schema.remove_metadata())

    def read(self, start: int, stop: int, where: Sequence[Condition] = ()) -> Iterator[RawEntry | None]:
        """Rows ``start`` to ``stop``; ``None`` for those that ``where`` does not take.

        Raises:
            SourceError: it cannot be read there.
        """
        while start < stop:
            first, batch = _reader(self).piece(start)
            end = min(stop, first + len(batch))
            for at in range(start, end, _ROWS):
                yield from _rows(batch.slice(at - first, min(_ROWS, end - at)), where)
            start = end

    def cell(self, row: int, column: str) -> Any:
        """One value; those of rows that lie near each other are best asked for in turn.

        Raises:
            SourceError: it cannot be read.
        """
        first, batch = _reader(self).kept_piece(row)
        with _named(self.url):
            return batch.column(column)[row - first].as_py()


class _Reader:
    """An open file, and how far it was read.

    Args:
        table: the file.
    """

    def __init__(self, table: Table) -> None:
        self._table, self._stack = table, ExitStack()
        self._kept: OrderedDict[int, Any] = OrderedDict()
        with _named(table.url):
            file = self._stack.enter_context(_opened(table.url))
            if table.kind == "parquet":
                self._file = arrow().parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
                groups = range(self._file.metadata.num_row_groups)
                ends = list(accumulate(self._file.metadata.row_group(group).num_rows for group in groups))
            else:
                ipc = arrow().ipc
                self._file, ends = (ipc.open_file if table.kind == "arrow" else ipc.open_stream)(file), [table.rows]
        self._ends, self._stream = ends, file
        self._group, self._at, self._pieces = -1, 0, iter(())
        self._piece: tuple[int, Any] = (0, ())

    def piece(self, row: int) -> tuple[int, Any]:
        """The rows that are unpacked with ``row``, and the number of the first of them."""
        first, batch = self._piece
        if first <= row < first + len(batch):
            return self._piece
        group = bisect_right(self._ends, row)
        with _named(self._table.url):
            if group != self._group or row < self._at:
                self._begin(group)
            while self._at <= row:
                batch = next(self._pieces, None)
                if batch is None:
                    raise SourceError(f"{self._table.url}: ends before row {row}; it changed since it was looked at")
                if self._table.kind == "parquet":  # what is said of its size may be wrong
                    what = f"{self._table.url}: {len(batch)} rows have {batch.nbytes:,} bytes"
                    at_most("file_bytes", batch.nbytes, what, SourceError)
                self._piece, self._at = (self._at, batch), self._at + len(batch)
        return self._piece

    def kept_piece(self, row: int) -> tuple[int, Any]:
        """As :meth:`piece`; some that were unpacked on the way there are kept."""
        for first, batch in self._kept.items():
            if first <= row < first + len(batch):
                self._kept.move_to_end(first)
                return first, batch
        if self._table.kind != "parquet":  # which is mapped, and unpacked when it is looked at
            return self.piece(row)
        group = bisect_right(self._ends, row)
        next_row = self._at if group == self._group and row >= self._at else self._ends[group - 1] if group else 0
        while True:
            first, batch = self.piece(next_row)
            self._kept[first] = batch
            while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > _KEPT:
                self._kept.popitem(last=False)
            if row < first + len(batch):
                return first, batch
            next_row = first + len(batch)

    def _begin(self, group: int) -> None:
        self._group, self._at = group, self._ends[group - 1] if group else 0
        if self._table.kind == "parquet":
            self._pieces = self._file.iter_batches(_ROWS, row_groups=[group], use_threads=False)
            return
        if self._table.kind == "stream":
            self._stream.seek(0)
            self._file = arrow().ipc.open_stream(self._stream)
        self._pieces = _batches(self._file, self._table.kind)

    def close(self) -> None:
        """Let go of the file."""
        self._stack.close()


_readers: OrderedDict[tuple[int, Table], _Reader] = OrderedDict()
"""Of this process; one that was forked opens its own, as two would read from the same place of a file otherwise."""


def _reader(table: Table) -> _Reader:
    key = os.getpid(), table
    if key not in _readers:
        while len(_readers) >= _OPEN:
            _readers.popitem(last=False)[1].close()
        _readers[key] = _Reader(table)
    _readers.move_to_end(key)
    return _readers[key]


def _batches(reader: Any, kind: str) -> Iterator[Any]:
    if kind == "arrow":
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader


UNREADABLE = "\0unreadable"
"""Key of a row that holds a text which is none; its value says why."""


def _rows(batch: Any, where: Sequence[Condition]) -> Iterator[RawEntry | None]:
    columns = [batch.column(one.column).to_pylist() for one in where]
    if not where:
        try:
            yield from batch.to_pylist()
            return
        except UnicodeDecodeError:  # of one row, most likely
            pass
    for row in range(len(batch)):
        fits = all(one(column[row]) for one, column in zip(where, columns, strict=True))
        yield _row(batch.slice(row, 1)) if fits else None


def _row(batch: Any) -> RawEntry:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return {UNREADABLE: f"a text is not UTF-8 ({error})"}


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """A file, which a local one of arrow is mapped as."""
    if "://" not in url:
        with arrow().memory_map(url) if url.endswith(".arrow") else open(url, "rb") as file:
            yield file
    else:
        import fsspec

        with fsspec.open(url, "rb") as file:
            yield file


@contextmanager
def _named(url: str) -> Iterator[None]:
    """What goes wrong with a file is a :class:`SourceError`."""
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{url}: there is no such file (seen from {Path.cwd()})") from None
    except (arrow().ArrowException, OSError, ImportError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{url}: cannot be read ({type(error).__name__}: {str(error)[:160]})") from error


@dataclass(frozen=True)
class Rows:
    """Some rows of several files in turn, for one worker."""

    tables: Sequence[Table]
    start: int
    stop: int
    where: Sequence[Condition] = ()

    def __iter__(self) -> Iterator[RawEntry | None]:
        ends = list(accumulate(table.rows for table in self.tables))
        at = self.start
        while at < self.stop:
            number = bisect_right(ends, at)
            first = ends[number] - self.tables[number].rows
            stop = min(self.stop, ends[number])
            yield from self.tables[number].read(at - first, stop - first, self.where)
            at = stop


@dataclass(frozen=True)
class Tables:
    """The rows of several files as the entries of a source; see :class:`data_prep.entries.Entries`."""

    tables: tuple[Table, ...]
    where: tuple[Condition, ...] = ()

    @property
    def there(self) -> bool:
        """Whether the source is still there."""
        return True

    @property
    def named(self) -> str:
        """For messages."""
        first, *others = self.tables
        return f"{first.url} and {len(others)} more" if others else first.url

    @cached_property
    def total(self) -> int:
        """Rows of all files."""
        return sum(table.rows for table in self.tables)

    @property
    def bytes(self) -> int | None:
        """About as many as the shards will have; ``None``: not known, as some rows are left out."""
        return None if self.where else sum(table.bytes for table in self.tables)

    @property
    def reads(self) -> Sequence[Path]:
        """Files of this machine that are read where a row is checked; the first stands for all."""
        return [Path(table.url) for table in self.tables if "://" not in table.url][:1]

    def identity(self) -> dict[str, Any]:
        """What tells this source from another one."""
        text = "\n".join(f"{Path(table.url).name} {table.digest}" for table in self.tables)
        return {
            "file": Path(self.tables[0].url).name,
            "files": len(self.tables),
            "file_ends_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "where": [f"{one.column}{one.operator}{one.value!r}" for one in self.where],
        }

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[RawEntry]:
        return (row for row in Rows(self.tables, 0, self.total, self.where) if row is not None)

    def batches(self, size: int, done: set[int]) -> Iterator[tuple[int, Rows]]:
        """The entries of each shard that is not done."""
        for number in range(-(-self.total // size)):
            if number not in done:
                stop = min(self.total, (number + 1) * size)
                ends = list(accumulate(table.rows for table in self.tables))
                first, last = bisect_right(ends, number * size), bisect_right(ends, stop - 1)
                before = ends[first] - self.tables[first].rows
                yield number, Rows(self.tables[first : last + 1], number * size - before, stop - before, self.where)
