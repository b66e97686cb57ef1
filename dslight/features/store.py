"""The folder that features are kept in: bounded, shared by runs, processes and ranks, and never trusted.

    dslight-features.json           says what the folder is; one that holds other files is refused
    used                            bytes that all files take, counted under a lock
    sets/SET/about.json             a set: one encoder, read at one tap; its time says when it was last used
    sets/SET/KK/KEY.feature         the features of one view
    pictures/KK/KEY.views           which views a picture becomes

Decided here:

* One file for each view: a feature map is large (CLIP-L: 2.4 MB), and files need no index that processes fight over.
  Each is written beside its place and renamed. It is not synced: what a power cut leaves fails its checksum.
* A file says nothing by itself: damaged, cut or foreign ones are computed and written again, with one line.
* What is full stays as it is (``stop``), for of an order that is read round and round, the oldest file is the next one
  to be read. ``replace`` makes room by deleting whole sets of other encoders, longest unused first. Only files of the
  names and beginnings above are ever deleted.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dslight.errors import UserError
from dslight.files.system import no_space

log = logging.getLogger(__name__)

OnFull = Literal["stop", "replace"]

MARK = "dslight-features.json"
_MAGIC = b"dslight feature 1\n"
_ALIGNED = 64
_BLOCK = 4096
"""What a file takes of a disk at least."""
_KEY = r"[0-9a-f]{32}"
_TMP = re.compile(rf"\.{_KEY}\.(feature|views)\.[0-9a-f]{{8}}\.tmp")
_OURS = re.compile(rf"{_KEY}\.(feature|views)")
_DTYPES = {str(kind): kind for kind in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
_STALE = 3600
"""Seconds after which nobody is still writing a file."""


class FeatureStore:
    """The folder at ``folder``, made where there is none. It travels to the data workers.

    Args:
        folder: of this program alone.
        limit: the most bytes of all files, rounded up to blocks of the disk.
        on_full: what happens then, see above.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: str | Path, limit: int, on_full: OnFull = "stop") -> None:
        self.folder, self.limit, self.on_full = Path(folder), limit, on_full
        self.full = False
        self._counted = False
        self._open: set[str] = set()
        mark = self.folder / MARK
        if not mark.is_file():
            if self.folder.is_dir() and any(self.folder.iterdir()):
                raise UserError(f"data.keep_features.folder: {self.folder} holds other files; name a folder of its own")
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._put(mark, json.dumps({"format": 1}).encode())
            except OSError as error:
                raise UserError(
                    f"data.keep_features.folder: {self.folder} cannot be written to ({error.strerror})"
                ) from error

    # --- sets

    def open(self, name: str, about: Mapping[str, Any]) -> None:
        """Use a set; of several, none that is open makes room."""
        self._open.add(name)
        file = self.folder / "sets" / name / "about.json"
        with suppress(OSError):  # a folder that can only be read serves as well
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.exists():
                os.utime(file)
            else:
                self._put(file, json.dumps(dict(about), indent=2).encode())

    # --- files

    def feature(self, name: str, key: str) -> Tensor | None:
        """The features of a view ``[P, C]`` from a set; ``None`` where there are none, or damaged ones."""
        found = self._read(self.folder / "sets" / name / key[:2] / f"{key}.feature")
        if found is None:
            return None
        header, memory = found
        return torch.frombuffer(memory, dtype=_DTYPES[header["dtype"]]).view(header["shape"])

    def keep_feature(self, name: str, key: str, feature: Tensor) -> None:
        """Write the features of a view ``[P, C]``, of any device, unless they are there or the folder is full."""
        feature = feature.detach().cpu().contiguous()
        if str(feature.dtype) not in _DTYPES:
            raise ValueError(f"data.keep_features: features of {feature.dtype} cannot be kept")
        header = {"dtype": str(feature.dtype), "shape": list(feature.shape)}
        data = feature.view(torch.uint8).numpy().tobytes() if feature.numel() else b""
        self._write(self.folder / "sets" / name / key[:2] / f"{key}.feature", header, data)

    def picture(self, key: str) -> dict[str, Any] | None:
        """Which views a picture becomes; ``None`` where nobody has said it."""
        found = self._read(self.folder / "pictures" / key[:2] / f"{key}.views")
        if found is None or not all(re.fullmatch(_KEY, str(one)) for one in found[0].get("keys", ())):
            return None  # a key is a file's name
        return found[0]

    def keep_picture(self, key: str, views: Mapping[str, Any]) -> None:
        """Say which views a picture becomes: ``grid``, ``size``, and the ``keys`` of the views."""
        self._write(self.folder / "pictures" / key[:2] / f"{key}.views", views, b"")

    def _read(self, path: Path) -> tuple[dict[str, Any], memoryview] | None:
        try:
            raw = bytearray(path.read_bytes())
        except OSError:
            return None
        try:
            return _opened(raw)
        except (ValueError, KeyError, TypeError, IndexError):
            log.warning("%s: damaged; its features are computed again", path)
            with suppress(OSError):
                path.unlink()  # ours by its name and its place; else it would be found again and again
            return None

    def _write(self, path: Path, header: Mapping[str, Any], data: bytes) -> None:
        if self.full or path.exists():
            return
        packed = _packed(header, data)
        try:
            with self._counted_lock() as file:  # whoever measures sees all that is counted
                if not self._fits(file, _on_disk(len(packed))):
                    self._stop(f"{self.limit:,} bytes are in use (data.keep_features.bytes)")
                    return
                path.parent.mkdir(parents=True, exist_ok=True)
                self._put(path, packed)
        except OSError as error:
            full = no_space(error, path, len(packed))
            self._stop(str(error.strerror) if full is None else "the disk is full")

    def _stop(self, why: str) -> None:
        self.full = True
        log.warning("%s: no more features are kept: %s; what is there is read as ever", self.folder, why)

    def _put(self, path: Path, data: bytes) -> None:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    # --- how much there may be

    def _fits(self, file: int, size: int) -> bool:
        """Count ``size`` more bytes, over all processes; false: there is no room for them."""
        used = _number(file) if self._counted else -1
        if used < 0 or used + size > self.limit:  # once a process, and before anything is said to be full
            used = self._measure()
            self._counted = True
        if used + size > self.limit and self.on_full == "replace":
            used -= self._make_room(used + size - self.limit)
        fits = used + size <= self.limit
        os.ftruncate(file, 0)
        os.pwrite(file, str(used + size * fits).encode(), 0)
        return fits

    @contextmanager
    def _counted_lock(self) -> Iterator[int]:
        file = os.open(self.folder / "used", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # without locks, the limit holds but for what others write meanwhile
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _measure(self) -> int:
        """Bytes of all files that are ours, without what killed processes have left, which goes."""
        total, now = 0, time.time()
        for path, size, changed in _files(self.folder / "pictures", self.folder / "sets"):
            if _OURS.fullmatch(path.name):
                total += _on_disk(size)
            elif _TMP.fullmatch(path.name) and now - changed > _STALE:
                with suppress(OSError):
                    path.unlink()
        return total

    def _make_room(self, needed: int) -> int:
        """Delete features of sets that nobody here uses until ``needed`` bytes are free; how many it were."""
        stamped = []
        for about in (self.folder / "sets").glob("*/about.json"):
            with suppress(OSError):
                stamped += [] if about.parent.name in self._open else [(about.stat().st_mtime, about.parent)]
        freed = 0
        for _, folder in sorted(stamped):
            for path, size, _ in _files(folder):
                if _OURS.fullmatch(path.name) and _begins_as_ours(path):
                    with suppress(OSError):
                        path.unlink()
                        freed += _on_disk(size)
            log.warning("%s: the features of another encoder made room (data.keep_features.on_full)", folder)
            if freed >= needed:
                break
        return freed

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_counted": False}


def _packed(header: Mapping[str, Any], data: bytes) -> bytes:
    """Magic, checksum of what follows, the header as a line of JSON padded to where ``data`` is aligned."""
    text = json.dumps(dict(header)).encode()
    begin = len(_MAGIC) + 8
    text = text.ljust(-(begin + len(text) + 1) % _ALIGNED + len(text)) + b"\n"
    body = text + data
    return _MAGIC + f"{zlib.crc32(body):08x}".encode() + body


def _opened(raw: bytearray) -> tuple[dict[str, Any], memoryview]:
    """Header and data.

    Raises:
        ValueError: it is something else, or damaged.
    """
    begin = len(_MAGIC) + 8
    view = memoryview(raw)
    if raw[: len(_MAGIC)] != _MAGIC or zlib.crc32(view[begin:]) != int(raw[len(_MAGIC) : begin], 16):
        raise ValueError("checksum")
    end = raw.index(b"\n", begin) + 1
    header = json.loads(bytes(raw[begin:end]))
    if "dtype" in header and _DTYPES[header["dtype"]].itemsize * _product(header["shape"]) != len(raw) - end:
        raise ValueError("size")
    return header, view[end:]


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _begins_as_ours(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC
    return False


def _files(*folders: Path) -> Iterator[tuple[Path, int, float]]:
    """Regular files two levels or more below, with size and time of change; links are not followed."""
    for folder in folders:
        for at, _, names in os.walk(folder):
            for name in names:
                path = Path(at, name)
                with suppress(OSError):
                    found = path.lstat()
                    yield path, found.st_size, found.st_mtime


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _number(file: int) -> int:
    """What ``used`` says; -1: nothing that is a number."""
    said = os.pread(file, 32, 0)
    return int(said) if said.isdigit() else -1
