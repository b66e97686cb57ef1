"""Checkpoint files: their tensors by name, whatever they are stored in, without running anything that they hold.

One ``.safetensors`` file, one of torch's pickles (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), or a folder with either,
whole or in shards behind an index. Pickles are read as tensors and plain containers only: one that needs more is
refused. Shapes are known before a tensor is read, and shards are read one at a time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from dslight.errors import WeightsError
from dslight.limits import at_most
from dslight.names import UnsafeNameError, below

Share = tuple[slice, ...]
"""A slice per dimension of a tensor."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
WHOLE = ("model.safetensors", "pytorch_model.bin", "mm_projector.bin")
"""Files that a folder is searched for, together with an index of the first two; the first one found is read."""


def files_of(path: str | Path) -> list[Path]:
    """The files that hold the tensors at ``path``, a file or a folder; none is opened but an index.

    Raises:
        WeightsError: when a file is not there, or is of no known kind.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors" and path.suffix not in PICKLES:
            raise WeightsError(f"{path} is no checkpoint: expected .safetensors, {', '.join(PICKLES)} or a folder")
        return [path]
    if not path.is_dir():
        raise WeightsError(f"there is no file {path}")
    if (path / ".metadata").exists():
        raise WeightsError(f"{path} is the sharded checkpoint of a run; make one of it first: dslight export")
    for name in WHOLE:
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json")
        if (path / name).is_file():
            return [path / name]
    raise WeightsError(f"{path} holds none of {', '.join(WHOLE)}, nor an index of shards")


def shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor at ``path``, by name; no tensor is read from safetensors, and pickles are mapped.

    Raises:
        WeightsError: as :func:`files_of`; for a damaged file; for a pickle of more than tensors.
    """
    found: dict[str, tuple[int, ...]] = {}
    for file in files_of(path):
        if file.suffix == ".safetensors":
            with _opened(file) as opened:
                found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        else:
            found |= {name: tuple(tensor.shape) for name, tensor in _unpickled(file).items()}
    return found


def tensors(path: str | Path, wanted: Mapping[str, Share | None]) -> Iterator[tuple[str, Tensor]]:
    """The ``wanted`` tensors at ``path`` by name, file by file; of safetensors only one is in memory at a time.

    Args:
        path: a file or a folder.
        wanted: name -> a slice per dimension, the share of the tensor that is read; ``None``: all of it.

    Raises:
        WeightsError: as :func:`shapes`.
    """
    for file in files_of(path):
        if file.suffix == ".safetensors":
            with _opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118
                    if name in wanted:
                        part = wanted[name]
                        yield name, opened.get_tensor(name) if part is None else opened.get_slice(name)[part]
        else:
            for name, tensor in _unpickled(file).items():
                if name in wanted:
                    part = wanted[name]
                    yield name, tensor if part is None else tensor[part]


def _shards(index: Path) -> list[Path]:
    size = index.stat().st_size
    at_most("manifest_bytes", size, f"{index}: {size:,} bytes", WeightsError)
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is no index of shards ({type(error).__name__}: {error})") from error
    try:
        files = [below(index.parent, name, f"{index}: the name of a file") for name in names]
    except UnsafeNameError as error:
        raise WeightsError(str(error)) from error
    for name, file in zip(names, files, strict=True):
        if file.suffix != ".safetensors" and file.suffix not in PICKLES:
            raise WeightsError(f"{index} names {name}, which is no checkpoint file")
        if not file.is_file():
            raise WeightsError(f"{index} names {name}, and there is no such file")
    return files


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(str(file), "pt")
    except SafetensorError as error:
        raise WeightsError(f"{file} is no safetensors file ({error})") from error


def _unpickled(file: Path) -> dict[str, Tensor]:
    content = unpickled(file)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in ("state_dict", "module") if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{file} holds no state dict: expected tensors by name")
    return dict(content)


_DAMAGED = (
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, struct.error),
)
"""What torch's reader raises where a pickle's steps make no sense."""


def unpickled(source: Path | IO[bytes], name: str = "") -> Any:
    """What ``torch.save`` wrote: tensors and plain containers on the CPU.

    Args:
        source: a file, which is mapped where that is possible, or an open one.
        name: for messages; default: the path.

    Raises:
        WeightsError: it holds more than that, which is not run; it is packed; it is damaged.
    """
    name = name or str(source)
    try:
        if packed(source):
            raise WeightsError(f"{name}: {PACKED}")
        try:
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path))
        except RuntimeError as error:  # the format before PyTorch 1.6 cannot be mapped
            if "mmap" not in str(error):
                raise
            content = torch.load(source, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        why = " ".join(str(error).split("WeightsUnpickler error:")[-1].split("Check the doc")[0].split())[:200]
        if "Unsupported operand" in why or "load key" in why:
            raise WeightsError(f"{name} is no PyTorch file ({why})") from error
        raise WeightsError(
            f"{name} holds more than tensors, and reading that could run any code ({why}). Nothing of it was run. "
            f"If you trust it, convert it where it was made: safetensors.torch.save_file(state_dict, ...)"
        ) from error
    except _DAMAGED as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{name} is no PyTorch file ({type(error).__name__}: {error})") from error
    return content


PACKED = "holds packed members, which torch does not write and which may unpack to any size"


def packed(source: Path | IO[bytes]) -> bool:
    """Whether a zip archive, as which ``torch.save`` writes, holds a member that is larger than what is stored of it.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with ZipFile(source) as archive:
            return any(one.compress_type != ZIP_STORED for one in archive.infolist())
    except (BadZipFile, ValueError, NotImplementedError):  # an older format, or damaged
        return False
    finally:
        if not isinstance(source, Path):
            source.seek(0)
