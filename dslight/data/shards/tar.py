"""The bytes of a plain tar: what tarfile, and with it webdataset's writer, makes of a member with a short name.

Written here since a record of text is a few hundred bytes, for which ``tarfile`` takes longer than all else that is
done to it; and ``webdataset.TarWriter`` imports torch, which a process that converts data has no other use for.
"""

from __future__ import annotations

import tarfile

from dslight.data.shards.format import BLOCK, padded

_MODE, _OWNER = 0o444, "bigdata"  # webdataset's
_SIZE, _SUM = slice(124, 135), slice(148, 154)
_LARGEST = 8**11 - 1


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode, info.mtime, info.uname, info.gname = _MODE, 0, _OWNER, _OWNER
    return info.tobuf(tarfile.PAX_FORMAT)


_TEMPLATE = _template()
_ALIKE = int(_TEMPLATE[_SUM], 8) - sum(_TEMPLATE[_SIZE])


def member(name: str, data: bytes) -> bytes:
    """A member's header, its bytes and their padding.

    Raises:
        ValueError: the name is not of at most 100 ASCII characters, or there are 8 GiB or more: it would need more than
            one header.
    """
    encoded, size = name.encode("ascii"), b"%011o" % len(data)
    if len(encoded) > 100 or len(data) > _LARGEST:
        raise ValueError(f"{name}: {len(data)} bytes need more than one tar header")
    header = bytearray(_TEMPLATE)
    header[: len(encoded)] = encoded
    header[_SIZE] = size
    header[_SUM] = b"%06o" % (_ALIKE + sum(encoded) + sum(size))
    return b"".join((header, data, bytes(padded(len(data)) - len(data))))


def ending(size: int) -> bytes:
    """What stands behind ``size`` bytes of members."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE)
