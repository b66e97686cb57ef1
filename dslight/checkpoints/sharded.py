"""Sharded checkpoints (a folder per checkpoint, a file per process), read without running anything that they hold.

torch keeps the table of contents of such a folder (``.metadata``) as a pickle and reads it with ``pickle.load``, as it
does values that are no tensors: whoever wrote the folder could have any code run. Decided here:

* The table is read as data. Its classes are stood for by empty ones that are made for this one reading; what comes out
  is checked field by field, and torch's own objects are built of it. A table that names anything else is refused.
* Values that are no tensors are read as torch reads tensors (``weights_only``).
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem

from dslight.checkpoints.complete import TABLE, name_of_file, size_of
from dslight.checkpoints.elsewhere import KEY, rest_of
from dslight.checkpoints.read import PACKED, packed, unpickled
from dslight.errors import WeightsError
from dslight.limits import at_most
from dslight.upstream.torch import part_of_a_file, piece_of_a_checkpoint

# --- the table of contents


def read_table(folder: Path) -> Metadata:
    """The table of contents of a sharded checkpoint, as torch's reader takes it.

    Raises:
        WeightsError: there is none; it is damaged; it holds more than a table; it names files outside of the folder.
    """
    path = folder / TABLE
    try:
        size = path.stat().st_size
        at_most("manifest_bytes", size, f"{path}: {size:,} bytes", WeightsError)
        raw = _Unpickler(BytesIO(path.read_bytes())).read()
        tensors = {_text(name): _described(value) for name, value in _mapping(raw["state_dict_metadata"]).items()}
        places = {_index(key): _place(folder, value) for key, value in _mapping(raw["storage_data"]).items()}
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    except _MoreThanATableError as error:
        raise WeightsError(
            f"{path} holds more than a table of contents, and reading that could run any code ({error}). Nothing of it "
            f"was run. If you trust it, convert it where it was made: dslight export"
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # damaged bytes lead the parser anywhere
        raise WeightsError(f"{path} is no table of contents ({type(error).__name__}: {error})") from error
    return Metadata(tensors, storage_data=places)


class _MoreThanATableError(Exception):
    """A name that no table needs."""


class _Standin:
    """What is read in place of one of torch's classes: its fields as they are in the file."""

    fields: Any = None

    def __setstate__(self, state: Any) -> None:
        self.fields = state

    def __hash__(self) -> int:  # keys of a mapping get their fields before they are put into it
        return hash(repr(self.fields))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Standin) and repr(self.fields) == repr(other.fields)

    def __getitem__(self, name: str) -> Any:
        return _mapping(self.fields)[name]

    def get(self, name: str) -> Any:
        return _mapping(self.fields).get(name)


_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "BytesStorageMetadata", "TensorStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
}  # fmt: skip
_NOTHING = {
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath", "Path")),
}
"""Of no interest here: the layout in memory, and where the checkpoint lay."""


