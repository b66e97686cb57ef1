"""Weights that a run's checkpoint does not hold, because they do not train and are in a file anyway.

Stage 1 trains a projector of some thousand parameters beside an encoder and a decoder that are as they were released: a
checkpoint that holds all is a copy of both. So it says instead which tensors are elsewhere, in which file, and what
they were, by a digest of their bytes in the dtype that they were trained beside. Whoever opens the checkpoint builds
the parts from their files, as the run did, and the tensors are put back and compared: what is gone or has changed is an
error, and never a silent other model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dslight.checkpoints.complete import REST
from dslight.checkpoints.read import unpickled
from dslight.components.component import whole
from dslight.errors import WeightsError
from dslight.upstream.torch import bytes_of, versions_of

KEY = "elsewhere"
"""Of a checkpoint: part -> {file, dtypes by name, digest}."""


class Elsewhere:
    """Leaves out of checkpoints what is in files.

    Args:
        files: part -> the file that its weights were read from; ``None``: the one that the part itself names
            (``pretrained``).
    """

    def __init__(self, files: Mapping[str, str | None]) -> None:
        self.files = dict(files)
        self._known: dict[str, tuple[Any, dict[str, Any]]] = {}

    def leave_out(self, checkpoint: dict[str, Any], parts: Mapping[str, nn.Module]) -> None:
        """Take what does not train out of a checkpoint that is about to be written; of a sharded model, on all ranks.

        Of a part that trains in part all is held, but for the base weights of one with adapters.
        """
        state = checkpoint["state_dict"]
        left: dict[str, Any] = {}
        for part, file in self.files.items():
            named = dict(parts[part].named_parameters(remove_duplicate=False))
            frozen = {f"{part}.{name}": p for name, p in named.items() if not p.requires_grad}
            frozen = {name: parameter for name, parameter in frozen.items() if name in state}
            if not frozen or (len(frozen) < len(named) and not getattr(parts[part], "adapted", False)):
                continue
            sharded = any(isinstance(parameter, DTensor) for parameter in frozen.values())
            now = "sharded" if sharded else versions_of(frozen.values())  # gathering all again would take minutes
            if part not in self._known or self._known[part][0] != now:
                tensors = {name: state[name] for name in frozen}
                dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
                self._known[part] = now, {"file": file, "dtypes": dtypes, "digest": _digest(tensors)}
            left[part] = self._known[part][1]
        gone = {name for said in left.values() for name in said["dtypes"]}
        checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name not in gone}
        if left:
            checkpoint[KEY] = left


def put_back(state: dict[str, Any], said: Any, own: Mapping[str, Tensor], path: str | Path) -> None:
    """Complete the ``state`` of a checkpoint with the tensors that are ``elsewhere``, as the model has them, which was
    built of its files.

    Args:
        state: the checkpoint's ``state_dict``.
        said: what the checkpoint says under :data:`KEY`.
        own: the model's tensors by the same names; of a sharded model, every rank gathers them.
        path: of the checkpoint, for messages.

    Raises:
        WeightsError: naming the part and its file, where they are not those that the run was trained with.
    """
    for part, (file, dtypes, digest) in _understood(said, path).items():
        lacking = [name for name in dtypes if name not in own]
        if lacking:
            raise WeightsError(f"{path} is of another model: {lacking[0]} is not in this one")
        found = {name: own[name].detach().to(dtype) for name, dtype in dtypes.items()}
        if _digest(found) != digest:
            where = f"the file {file}" if file else f"the checkpoint that model.{part} names (pretrained)"
            raise WeightsError(
                f"{path} does not hold the weights of the {part}, which did not train; they are read from {where}, and "
                f"are not those that the run was trained with. Put that file back as it was"
            )
        state.update(found)


def elsewhere(path: Path) -> dict[str, str | None]:
    """Part -> file, of the parts that a run's checkpoint does not hold, whole or sharded.

    Raises:
        WeightsError: it cannot be read, or makes no sense.
    """
    if path.suffix != ".ckpt" or not path.exists():
        return {}
    content = rest_of(path) if path.is_dir() else unpickled(path)
    said = content.get(KEY) if isinstance(content, Mapping) else None
    return {part: file for part, (file, _, _) in _understood(said, path).items()}


def rest_of(folder: Path) -> dict[str, Any]:
    """What a sharded checkpoint holds beside the tensors of model and optimizer; one of weights alone: nothing.

    Raises:
        WeightsError: it cannot be read.
    """
    file = folder / REST
    found = unpickled(file) if file.exists() else {}
    if not isinstance(found, dict):
        raise WeightsError(f"{file} holds a {type(found).__name__} where values by name are expected")
    return found


def _understood(said: Any, path: str | Path) -> dict[str, tuple[str | None, dict[str, torch.dtype], str]]:
    found: dict[str, tuple[str | None, dict[str, torch.dtype], str]] = {}
    try:
        for part, one in dict(said or {}).items():
            dtypes = {str(name): getattr(torch, str(kind)) for name, kind in dict(one["dtypes"]).items()}
            if not all(isinstance(kind, torch.dtype) for kind in dtypes.values()):
                raise TypeError("a dtype that is none")
            found[str(part)] = (None if one["file"] is None else str(one["file"])), dtypes, str(one["digest"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path}: what it says of weights elsewhere makes no sense ({error})") from error
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    made = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        made.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        made.update(bytes_of(whole(tensor)))
    return made.hexdigest()
