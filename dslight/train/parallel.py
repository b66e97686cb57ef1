"""Sharding (FSDP2): the parts know nothing of it; this file applies it, in one order, to whatever root the Trainer drives.

Each part names its ``shard_units``; every unit becomes an FSDP2 group of its own, the rest (embeddings, heads, projector, gates) one
group at the root. Tied weights stay tied because they are all in the root's group. Choose the strategy in the recipe:
``lightning.pytorch.strategies.ModelParallelStrategy`` with explicit sizes (its ``auto`` silently shards nothing on one node).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method


def shard(root: nn.Module, parts: Mapping[str, nn.Module], mesh: DeviceMesh, methods: Sequence[str] = ()) -> None:
    """Shard ``root`` over the mesh's data-parallel dimension, in place; a second call does nothing.

    Args:
        root: the module that the Trainer drives.
        parts: its parts; those with ``shard_units`` are sharded unit by unit.
        mesh: has a dimension ``data_parallel`` (Lightning's ModelParallelStrategy makes it).
        methods: methods of ``root`` besides ``forward`` that need whole parameters, e.g. ``generate``.

    Raises:
        ValueError: when the mesh is for tensor parallelism, where nothing would be sharded and all ranks read the same data.
    """
    over = mesh["data_parallel"]
    if over.size() < mesh.size():
        raise ValueError(
            f"trainer.strategy: tensor_parallel_size is {mesh.size() // over.size()} (`auto` means all processes of a node), but "
            f"parts are sharded over data only: set data_parallel_size: {mesh.size()}, tensor_parallel_size: 1"
        )
    if isinstance(root, FSDPModule):
        return
    for part in parts.values():
        for unit in getattr(part, "shard_units", []):
            fully_shard(unit, mesh=over)
    fully_shard(root, mesh=over)
    for method in methods:
        register_fsdp_forward_method(root, method)
