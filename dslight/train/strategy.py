"""How processes share the model: every parameter split over all of them, or over groups that hold copies (FSDP2, HSDP).

Lightning's ``ModelParallelStrategy`` wants its sizes written down, so that a recipe fits one number of processes, and
knows no copies. Decided here: the sizes follow from the processes that there are, and the one thing to choose is how
many copies of the model they hold. One (fully sharded) needs the least memory; one per node (``replicate: nodes``,
hybrid sharding) gathers parameters over the fast links inside of a node and sends gradients alone between nodes.
"""

from __future__ import annotations

from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint import async_save as save_in_the_background
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy

from dslight.upstream.lightning import REST, set_mesh, set_sizes

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
        async_save: a checkpoint is copied to the memory of the host, and written while the training goes on; the one
            of a run's end, or of a stop, is waited for.
        offload: parameters, gradients and the optimizer's states lie in the memory of the host, where the optimizer
            steps; layers come to the GPU when they are used (torch's ``CPUOffloadPolicy``). On CPUs it changes nothing.
        process_group_backend: default: nccl on GPUs (beside gloo, with ``offload``), gloo on CPUs.
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
        async_save: bool = False,
        offload: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        if async_save and not save_distributed_checkpoint:
            raise ValueError("async_save: true needs save_distributed_checkpoint: true; what is gathered is waited for")
        pins = torch.accelerator.is_available()
        if offload and pins and process_group_backend is None:  # norms of gradients are summed where gradients lie
            process_group_backend = "cpu:gloo,cuda:nccl"
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

        self.async_save, self.timeout = async_save, timeout
        self.offload = CPUOffloadPolicy(pin_memory=pins) if offload else OffloadPolicy()
        self._group: Any = None
        self._saving: Future[Any] | None = None

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
        if self.async_save and self._group is None:  # a thread's collectives may not come between the training's
            self._group = dist.new_group(backend="gloo", timeout=self.timeout)

    @property
    def parameter_device(self) -> torch.device:
        """Where this process keeps its share of the parameters."""
        return torch.device("cpu") if isinstance(self.offload, CPUOffloadPolicy) else self.root_device

    def model_to_device(self) -> None:
        """Move the model; of one whose parameters stay in the host's memory, the buffers alone."""
        if not isinstance(self.offload, CPUOffloadPolicy):
            super().model_to_device()
            return
        assert self.model is not None
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(self.root_device))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """As Lightning's; with ``async_save`` it returns when everything is copied, and :meth:`finish_saving` waits."""
        self.finish_saving()
        if not self.async_save or storage_options is not None:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        path.mkdir(parents=True, exist_ok=True)
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": one for i, one in enumerate(checkpoint.pop("optimizer_states", []))}
        found: Any = save_in_the_background(state, checkpoint_id=path, process_group=self._group)
        self._saving = found
        if self.global_rank == 0:
            torch.save(checkpoint, path / REST)

    def is_saved(self) -> bool:
        """Whether the checkpoint that was begun last is whole, as the first process knows it: torch has it write the
        table of contents when all have written their files. False also where it could not be written.
        """
        return self._saving is None or (self._saving.done() and self._saving.exception() is None)

    def finish_saving(self, timeout: float | None = None) -> None:
        """Wait for the checkpoint that is being written; all processes together.

        Args:
            timeout: seconds; default: as long as it takes.

        Raises:
            CheckpointException: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result(timeout)

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
