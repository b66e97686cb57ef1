"""Parts built without memory for their weights, which are read once every process knows its share of them.

Otherwise each process of a node would hold the whole model before it is sharded: eight times 26 GB of a 13B decoder.
Only parameters wait: buffers (rotary frequencies, position ids) are no part of a checkpoint, so they are computed as
ever. What waits leaves the random numbers to the other parts, as if it had drawn none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dslight.components.component import on_meta

_WAITING: ContextVar[bool] = ContextVar("waiting", default=False)


@contextmanager
def unread() -> Iterator[None]:
    """Every module made in here has parameters with shapes and no memory, and buffers as ever."""

    def drop(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if parameter.is_meta or not _WAITING.get():
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    # it may return what is registered, though its annotation does not say so
    hook, token = register_module_parameter_registration_hook(cast(Any, drop)), _WAITING.set(True)
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        _WAITING.reset(token)
        hook.remove()


@contextmanager
def in_memory() -> Iterator[None]:
    """What is made in here has memory, on the CPU, wherever it is made from: a model that is looked at and let go."""
    token = _WAITING.set(False)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _WAITING.reset(token)


def weights_wait() -> bool:
    """Whether a part that is being built must not read its weights, now (:func:`unread`) or ever (the meta device)."""
    return _WAITING.get() or on_meta()


def waits(part: nn.Module) -> bool:
    """Whether ``part`` has parameters without memory."""
    return any(parameter.is_meta for parameter in part.parameters())
