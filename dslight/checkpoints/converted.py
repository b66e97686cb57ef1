"""Checkpoints of transformers whose tensors have other names, or are cut otherwise, than those of its model in memory:
the file as if it held these.

A mixture of experts keeps each expert by itself in the file and all of them in one tensor in memory; composite models
renamed their halves. Transformers has a table of that; it is applied here to shapes before anything is read, and then
to one group of tensors at a time, of which each process keeps its share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslight.checkpoints.read import Share, shapes, tensors
from dslight.upstream.transformers import Joined, joined


class File:
    """A checkpoint as it is."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.shapes = shapes(path)

    def tensors(self, wanted: Mapping[str, Share | None]) -> Iterator[tuple[str, Tensor]]:
        """As :func:`dslight.checkpoints.read.tensors`."""
        return tensors(self.path, wanted)


class Converted(File):
    """A checkpoint as ``network``, a model of transformers, names and cuts its tensors.

    Args:
        path: of the checkpoint.
        network: the model, which may be without memory.
        inside: what the names of its tensors begin with, of a model that is a part of the checkpoint's; others are
            ``beside``.
    """

    def __init__(self, path: str | Path, network: Any, inside: str = "") -> None:
        super().__init__(path)
        self.network, self.groups, self.inside = network, [], inside
        self.beside = [name for name in self.shapes if not name.startswith(inside)]
        stored = {name.removeprefix(inside): shape for name, shape in self.shapes.items() if name.startswith(inside)}
        self.shapes = {}
        for group in joined(network, stored):
            made = self._made(group, lambda name: torch.empty(stored[name], device="meta"))
            self.groups.append((group, set(made)))
            self.shapes |= {name: tuple(tensor.shape) for name, tensor in made.items()}

    def _made(self, group: Joined, tensor: Any) -> dict[str, Tensor]:
        try:
            return group.made(self.network, tensor)
        except (RuntimeError, ValueError, KeyError):  # tensors that do not go together: unexpected under their own name
            return {name: tensor(name) for names in group.sources.values() for name in names}

    def tensors(self, wanted: Mapping[str, Share | None]) -> Iterator[tuple[str, Tensor]]:
        """As :func:`dslight.checkpoints.read.tensors`; what a group is made of is read whole."""
        for group, made in self.groups:
            if not made & wanted.keys():
                continue
            names = [name for each in group.sources.values() for name in each]
            if group.transform is None:  # its own share can be read alone
                for _, tensor in tensors(self.path, {self.inside + names[0]: wanted[group.target]}):
                    yield group.target, tensor
                continue
            read = dict(tensors(self.path, dict.fromkeys(self.inside + name for name in names)))
            for name, tensor in self._made(group, lambda name, read=read: read[self.inside + name]).items():
                if name in wanted:
                    part = wanted[name]
                    yield name, tensor if part is None else tensor[part]
