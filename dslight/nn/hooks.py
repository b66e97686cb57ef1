"""Hooks that act in one thread, for the length of a ``with`` block, and what layers are called with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dslight.upstream.transformers import recomputes_with_hooks

_NUMBERING = threading.Lock()
"""torch numbers hooks without one: two threads could be given the same number, and one of the hooks would be lost."""


def before(module: nn.Module, act: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> RemovableHandle:
    """Call ``act(args, kwargs)`` before every pass of ``module`` that this thread runs.

    The pass of another thread may meet the hook while it is half registered; then it comes without ``kwargs``.
    """
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        return act(args, kwargs) if kwargs is not None and threading.get_ident() == thread else None

    with _NUMBERING:
        return module.register_forward_pre_hook(hook, with_kwargs=True)


def behind(module: nn.Module, act: Callable[[Any], Any]) -> RemovableHandle:
    """Call ``act(output)`` behind every pass of ``module`` that this thread runs."""
    thread = threading.get_ident()

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return act(output) if threading.get_ident() == thread else None

    with _NUMBERING:
        return module.register_forward_hook(hook)


def refuse_recomputed(layers: Sequence[nn.Module]) -> None:
    """Refuse to act on layers that gradient checkpointing runs again together with their hooks when these are gone:
    gradients would be those of another model, without a word.

    Raises:
        RuntimeError: for layers of an older transformers in training.
    """
    if recomputes_with_hooks(layers[0]):
        raise RuntimeError(
            "gradient checkpointing: this version of transformers recomputes a layer together with its hooks, and "
            "so without the stacks, which are gone by then; use a newer one (5.23 recomputes forward alone)"
        )


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a layer is called with, ``[b, t, D]``, by whatever name."""
    return args[0] if args else kwargs[_named_first(kwargs)]


def with_first_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other hidden states."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, _named_first(kwargs): value}


def _named_first(kwargs: dict[str, Any]) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
