"""What the tests of the programs make their sources of, and how they look at what comes out."""

import hashlib
import io
import os
import struct
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
PHOTO = np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def rgb_hash(pixels: np.ndarray) -> str:
    """Of RGB pixels and their shape."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels, np.uint8).tobytes()).hexdigest()


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def packed(folder: Path, kind: str) -> Path:
    """The files of ``folder`` as a ``zip`` (half of it deflated) or a ``tar``, beside it."""
    path = folder.parent / f"{folder.name}.{kind}"
    files = [(file, str(file.relative_to(folder))) for file in sorted(folder.rglob("*")) if file.is_file()]
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i, (file, name) in enumerate(files):
                archive.write(file, name, zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    else:
        with tarfile.open(path, "w") as archive:
            for file, name in files:
                archive.add(file, f"./{name}")
    return path


def shard_files(root: Path) -> dict[str, bytes]:
    """All that a program wrote, but for how long it took."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("report.json", ".lock")
    }


def command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", f"data_prep.{module}", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
