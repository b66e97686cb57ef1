"""Where the values of a parquet column lie in the file: pages, their headers, and the blocks of snappy.

pyarrow gives values and no places. What is needed of the format to find those is little, and written here after its
specification (apache/parquet-format: PageHeader in Thrift's compact protocol, PLAIN encoding; google/snappy:
format_description.txt): values that stand one behind the other, each with its length in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from data_prep.entries import SourceError

_DATA, _DICTIONARY, _DATA_2 = 0, 2, 3
_PLAIN, _RLE = 0, 3
_OF_DICTIONARY = (2, 8)
_NAMES = {5: "DELTA_BINARY_PACKED", 6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY", 9: "BYTE_STREAM_SPLIT"}
BLOCK = 1 << 16
"""Bytes that snappy packs by themselves."""


class Page(NamedTuple):
    """A page with values in it.

    Attributes:
        offset, stored: of its packed values in the file, and how many bytes.
        unpacked: bytes that those unpack to.
        levels: whether what says which values are missing is packed with them, and stands in front.
        packed: whether they are packed at all.
    """

    offset: int
    stored: int
    unpacked: int
    levels: bool
    packed: bool


def pages(data: memoryview, offset: int) -> Iterator[Page]:
    """The pages of a column chunk that hold values as they are: plain pages and the dictionary.

    Args:
        data: of the whole chunk.
        offset: of that in the file.

    Raises:
        SourceError: values are written in another way.
    """
    at = 0
    while at < len(data):
        header, length = _struct(data, at)
        start, stored, unpacked = at + length, header[3], header[2]
        at = start + stored
        if at > len(data) or stored < 0 or length <= 0:
            raise SourceError("a page ends behind its column")
        kind = header[1]
        if kind == _DICTIONARY:
            yield Page(offset + start, stored, unpacked, levels=False, packed=True)
        elif kind in (_DATA, _DATA_2):
            about = header[5 if kind == _DATA else 8]
            encoding = about[2 if kind == _DATA else 4]
            if encoding in _OF_DICTIONARY:
                continue
            if encoding != _PLAIN or (kind == _DATA and _RLE not in (about[3], about[4])):
                raise SourceError(f"a page is written as {_NAMES.get(encoding, f'encoding {encoding}')}")
            before = 0 if kind == _DATA else about[5] + about[6]
            packed = kind == _DATA or about.get(7, True)
            yield Page(offset + start + before, stored - before, unpacked - before, kind == _DATA, packed)


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, and its length."""
    start, name, found = at, 0, dict[int, Any]()
    try:
        while data[at]:
            head = data[at]
            at += 1
            if head >> 4:
                name += head >> 4
            else:
                name, at = _zigzag(data, at)
            found[name], at = _value(data, at, head & 15)
    except IndexError:
        raise SourceError("a page header is cut") from None
    return found, at + 1 - start


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind == 3:
        return data[at], at + 1
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 8:
        size, at = _varint(data, at)
        return None, at + size
    if kind == 12:
        found, length = _struct(data, at)
        return found, at + length
    raise SourceError(f"a page header has a field of type {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise SourceError("a page header has a number without an end")


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def snappy_blocks(data: memoryview) -> list[int]:
    """Where in what snappy has packed each block of :data:`BLOCK` bytes begins, the first of them after the length in
    front; of no other one, where a block needs those before it.

    Raises:
        SourceError: it is damaged.
    """
    total, first = _varint(data, 0)
    at, out, begun, starts = first, 0, 0, [first]
    try:
        while at < len(data):
            tag = data[at]
            kind = tag & 3
            if kind == 0:
                size, at = (tag >> 2) + 1, at + 1
                if size > 60:
                    extra = size - 60
                    size, at = int.from_bytes(data[at : at + extra], "little") + 1, at + extra
                at += size
            else:
                if kind == 1:
                    size, back, at = (tag >> 2 & 7) + 4, (tag & 0xE0) << 3 | data[at + 1], at + 2
                else:
                    width = 2 if kind == 2 else 4
                    size, back = (tag >> 2) + 1, int.from_bytes(data[at + 1 : at + 1 + width], "little")
                    at += 1 + width
                if back > out - begun:
                    return [first]
            out += size
            if out > begun + BLOCK:
                return [first]
            if out == begun + BLOCK and at < len(data):
                starts.append(at)
                begun = out
    except IndexError:
        raise SourceError("a page of snappy is cut") from None
    if out != total or at != len(data):
        raise SourceError("a page of snappy is damaged")
    return starts
