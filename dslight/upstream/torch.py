"""torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import IO, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

INTERPOLATE: dict[str, Callable[..., Tensor]] = {
    "bilinear": torch._C._nn._upsample_bilinear2d_aa,  # pyright: ignore[reportAttributeAccessIssue]
    "bicubic": torch._C._nn._upsample_bicubic2d_aa,  # pyright: ignore[reportAttributeAccessIssue]
}
"""``(pixels, size, align_corners, out=)``: what ``F.interpolate(..., antialias=True)`` calls, which has no ``out``."""


def storage(tensor: Tensor) -> int:
    """Equal for two tensors that share memory, be it fake or none at all (meta); valid while one of them lives."""
    return tensor.untyped_storage()._cdata


def fake_tensors() -> AbstractContextManager[Any]:
    """Tensors that are made inside have no memory, but the device that they are said to be on, and operations on them
    give such tensors. Others that are met are taken for fake ones.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def real_tensors() -> AbstractContextManager[Any]:
    """Tensors that are made inside have memory, also within :func:`fake_tensors`."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def watch_operations(see: Callable[[str, Any, bool], None]) -> AbstractContextManager[Any]:
    """While the block runs, call ``see(name, args, random)`` at every operation of ATen, e.g. ``aten.cat.default``."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            see(str(func), args, torch.Tag.nondeterministic_seeded in func.tags)
            return func(*args, **(kwargs or {}))

    return Watch()


def count_flops() -> Any:
    """torch's ``FlopCounterMode``; before 2.15 it takes attention on CPUs for nothing."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    counts: dict[Any, Callable[..., int]] = {
        forward: lambda query, key, value, *args, **kwargs: sdpa_flop_count(query, key, value),
        backward: lambda grad, query, key, value, *args, **kwargs: sdpa_backward_flop_count(grad, query, key, value),
    }
    return FlopCounterMode(display=False, custom_mapping=counts)


def replace_tensors(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Put ``change(tensor)`` for every parameter and buffer, in place, as ``Module.to`` does. Where FSDP2 has sharded
    the module it takes notice, and what was tied stays tied.
    """
    module._apply(change)


def versions_of(tensors: Iterable[Tensor]) -> list[Any]:
    """What changes when one of the tensors is written into, replaced or moved; without looking at a value."""
    return [(id(tensor), tensor.device, tensor._version) for tensor in tensors]


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a dense tensor of any dtype and device, row by row."""
    plain = tensor.detach().cpu().contiguous().flatten()
    return memoryview(plain.view(torch.uint8).numpy() if plain.numel() else b"")  # type: ignore[arg-type]


def is_compiled(module: nn.Module) -> bool:
    """Whether ``module``, or one inside it, runs through ``Module.compile``."""
    return any(getattr(one, "_compiled_call_impl", None) is not None for one in module.modules())


def leaves(value: Any) -> list[Any]:
    """What is in tuples, lists, dictionaries and outputs of transformers, nested or not."""
    from torch.utils._pytree import tree_leaves

    return tree_leaves(value)


def own_share(tensor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size and offset, per dimension, of what this process holds of a DTensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, begins = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(sizes), tuple(begins)


def piece_of_a_checkpoint(file: str, offset: int, length: int) -> Any:
    """Where a piece of a sharded checkpoint lies, as the table of contents has it: ``relative_path``, ``offset``,
    ``length``.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    return _StorageInfo(file, offset, length)


def part_of_a_file(file: IO[bytes], offset: int, length: int) -> IO[bytes]:
    """Some bytes of an open file, as a file."""
    from torch.distributed.checkpoint.utils import _create_file_view

    return cast(Any, _create_file_view(cast(Any, file), offset, length))


def group_store() -> dist.Store:
    """The store that the processes met in, over a connection of its own, which no collective holds."""
    return dist.distributed_c10d._get_default_store().clone()
