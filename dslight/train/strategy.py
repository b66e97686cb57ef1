"""How processes share the model: every parameter split over all of them, or over groups that hold copies (FSDP2, HSDP).

Lightning's ``ModelParallelStrategy`` wants its sizes written down, so that a recipe fits one number of processes, and
knows no copies. Decided here: the sizes follow from the processes that there are, and the one thing to choose is how
many copies of the model they hold. One (fully sharded) needs the least memory; one per node (``replicate: nodes``,
hybrid sharding) gathers parameters over the fast links inside of a node and sends gradients alone between nodes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy

from dslight.upstream.lightning import set_mesh, set_sizes

REPLICATE, SHARD = "replicate", "shard"
"""The names of a hybrid mesh's dimensions, in the order that ``fully_shard`` expects."""


class Sharded(ModelParallelStrategy):
    """FSDP2 over however many processes there are.

    Args:
        replicate: copies of the model, each of them split over ``world size / replicate`` neighbouring processes; 1:
            fully sharded; ``nodes``: a copy per node (hybrid sharding).
        param_dtype: of the parameters that are gathered and computed with, e.g. ``bfloat16``; what is kept, trained
            and saved stays as the parts are (torch's ``MixedPrecisionPolicy``). Default: as they are.
        reduce_dtype: that gradients are summed over processes in; default: ``param_dtype``'s.
        save_distributed_checkpoint: one file per process in a folder; false: rank 0 gathers everything into one file.
        process_group_backend: default: nccl on GPUs, gloo on CPUs.
        timeout: of a collective.

    Raises:
        ValueError: starting with the key to change.

    Example:
        >>> import lightning
        >>> trainer = lightning.Trainer(strategy=dslight.Sharded(), accelerator="cpu", devices=1)
        >>> isinstance(trainer.strategy, dslight.Sharded)  # in a call of fit: trainer={"strategy": dslight.Sharded()}
        True
    """

    def __init__(
        self,
        replicate: int | Literal["nodes"] = 1,
        param_dtype: str | None = None,
        reduce_dtype: str | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        if isinstance(replicate, int) and replicate < 1:
            raise ValueError(f"replicate: must be at least 1 copy of the model, got {replicate}")
        self.replicate = replicate
        self.policy = MixedPrecisionPolicy(
            param_dtype=_dtype("param_dtype", param_dtype), reduce_dtype=_dtype("reduce_dtype", reduce_dtype)
        )

    def setup_environment(self) -> None:
        """Meet the others and lay out the mesh."""
        world = self.num_nodes * self.num_processes
        copies = copies_of(self.replicate, world, self.num_nodes)
        set_sizes(self, data_parallel=world)
        super().setup_environment()
        if copies > 1:
            shape = (copies, world // copies)
            mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=(REPLICATE, SHARD))
            assert self.lightning_module is not None
            set_mesh(self, self.lightning_module, mesh)

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Every process reads data of its own, copies of the model or not."""
        return {"num_replicas": self.world_size, "rank": self.global_rank}


def copies_of(replicate: int | str, world_size: int, nodes: int) -> int:
    """The number of copies of the model.

    Raises:
        ValueError: when the processes cannot be divided among them.
    """
    copies = nodes if replicate == "nodes" else int(replicate)
    if world_size % copies:
        raise ValueError(
            f"replicate: {copies} copies of the model cannot share {world_size} processes evenly; choose a divisor"
        )
    return copies


def _dtype(name: str, value: str | None) -> torch.dtype | None:
    found = None if value is None else getattr(torch, value, None)
    if value is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"{name}: {value!r} is no floating-point dtype of torch; bfloat16, float16 and float32 are")
    return found
