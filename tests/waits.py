"""Counts, on a CPU, where a GPU would make the host wait for it: numbers that are read, shapes that depend on values,
and blocking copies to or from the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READ = frozenset(
    ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive",
     "equal", "is_nonzero", "bincount", "repeat_interleave")
)  # fmt: skip


class Waits(TorchDispatchMode):
    """While it is entered, counts those operations by name, and all that are ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.seen[name] += 1
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name in READ and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
            self.counts[name] += 1
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            self.counts["boolean index"] += any(
                x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1]) if x is not None
            )
        if name in ("_to_copy", "copy_"):
            crosses = {x.device.type for x in [*inputs, out]} == {"cpu", "cuda"}
            self.counts["blocking copy"] += crosses and not (kwargs.get("non_blocking") or True in args[2:3])
        self.counts = +self.counts
        return out
