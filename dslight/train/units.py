"""How the units of a part run in training: checkpointed, compiled, or as they are.

A unit is what a part lists under ``shard_units``, usually a layer. Decided here:

- Its ``forward`` is replaced on the instance, so names, sharding and hooks stay what they are. Hooks stay outside of
  what is recomputed or traced: a stack is added once, before the checkpointed function, and hooks that come and go with
  every batch make no compiled code stale.
- Both act only while gradients are on. Generation runs the plain layer: a compiled one would be traced anew for every
  layer index and cache length.
- A frozen part in evaluation mode is checkpointed too: gradients pass through the decoder of stage 1 to the projector.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import update_wrapper
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class _Forward:
    """A unit's forward pass in place of its own."""

    def __init__(self, plain: Callable[..., Any], checkpointing: bool, backend: str | None) -> None:
        update_wrapper(self, plain)
        self.plain, self.checkpointing, self.backend = plain, checkpointing, backend
        self.trained = plain if backend is None else torch.compile(plain, backend=backend)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.plain(*args, **kwargs)
        if self.checkpointing:
            return checkpoint(self.trained, *args, use_reentrant=False, **kwargs)
        return self.trained(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Forward:
        """For a copied unit (moving averages): a compiled function would go on running the old one."""
        return _Forward(deepcopy(self.plain, memo), self.checkpointing, self.backend)


def run_units(part: nn.Module, checkpointing: bool = False, compile: bool | str = False) -> None:
    """Let the units of ``part`` run so from now on, whatever was said before.

    Args:
        part: has ``shard_units``.
        checkpointing: keep a unit's inputs only and compute the rest again in the backward pass.
        compile: with ``torch.compile``, unit by unit, so that equal layers share one compilation; or its backend.

    Raises:
        ValueError: for a part without units, or an unknown backend.
    """
    units = list(getattr(part, "shard_units", []))
    for name, wanted in (("checkpointing", checkpointing), ("compile", compile)):
        if wanted and not units:
            raise ValueError(f"{name}: {type(part).__name__} has no layers to treat one by one; leave it out")
    backend = "inductor" if compile is True else compile or None
    if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"compile: torch has no backend {backend!r}; true, or one of {known}")
    for unit in units:
        own = unit.__dict__.get("forward")
        if isinstance(own, _Forward):
            del unit.forward  # type: ignore[attr-defined]
            if own.plain != unit.forward:
                unit.forward = own.plain  # type: ignore[method-assign]
        if checkpointing or backend is not None:
            unit.forward = _Forward(unit.forward, checkpointing, backend)  # type: ignore[method-assign]
