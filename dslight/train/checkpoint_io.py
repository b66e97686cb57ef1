"""How a checkpoint file reaches the disk: written straight beside its place, and renamed when it is whole.

Decided here, instead of in Lightning's ``TorchCheckpointIO``: that one makes the whole file in memory first, and on a
local disk writes it by way of ``$TMPDIR``, which is often another and small file system, and keeps what a killed
process has left there.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor

from dslight.files.atomic import replacing


class StreamedCheckpoint(TorchCheckpointIO):
    """Lightning's own, but for how a file of a local disk is written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            NoSpaceError: naming the file and the bytes it needs.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, tensor_bytes(checkpoint)) as file:
            stream = _Stream(file)
            try:
                torch.save(checkpoint, stream)  # type: ignore[arg-type]
            except RuntimeError:
                if stream.error is not None:  # which torch's own complaint at its end hides
                    raise stream.error from None
                raise


class _Stream:
    """What torch writes into; remembers why it could not."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.error = file, None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self.file.flush()


_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def unreadable(node: Any, path: str = "") -> tuple[str, str] | None:
    """The first value of nested containers that could be written, and not be read again without running what a file
    says: its path and its type. ``None``: there is none.
    """
    if type(node) in _PLAIN or isinstance(node, Tensor):
        return None
    if type(node) in (dict, list, tuple):
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        found = (unreadable(key, path) or unreadable(value, f"{path}.{key}".lstrip(".")) for key, value in inside)
        return next(filter(None, found), None)
    file = BytesIO()
    try:
        torch.save(node, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # whatever a stranger's object raises when it is pickled
        return path, f"{type(node).__module__}.{type(node).__qualname__}"
    return None


def tensor_bytes(node: Any) -> int:
    """Bytes of all tensors in nested containers, each memory counted once; of a sharded one, the whole."""
    seen: dict[int, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, Tensor):
            local = node.to_local() if isinstance(node, DTensor) else node
            seen[local.data_ptr() or id(node)] = node.nbytes
        elif isinstance(node, Mapping):
            for value in node.values():
                visit(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                visit(value)

    visit(node)
    return sum(seen.values())