class _Unpickler(pickle.Unpickler):
    """Builds stand-ins, tuples and torch's names of dtypes, and nothing else."""

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file)
        self.made: dict[str, type[_Standin]] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        if global_name in _CLASSES.get(module_name, ()):
            return self.made.setdefault(global_name, type(global_name, (_Standin,), {}))  # no class of ours is touched
        if (module_name, global_name) == ("torch", "Size"):
            return tuple
        if (module_name, global_name) in _NOTHING:
            return _nothing
        found = vars(torch).get(global_name) if module_name == "torch" else None
        if isinstance(found, torch.dtype | torch.layout):
            return found
        raise _MoreThanATableError(f"{module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Any:
        raise _MoreThanATableError("a reference to something outside")

    def read(self) -> _Standin:
        raw = self.load()
        if not isinstance(raw, _Standin) or type(raw).__name__ != "Metadata":
            raise ValueError(f"holds a {type(raw).__name__}")
        return raw


def _nothing(*_: Any) -> None:
    return None


def _described(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if _kind(value) == "BytesStorageMetadata":
        return BytesStorageMetadata()
    if _kind(value) != "TensorStorageMetadata":
        raise ValueError(f"a {_kind(value)} where a tensor is described")
    dtype = value["properties"].fields[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a dtype of {dtype!r}")
    chunks = [ChunkStorageMetadata(_size(c["offsets"]), _size(c["sizes"])) for c in value["chunks"]]
    return TensorStorageMetadata(TensorProperties(dtype=dtype), _size(value["size"]), chunks)


def _index(key: Any) -> MetadataIndex:
    offset, index = key.get("offset"), key.get("index")
    return MetadataIndex(
        _text(key["fqn"]), None if offset is None else _size(offset), None if index is None else size_of(index)
    )


def _place(folder: Path, value: Any) -> Any:
    if value.get("transform_descriptors"):
        raise ValueError(f"is packed ({value.get('transform_descriptors')!r}), which this program does not write")
    name = name_of_file(folder, value["relative_path"])
    return piece_of_a_checkpoint(name, size_of(value["offset"]), size_of(value["length"]))


def _kind(value: Any) -> str:
    return type(value).__name__ if isinstance(value, _Standin) else f"value of type {type(value).__name__}"


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where a mapping is expected")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} where a name is expected")
    return value


def _size(value: Any) -> torch.Size:
    if not isinstance(value, tuple):
        raise ValueError(f"a {type(value).__name__} where a shape is expected")
    return torch.Size([size_of(one) for one in value])


# --- its tensors


class _Reader(FileSystemReader):
    """torch's reader with a table that was read as data; what is unpacked while it is read has no place here."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.table = read_table(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The table."""
        return self.table

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """As torch, once all pieces are plain."""
        for file, items in self._by_file(plan).items():
            with (Path(self.path) / file).open("rb") as stream:
                for item in items:
                    at = self.storage_data[item.storage_index]
                    if packed(part_of_a_file(stream, at.offset, at.length)):
                        raise WeightsError(f"{Path(self.path) / file}: {item.storage_index.fqn}: {PACKED}")
        return super().read_data(plan, planner)

    def _by_file(self, plan: LoadPlan) -> dict[str, list[ReadItem]]:
        found: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            found.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        return found


class _Planner(DefaultLoadPlanner):
    """torch's planner, whose values that are no tensors are plain containers."""

    def load_bytes(self, read_item: ReadItem, value: BytesIO) -> None:
        """As torch, once the value has turned out to be plain."""
        name = read_item.dest_index.fqn
        plain = BytesIO()
        torch.save(unpickled(value, f"{name} of the checkpoint"), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def load_state(state: dict[str, Any], folder: Path) -> None:
    """Fill ``state`` with what a sharded checkpoint holds under its names; every process reads its own share.

    Raises:
        WeightsError: see :func:`read_table`; a value needs more than tensors and plain containers; one is not there.
    """
    reader = _Reader(folder)
    try:
        load(state, storage_reader=reader, planner=_Planner())
    except CheckpointException as error:
        wrong = next(iter(error.failures.values()))[0]
        if isinstance(wrong, WeightsError):
            raise wrong from error
        raise WeightsError(f"{folder}: cannot be read ({type(wrong).__name__}: {wrong})") from error


def restore(strategy: Any, checkpoint: str | os.PathLike[str], weights_only: bool | None = None) -> dict[str, Any]:
    """What ``strategy.load_checkpoint`` of Lightning's ``ModelParallelStrategy`` does (model and optimizers filled, the
    rest returned), without running anything that the checkpoint holds.

    Raises:
        WeightsError: see :func:`load_state`.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    path = Path(strategy.broadcast(checkpoint))
    if not path.is_dir():
        return _restore_whole(strategy, path)
    model, strict = strategy.model, strategy.lightning_module.strict_loading
    rest = rest_of(path)
    whole = get_model_state_dict(model)
    state: dict[str, Any] = {"state_dict": held(whole, rest)}
    load_state(state, path)
    model.load_state_dict({**whole, **state["state_dict"]}, strict=strict)
    for number, optimizer in enumerate(strategy.optimizers):
        state = {f"optimizer_{number}": get_optimizer_state_dict(model, optimizer)}
        load_state(state, path)
        (found,) = state.values()
        set_optimizer_state_dict(model, optimizer, optim_state_dict=found, options=StateDictOptions(cpu_offload=True))
    return rest


def held(state: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's state, what a sharded checkpoint holds, whose other values are ``rest``."""
    gone = {name for one in (rest.get(KEY) or {}).values() for name in one["dtypes"]}
    return {name: tensor for name, tensor in state.items() if name not in gone}


def _restore_whole(strategy: Any, path: Path) -> dict[str, Any]:
    """From a checkpoint that is a file, and may not hold what is elsewhere, which is in the model already."""
    module: Any = strategy.lightning_module
    strict = module.strict_loading
    if said := unpickled(path).get(KEY):
        held = {*unpickled(path)["state_dict"], *(name for one in said.values() for name in one["dtypes"])}
        if lacking := sorted(held ^ set(module.state_dict())):
            raise WeightsError(f"{path} is of another model: {', '.join(lacking[:3])}")
        module.strict_loading = False
    try:
        return type(strategy).load_checkpoint(strategy, path, weights_only=True)
    finally:
        module.strict_loading = strict
