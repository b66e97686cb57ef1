"""Token ids of all training text, kept beside the shards: a conversation is tokenized once, and not in every epoch of
every run. Tokenizing takes a quarter of the time that a small picture takes to be decoded and resized.

The file is ``tokens.<hash of tokenizer and template>.bin``. For each record there are a checksum and its ids, int32,
twice the id plus one where it is supervised; of one whose answers have weights, a mark in front and the weights of all
ids, float32, behind. Then come the places where records begin, int64 ``[records + 1]``, and a digest. A record whose
text cannot be used has no ids: reading it says why, as ever.

Decided here: kept is what :meth:`~dslight.data.conversation.Template.encode` gives, in full, so no token or label can
differ, and limits and images stay the collate's. Of which shards a file is, and where its records begin, is checked
when it is opened, a record when it is read: hashing the whole would take longer than tokenizing saves.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dslight.data.caches.lengths import Measure, Through, by_helpers
from dslight.data.caches.made_once import made_once
from dslight.data.conversation import Encoded
from dslight.data.records import OnBad
from dslight.data.sample import BadSample
from dslight.data.shards import ShardError, ShardReader
from dslight.files.atomic import replacing
from dslight.types import IGNORE

log = logging.getLogger(__name__)

_SEAL = 32
_WEIGHTED = np.array([-1], "<i4")  # no id's: those are 0 or more, but for IMAGE


class Tokens:
    """The ids and labels of every record of a folder.

    Args:
        path: the file.
        digest: of the manifest.
        records: how many there are.

    Raises:
        FileNotFoundError, ShardError: there is none; or it is of other shards, or was cut.
    """

    def __init__(self, path: Path, digest: str, records: int) -> None:
        self.path, self._made_of = path, (digest, records)
        tail = 8 * (records + 1)
        begin = path.stat().st_size - _SEAL - tail
        if begin < 0:
            raise ShardError(f"{path}: has not the size of the tokens of {records} records")
        self._starts = np.asarray(np.memmap(path, "<i8", "r", begin, (records + 1,)))
        with path.open("rb") as file:
            file.seek(-_SEAL, os.SEEK_END)
            if file.read() != _seal(digest, self._starts) or self._starts[-1] != begin:
                raise ShardError(f"{path}: of other shards, or damaged")
            self._file = os.dup(file.fileno())

    def __reduce__(self) -> tuple[type[Tokens], tuple[Path, str, int]]:
        return Tokens, (self.path, *self._made_of)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def __getitem__(self, row: int) -> Encoded | None:
        """What the template made of a record; ``None`` if its text cannot be used.

        Raises:
            ShardError: its bytes were changed.
        """
        start, end = int(self._starts[row]), int(self._starts[row + 1])
        data = os.pread(self._file, end - start, start)
        if len(data) != end - start or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "little"):
            raise ShardError(f"{self.path}: the tokens of record {row} were changed; delete the file")
        codes, weights = np.frombuffer(data, "<i4", offset=4), None
        if len(codes) and codes[0] == _WEIGHTED[0]:
            codes, weights = codes[1 : len(codes) // 2 + 1], codes[len(codes) // 2 + 1 :].view("<f4")
        ids = codes >> 1
        return Encoded(ids, np.where(codes & 1, ids, IGNORE), weights) if len(ids) else None


def tokens_of(
    reader: ShardReader,
    measure: Measure,
    folder: Path | None = None,
    on_bad: OnBad = "raise",
    progress: bool = True,
    through: Through | None = None,
) -> Tokens:
    """The tokens of all records of a folder, from their file; tokenized first if there is none.

    Args: as of :func:`dslight.data.caches.lengths.lengths_of`.

    Raises:
        BadSample, ShardError: naming shard and key.
        PermissionError: naming the folder, if it cannot be written.
    """
    path = (folder or reader.root) / f"tokens.{measure.text_hash}.bin"
    return made_once(
        path,
        "tokens",
        load=lambda: _load(path, reader),
        make=lambda: _write(path, reader, Tokenize(measure, on_bad), through or by_helpers(progress)),
    )


def _load(path: Path, reader: ShardReader) -> Tokens | None:
    try:
        return Tokens(path, reader.manifest.digest, len(reader))
    except FileNotFoundError:
        return None
    except ShardError as error:
        log.warning("%s; tokenizing again", error)
        return None


def _seal(digest: str, starts: np.ndarray) -> bytes:
    return hashlib.sha256(digest.encode() + starts.tobytes()).digest()


def _write(path: Path, reader: ShardReader, tokenize: Tokenize, through: Through) -> None:
    """Piece by piece, since all do not fit into memory; put in place when it is whole."""
    sizes = [0]
    with replacing(path) as file:
        for chunk in through(reader, tokenize, f"tokens of {reader.root}"):
            sizes += [file.write(record) for record in chunk]
        starts = np.cumsum(sizes, dtype="<i8")
        file.write(starts.tobytes() + _seal(reader.manifest.digest, starts))


@dataclass(frozen=True)
class Tokenize:
    """The bytes of a record in the file."""

    measure: Measure
    on_bad: OnBad

    def __call__(self, reader: ShardReader, row: int) -> bytes:
        """See the class."""
        shard, key = reader.locate(row)
        try:
            sample = self.measure.parsed(key, reader.read(row, head=0))
            encoded = self.measure.template.encode(sample.turns, self.measure.tokenizer, len(sample.images))
        except (BadSample, ShardError) as error:
            if self.on_bad == "raise":
                raise BadSample(f"{reader.root / shard.name}: {error}") from error
            log.warning("a bad sample has no tokens: %s", error)
            return bytes(4)  # the checksum of nothing
        ids, labels = np.array(encoded.ids, "<i4"), np.array(encoded.labels, "<i4")
        codes = (ids * 2 + (labels != IGNORE)).tobytes()
        if encoded.weights is not None:
            codes = _WEIGHTED.tobytes() + codes + encoded.weights.astype("<f4").tobytes()
        return zlib.crc32(codes).to_bytes(4, "little") + codes
