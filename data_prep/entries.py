"""The entries of a ``.json`` (one list) or ``.jsonl`` (one object per line) file, one after another.

Decided here: a file is never held as a whole (LLaVA's 665K conversations are a gigabyte, and five as Python objects),
so reading it twice, once to count, is the cheap way.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from dslight.errors import UserError
from dslight.files.digest import file_sha256
from dslight.limits import at_most, limit

RawEntry = dict[str, Any]

_CHUNK = 1 << 20
_CONVERT = "convert it with dslight data convert, or python -m data_prep.tables"
_OTHERS = {  # first bytes of what is often given
    b"PAR1": ("parquet", _CONVERT),
    b"ARROW1": ("arrow", _CONVERT),
    b"PK\x03\x04": ("zip", "unpack it first"),
}
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SPACE = re.compile(r"[\s,]*")


class SourceError(UserError):
    """A source, or a part of it that holds more than one entry, cannot be read; the message names the file."""


class Source(Protocol):
    """What the engine makes shards of: entries that can be counted, told from others and handed out in batches."""

    @property
    def there(self) -> bool:
        """Whether it still is: who has deleted it has no other one."""
        ...

    @property
    def named(self) -> str:
        """For messages."""
        ...

    @property
    def bytes(self) -> int | None:
        """About as many as its shards will have; ``None``: not known, to be guessed from a sample."""
        ...

    @property
    def reads(self) -> Sequence[Path]:
        """Files and folders of this machine that are read where an entry is checked."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells it from another one."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RawEntry]: ...

    def batches(self, size: int, done: set[int]) -> Iterator[tuple[int, Any]]:
        """Number and entries (``None``: left out) of each shard of ``size`` that is not done; they go to a worker."""
        ...


@dataclass(frozen=True)
class Entries:
    """Some or all of the entries of a file.

    Attributes:
        path: the file.
        keep: which ones; ``None``: all.
        count: how many of those, drawn without replacement; ``None``: all.
        fraction: the share of them that is drawn, to try something out.
        seed: of the drawing.
        at_least: a file that holds fewer of those to draw from is not the right one.
        total: of those that ``keep`` keeps, once they were counted. Before that, iterating gives all of them.
    """

    path: Path
    keep: Callable[[RawEntry], bool] | None = None
    count: int | None = None
    fraction: float = 1.0
    seed: int = 0
    at_least: int = 1
    total: int | None = None

    @property
    def there(self) -> bool:
        """See :class:`Source`."""
        return self.path.exists()

    @property
    def named(self) -> str:
        """See :class:`Source`."""
        return str(self.path)

    @property
    def bytes(self) -> int | None:
        """See :class:`Source`: the pictures lie elsewhere."""
        return None

    @property
    def reads(self) -> Sequence[Path]:
        """See :class:`Source`: entries are handed out."""
        return ()

    def identity(self) -> dict[str, Any]:
        """See :class:`Source`."""
        return {"file": self.path.name, "file_sha256": file_sha256(self.path), "seed": self.seed}

    def batches(self, size: int, done: set[int]) -> Iterator[tuple[int, list[RawEntry]]]:
        """See :class:`Source`."""
        source = iter(self)
        for number in range(math.ceil(len(self) / size)):
            entries = list(islice(source, size))
            if number not in done:
                yield number, entries

    def __iter__(self) -> Iterator[RawEntry]:
        kept = (entry for entry in read_entries(self.path) if self.keep is None or self.keep(entry))
        if self.total is None or len(self) == self.total:
            yield from kept
            return
        rows = np.random.default_rng(self.seed).permutation(self.total)[: len(self)]
        drawn = np.zeros(self.total, bool)
        drawn[rows] = True
        yield from (entry for entry, wanted in zip(kept, drawn, strict=False) if wanted)

    def __len__(self) -> int:
        assert self.total is not None, "not counted yet"
        count = self.total if self.count is None else min(self.count, self.total)
        return min(count, max(1, round(count * self.fraction)))


def read_entries(path: Path) -> Iterator[RawEntry]:
    """The entries of a file.

    Raises:
        SystemExit: the file is missing or not of objects; says where.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        for first, (kind, advice) in _OTHERS.items():
            if start.startswith(first):
                raise SystemExit(f"{path}: is a {kind} file, and a .json or .jsonl is read; {advice}")
        with ExitStack() as stack:
            file = stack.enter_context(io.TextIOWrapper(_unpacked(path, start, stack), "utf-8-sig"))
            name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
            yield from _lines(path, file) if name.endswith((".jsonl", ".ndjson")) else _items(path, file)
    except FileNotFoundError:
        raise SystemExit(f"{path}: there is no such file (seen from {Path.cwd()})") from None
    except UnicodeDecodeError as error:
        raise SystemExit(f"{path}: not UTF-8 ({error})") from error
    except (EOFError, zlib.error, OSError) as error:
        raise SystemExit(f"{path}: is cut or damaged, or cannot be read ({error})") from error


def _unpacked(path: Path, start: bytes, stack: ExitStack) -> Any:
    """A file that is open for reading bytes; gzip and zstd are unpacked on the way."""
    if start.startswith(_GZIP):
        return stack.enter_context(gzip.open(path))
    if not start.startswith(_ZSTD):
        return stack.enter_context(path.open("rb"))
    try:
        import pyarrow
    except ImportError:
        raise SystemExit(f"{path}: is zstd, for which pyarrow is needed: pip install 'dslight[parquet]'") from None
    return stack.enter_context(pyarrow.input_stream(str(path), compression="zstd"))


def _lines(path: Path, file: TextIO) -> Iterator[RawEntry]:
    most = limit("json_bytes")
    for number, line in enumerate(iter(lambda: file.readline(most + 1), ""), 1):
        at_most(
            "json_bytes", len(line), f"{path}: line {number} is {len(line):,} characters long or longer", SystemExit
        )
        if line.strip():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise SystemExit(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(entry, dict):
                raise SystemExit(f"{path}: line {number} must be an object, is a {type(entry).__name__}")
            yield entry


def _items(path: Path, file: TextIO) -> Iterator[RawEntry]:
    """The objects of one list, decoded as they come in."""
    decoder = json.JSONDecoder()
    text, at, number = file.read(_CHUNK).lstrip(), 1, 0
    if not text.startswith("["):
        raise SystemExit(f"{path}: must hold a list of entries, begins with {text[:20]!r}; is it a .jsonl?")
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            rest = text[at + 1 :].strip()
            while not rest and (more := file.read(_CHUNK)):
                rest = more.strip()
            if rest:
                what = f"the list ends after entry {number - 1}, and more follows ({rest[:20]!r})"
                raise SystemExit(f"{path}: {what}; are these several files in one? Make one list of them, or a .jsonl")
            return
        try:
            if text[at : at + 1] not in ("{", ""):
                raise SystemExit(f"{path}: entry {number} must be an object, begins with {text[at : at + 20]!r}")
            entry, at = decoder.raw_decode(text, at)
        except RecursionError as error:
            raise SystemExit(f"{path}: entry {number}: is nested too deeply") from error
        except ValueError as error:
            what = f"{path}: entry {number}: is not whole, or no JSON, within {len(text) - at:,} characters ({error})"
            at_most("json_bytes", len(text) - at, what, SystemExit)
            more = file.read(max(_CHUNK, len(text) - at))  # twice as much each time, so a fault costs no more
            if not more:
                raise SystemExit(f"{path}: entry {number}: the file ends or is damaged there ({error})") from error
            text, at = text[at:] + more, 0
            continue
        number += 1
        yield entry
