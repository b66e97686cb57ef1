"""Sharding (FSDP2): the parts know nothing of it; this file applies it, in one order, to the root that is trained.

Each part names its ``shard_units``; every unit becomes an FSDP2 group of its own, the rest (embeddings, heads,
projector, gates) one group at the root. Tied weights stay tied because they are all in the root's group. Choose the
strategy in the recipe: :class:`dslight.train.strategy.Sharded`, or Lightning's ``ModelParallelStrategy`` with explicit
sizes (its ``auto`` shards nothing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from dslight.train.strategy import REPLICATE, SHARD
from dslight.upstream.torch import replace_tensors


def shard(
    root: nn.Module,
    parts: Mapping[str, nn.Module],
    mesh: DeviceMesh,
    methods: Sequence[str] = (),
    policy: MixedPrecisionPolicy | None = None,
    offload: OffloadPolicy | None = None,
) -> None:
    """Shard ``root`` over the mesh, in place; a second call does nothing.

    Args:
        root: the module that the Trainer drives.
        parts: its parts; those with ``shard_units`` are sharded unit by unit.
        mesh: has a dimension ``data_parallel`` (Lightning's ModelParallelStrategy makes it), or is a hybrid one with
            ``replicate`` and ``shard``.
        methods: methods of ``root`` besides ``forward`` that need whole parameters, e.g. ``generate``.
        policy: the dtypes of computation and of the reduction of gradients; default: the parameters' own.
        offload: where parameters lie while no layer uses them; default: on the device.

    Raises:
        ValueError: for a mesh of tensor parallelism, where nothing would be sharded and all ranks read the same data.
    """
    hybrid = mesh.mesh_dim_names == (REPLICATE, SHARD)
    over = mesh if hybrid else mesh["data_parallel"]
    if over.size() < mesh.size():
        raise ValueError(
            f"trainer.strategy: tensor_parallel_size is {mesh.size() // over.size()} (`auto`: all of a node), but "
            f"parts are sharded over data only: set data_parallel_size: {mesh.size()}, tensor_parallel_size: 1"
        )
    if isinstance(root, FSDPModule):
        return
    policy, offload = policy or MixedPrecisionPolicy(), offload or OffloadPolicy()
    for part in parts.values():
        for unit in getattr(part, "shard_units", []):
            fully_shard(unit, mesh=over, mp_policy=policy, offload_policy=offload)
    fully_shard(root, mesh=over, mp_policy=policy, offload_policy=offload)
    for method in methods:
        register_fsdp_forward_method(root, method)


def materialise(root: nn.Module, device: torch.device) -> None:
    """Give every parameter that was made without memory its own, this process's share alone; nothing is written into
    it. Tied ones stay tied.
    """
    if any(parameter.is_meta for parameter in root.parameters()):
        replace_tensors(root, lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)


def states_by_name(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An optimizer's state dict in which parameters go by name instead of by number.

    Numbers mean the order of the optimizer's groups to torch, but Lightning's ``ModelParallelStrategy`` writes and
    reads them as the order of the model's parameters: a state would land on another parameter, silently if the shapes
    agree.

    Args:
        state: as ``Optimizer.state_dict`` gives it; one that goes by name already is left as it is.
        names: of all parameters, in the order that the numbers mean.
    """
    return _renamed(state, dict(enumerate(names)))


def states_by_number(state: Mapping[str, Any]) -> dict[str, Any]:
    """What ``Optimizer.load_state_dict`` takes, from what :func:`states_by_name` gave."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _renamed(state, {name: number for number, name in enumerate(names)})


def _renamed(state: Mapping[str, Any], to: Mapping[Any, Any]) -> dict[str, Any]:
    groups = state.get("param_groups", [])
    return {
        **state,
        "state": {to.get(key, key): value for key, value in state.get("state", {}).items()},
        "param_groups": [{**group, "params": [to.get(key, key) for key in group["params"]]} for group in groups],
    }
