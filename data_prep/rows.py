"""The rows of parquet and arrow files, read where they lie (a path, or a URL that fsspec opens) a few at a time.

Decided here: a worker reads the rows of its shard itself, and of a row group no more than the pages that it is at, so
that memory depends neither on the size of a file nor on that of its row groups (some have 2 GB). What a file holds is
known from its end: a hash of that tells one download from another, where hashing 400 GB would take longer than reading.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_prep.entries import RawEntry, SourceError

_ROWS = 16  # made into Python objects at once
_BUFFER = 1 << 20
_TAIL = 1 << 16
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
    """Which rows are taken: those whose ``column`` is to ``value`` as ``operator`` says; an empty one is not."""

    column: str
    operator: str
    value: Any

    def __call__(self, found: Any) -> bool:
        """Whether a value of the column fits."""
        try:
            return found is not None and _OPERATORS[self.operator](found, self.value)
        except TypeError:
            raise SourceError(
                f"--where: {self.column} holds {str(found)[:40]!r}, which cannot be compared with {self.value!r}"
            ) from None


@dataclass(frozen=True)
class Table:
    """One file.

    Attributes:
        url: a path, or what fsspec opens.
        kind: ``parquet``, ``arrow`` (a file with an index) or ``stream`` (what ``datasets`` caches and saves).
        rows, bytes: how many.
        digest: of its end.
    """

    url: str
    kind: str
    rows: int
    bytes: int
    digest: str

    @classmethod
    def open(cls, url: str) -> Table:
        """Look at a file.

        Raises:
            SourceError: it is not there, or neither parquet nor arrow.
        """
        pa = arrow()
        with _reading(url) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            digest = hashlib.sha256(f"{size} ".encode() + file.read(_TAIL)).hexdigest()
            file.seek(0)
            start = file.read(8)
            file.seek(0)
            if start.startswith(b"PAR1"):
                return cls(url, "parquet", pa.parquet.ParquetFile(file).metadata.num_rows, size, digest)
            kind = "arrow" if start.startswith(b"ARROW1") else "stream"
            return cls(url, kind, sum(len(batch) for batch in _batches(file, kind)), size, digest)

    def schema(self) -> Any:
        """Its columns, of pyarrow."""
        pa = arrow()
        with _reading(self.url) as file:
            if self.kind == "parquet":
                return pa.parquet.ParquetFile(file).schema_arrow
            return (pa.ipc.open_file if self.kind == "arrow" else pa.ipc.open_stream)(file).schema

    def read(self, start: int, stop: int, where: Sequence[Condition] = ()) -> Iterator[RawEntry | None]:
        """Rows ``start`` to ``stop``; ``None`` for those that ``where`` does not take.

        Raises:
            SourceError: it cannot be read there.
        """
        with _reading(self.url) as file:
            first = 0
            for batch in self._pieces(file, start, stop):
                begin, end = max(start - first, 0), min(stop - first, len(batch))
                first += len(batch)
                for at in range(begin, end, _ROWS):
                    yield from _rows(batch.slice(at, min(_ROWS, end - at)), where)
                if first >= stop:
                    return

    def _pieces(self, file: Any, start: int, stop: int) -> Iterator[Any]:
        """Batches from the first row on; those before ``start`` without their data, where they can be left out."""
        if self.kind != "parquet":
            yield from _batches(file, self.kind)
            return
        parquet = arrow().parquet.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        first = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if first + count <= start:
                yield range(count)
            elif first < stop:
                yield from parquet.iter_batches(_ROWS, row_groups=[group], use_threads=False)
            first += count


def _batches(file: Any, kind: str) -> Iterator[Any]:
    ipc = arrow().ipc
    if kind == "arrow":
        reader = ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from ipc.open_stream(file)


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
def _reading(url: str) -> Iterator[Any]:
    """A file, which a local one is mapped as; what goes wrong with it is a :class:`SourceError`."""
    pa = arrow()
    try:
        if "://" not in url:
            with pa.memory_map(url) if url.endswith(".arrow") else open(url, "rb") as file:
                yield file
        else:
            import fsspec

            with fsspec.open(url, "rb") as file:
                yield file
    except FileNotFoundError:
        raise SourceError(f"{url}: there is no such file (seen from {Path.cwd()})") from None
    except (pa.ArrowException, OSError, ImportError, ValueError) as error:
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
    at_least: int = 1
    seed: int = 0

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
