"""From a released multimodal model to tensors under our names, file by file, with an account of each.

A released checkpoint is read as the installed transformers would name and cut its tensors in memory, so that one table
per family is enough for all the forms in which it was ever published. Only safetensors are read: nothing is unpickled,
and none of a stranger's code is run. What a recipe has a place for and the checkpoint lacks is an error; what it holds
beyond is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslight.checkpoints.converted import Converted
from dslight.checkpoints.families.family import Family
from dslight.checkpoints.names import harmless
from dslight.checkpoints.read import files_of
from dslight.checkpoints.share import identity
from dslight.errors import WeightsError

SHOWN = 5


@dataclass
class Account:
    """What becomes of the tensors of a released checkpoint.

    Attributes:
        names: transformers' names in memory -> ours.
        left: those that the recipe has no place for -> why; empty: not known.
    """

    names: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """What is left out, by reason."""
        for reason in dict.fromkeys(self.left.values()):
            names = [name for name, why in self.left.items() if why == reason]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"not in the recipe: {', '.join(names[:SHOWN])}{more}" + (f" ({reason})" if reason else "")


def opened(folder: Path, config: Any, kind: Any, inside: str = "") -> Converted:
    """A released checkpoint, as transformers' model of ``config`` has its tensors.

    Args:
        folder: of the checkpoint.
        config: of the whole model.
        kind: transformers' auto class that makes it.
        inside: what the names of its tensors begin with, of a release of several models.

    Raises:
        WeightsError: it has none but pickled weights.
    """
    for file in files_of(folder):
        if file.suffix != ".safetensors":
            raise WeightsError(f"{file}: only safetensors are imported; convert it where it was made")
    with torch.device("meta"):
        network = kind.from_config(config)
    return Converted(folder, network, inside)


def account(family: Family, config: Any, file: Converted, parts: Mapping[str, Any]) -> Account:
    """What becomes of each tensor, before one is read.

    Args:
        family: whose names count.
        config: of the whole model.
        file: see :func:`opened`.
        parts: of the model that the recipe makes, which may be without memory.

    Raises:
        WeightsError: a part has a place for a tensor that the file lacks, or holds in another shape.
    """
    own = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.own_state().items()}
    found, problems = Account(left=dict.fromkeys(file.beside, "of another model of the release")), []
    for name, shape in file.shapes.items():
        new = family.ours(name, config)
        if new is None or new not in own:
            found.left[name] = family.reason(name) or harmless(new or name) or ""
            continue
        if new in family.turned:
            shape = shape[::-1]
        if shape != tuple(own[new].shape):
            problems.append(f"{name} is {shape} in the file, {new} {tuple(own[new].shape)} in the recipe")
        found.names[name] = new
    held = {(*identity(own[new]), *own[new].shape) for new in found.names.values()}  # a head may be the embedding
    missing = [n for n, tensor in own.items() if (*identity(tensor), *tensor.shape) not in held]
    problems += [f"missing {name} {tuple(own[name].shape)}" for name in missing if own[name].numel()]
    if problems:
        more = f"\n  ... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WeightsError(
            f"{file.path}: is no {family.title} as the recipe has it:\n  " + "\n  ".join(problems[:SHOWN]) + more
        )
    return found


def convert(family: Family, config: Any, file: Converted, found: Account) -> Iterator[tuple[str, Tensor]]:
    """The tensors under our names, one after the other."""
    for name, tensor in file.tensors(dict.fromkeys(found.names)):
        new = found.names[name]
        yield new, family.changed(new, tensor.T if new in family.turned else tensor, config)


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, most: int) -> None:
    """Write ``model.safetensors``, or shards of about ``most`` bytes and their index. One of them is in memory."""
    from safetensors.torch import save_file

    table: dict[str, str] = {}
    held: dict[str, Tensor] = {}
    number, total = 1, 0

    def flush(name: str) -> None:
        save_file(held, folder / name, metadata={"format": "pt"})
        table.update(dict.fromkeys(held, name))
        held.clear()

    for name, tensor in tensors:
        size = tensor.numel() * tensor.element_size()
        if held and sum(one.numel() * one.element_size() for one in held.values()) + size > most:
            flush(f"model-{number:05}.safetensors")
            number += 1
        held[name] = tensor.contiguous()
        total += size
    if not table:
        flush("model.safetensors")
        return
    flush(f"model-{number:05}.safetensors")
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
