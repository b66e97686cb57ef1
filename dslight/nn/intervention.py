"""Interventions: change what the injector is about to add, or look at it, while a model is run for a diagnosis.

Nothing of a model is changed for that: :func:`intervene` names a function for the length of a ``with`` block, and every
:func:`~dslight.nn.injector.inject` that this thread enters within, of the language model or the vision encoder, passes
its arguments through it first. So a stack can be left out, exchanged, watched or differentiated by in any model,
whatever its scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor, nn

Watch = Callable[..., None]
"""Called behind each addition with the index of the stack, which of the N slots ``[n]``, the residual stream there
before it, the stack there and what is added, all ``[n, D]``. Beams give a slot several times, a part of the sequence
only its own."""


@dataclass(frozen=True)
class Injection:
    """The arguments of one :func:`~dslight.nn.injector.inject`; see there.

    Attributes:
        layers: tell which transformer it is.
        stacks: ``[S, N, D]``.
        sites: of the S stacks.
        fill: ``[N, D]`` or ``None``.
        operation: what is added instead of a stack itself.
        watch: is shown every addition; see :data:`Watch`.
    """

    layers: Sequence[nn.Module]
    stacks: Tensor
    sites: tuple[int, ...]
    fill: Tensor | None = None
    operation: Callable[[int, Tensor, Tensor], Tensor] | None = None
    watch: Watch | None = None


Act = Callable[[Injection], Injection]

_ACT: ContextVar[Act | None] = ContextVar("act", default=None)  # every thread begins with the default


@contextmanager
def intervene(act: Act) -> Iterator[None]:
    """While the block runs, pass every injection of this thread through ``act``. Blocks do not nest: the inner one
    holds.
    """
    token = _ACT.set(act)
    try:
        yield
    finally:
        _ACT.reset(token)


def intervened(injection: Injection) -> Injection:
    """The injection as the block around wants it; outside of one, as it is."""
    act = _ACT.get()
    return injection if act is None else act(injection)
