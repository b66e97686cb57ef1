"""The injector: adds stacks of visual tokens to the residual stream of any transformer, at the inputs of chosen layers.

The paper's Algorithm 1, for the language model (DeepStack-L) and the vision encoder (DeepStack-V) alike. Both show the
injector a list of layers; nothing of a decoder is copied, and nothing is kept on a module: forward hooks live for the
length of a ``with`` block and hold their values in a closure.

Decided here:

- *Site l* is the input of layer l, before its norm. "After layer i" (as Qwen3-VL does) is site i + 1. Two stacks at one
  site sum.
- The add is out of place and in the residual stream's dtype, so that autograd, ``output_hidden_states`` and bf16 stay
  sane.
- Positions come from a mask over the *expanded* sequence, never from where a placeholder stood in the text: several
  images, text-only rows and left padding need no special case.
- Prefill only. A pass computes a :mod:`window <dslight.nn.window>` of the sequence: a decode step finds no visual
  position in it, a chunk of a chunked prefill finds its own.
- Beams repeat the rows of a batch; rows of the mask are repeated alike.
- Hooks of another thread's call never fire here, so two generations may run on one model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dslight.nn.hooks import before, behind, first_input, refuse_recomputed, with_first_input
from dslight.nn.intervention import Injection, Watch, intervened
from dslight.nn.window import Window

Operation = Callable[[Tensor, Tensor], Tensor]
"""What is added, ``[n, D]``, given the residual stream at the slots and the stack there, both ``[n, D]``."""


class _Positions:
    """Where the visual tokens are: (row, column) in the whole sequence, and how that maps into the window of one
    forward pass.
    """

    def __init__(self, mask: Tensor, window: Window, places: Tensor | None) -> None:
        self.batch, self.length = mask.shape
        flat = mask.flatten().nonzero().squeeze(1) if places is None else places  # row-major, like the packed values
        self.flat = flat
        self.window = window

    def __len__(self) -> int:
        return len(self.flat)

    def select(self, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Flat indices into ``hidden`` ``[b, t, D]``, and which of the N packed values go there (``None``: all, in
        their order); ``None``: nothing to do.
        """
        if hidden.ndim != 3:
            raise ValueError(f"injector: a layer is called with {list(hidden.shape)}, not with [b, t, D]")
        rows, length = hidden.shape[:2]
        start = self.window.start(length)
        if start >= self.length or len(self) == 0:
            return None
        if rows == self.batch and length == self.length and not start:  # all of it, as in training
            return self.flat, None
        row, column, chosen = self.flat // self.length, self.flat % self.length - start, None
        if start or length < self.length:
            chosen = ((column >= 0) & (column < length)).nonzero().squeeze(1)
            row, column = row[chosen], column[chosen]
        repeats, rest = divmod(rows, self.batch)
        if rest:
            raise ValueError(f"injector: {rows} rows in the residual stream, but the visual mask has {self.batch}")
        if repeats > 1:  # beams: row r became rows r * repeats ... r * repeats + repeats - 1
            chosen = torch.arange(len(self), device=row.device) if chosen is None else chosen
            beam = torch.arange(repeats, device=row.device)
            row = (row[:, None] * repeats + beam).flatten()
            column = column.repeat_interleave(repeats)
            chosen = chosen.repeat_interleave(repeats)
        return row * length + column, chosen

    def add(
        self, hidden: Tensor, values: Tensor, operation: Operation | None = None, watch: Watch | None = None
    ) -> Tensor:
        if hidden.ndim == 2 and self.batch == 1 and len(hidden) == self.length:  # packed: one row is all there is
            return self.add(hidden[None], values, operation, watch)[0]
        if operation is not None and len(self) == 0:  # as in fill: a gate gets its zero gradient on a text-only rank
            return hidden + operation(hidden.new_zeros(0, hidden.shape[-1]), values.to(hidden.dtype)).sum()
        found = self.select(hidden)
        if found is None:
            return hidden
        index, chosen = found
        flat, rows = hidden.flatten(0, 1), _chosen(values, chosen, hidden)
        if operation is not None or watch is not None:
            stream = flat.index_select(0, index)
            added = rows if operation is None else operation(stream, rows).to(hidden.dtype)
            if watch is not None:
                watch(torch.arange(len(rows), device=index.device) if chosen is None else chosen, stream, rows, added)
            rows = added
        return flat.index_add(0, index, rows).view_as(hidden)

    def fill(self, hidden: Tensor, values: Tensor) -> Tensor:
        if len(self) == 0:
            # the sum is 0; it ties the encoder to the loss, so that its backward runs on a text-only rank too
            return hidden + values.sum().to(hidden.dtype)
        found = self.select(hidden)
        if found is None:
            return hidden
        index, chosen = found
        return hidden.flatten(0, 1).index_copy(0, index, _chosen(values, chosen, hidden)).view_as(hidden)


def _chosen(values: Tensor, chosen: Tensor | None, like: Tensor) -> Tensor:
    return (values if chosen is None else values[chosen]).to(device=like.device, dtype=like.dtype)


def inject_packed(layers: Sequence[nn.Module], stacks: Tensor, sites: Sequence[int]) -> AbstractContextManager[None]:
    """:func:`inject` where every position of one row is a slot, as vision towers pack views.

    Args:
        layers: as of :func:`inject`.
        stacks: ``[S, V, P, C]``.
        sites: as of :func:`inject`.
    """
    flat = stacks.flatten(1, 2)
    mask = torch.ones(1, flat.shape[1], dtype=torch.bool, device=flat.device)
    places = torch.arange(flat.shape[1], device=flat.device)
    return inject(layers, mask, flat, sites, places=places)


@contextmanager
def inject(
    layers: Sequence[nn.Module],
    mask: Tensor,
    stacks: Tensor,
    sites: Sequence[int],
    *,
    fill: Tensor | None = None,
    embedding: nn.Module | None = None,
    window: Window | None = None,
    places: Tensor | None = None,
    operation: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """While the block runs, add ``stacks`` to the residual stream of ``layers``.

    Args:
        layers: the transformer's layers, each called with its hidden states ``[b, t, D]`` as first argument (or as
            ``hidden_states``); of a mask of one row also ``[T, D]``, as vision towers pack views.
        mask: bool ``[B, T]`` over the whole sequence: where visual tokens stand.
        stacks: ``[S, N, D]``, N = ``mask.sum()``, packed in row-major order of the mask.
        sites: the S layers at whose inputs the stacks are added.
        fill: ``[N, D]``: replaces the output of ``embedding`` at the mask (slot 0 of a language model).
        embedding: the token embedding; needed with ``fill``.
        window: of the pass that runs, from :func:`~dslight.nn.window.follow`; ``None``: every pass computes the whole
            sequence.
        places: int64 ``[N]``, where the mask is true in its rows laid end to end; ``None``: they are looked for, and a
            GPU is waited for.
        operation: what is added instead of the stack itself, given (index of the stack, residual stream at the slots
            ``[n, D]``, the stack there ``[n, D]``).

    Raises:
        ValueError: on a count of tokens other than the mask's, or a site that is not there.
        RuntimeError: as :func:`~dslight.nn.hooks.refuse_recomputed`; in a pass whose window is not known.
    """
    wanted = intervened(Injection(layers, stacks, tuple(sites), fill, operation))
    stacks, sites, fill, operation = wanted.stacks, wanted.sites, wanted.fill, wanted.operation
    positions = _Positions(mask, window or Window(mask.shape[1]), places)
    for name, tokens in (("stacks", stacks), ("fill", fill)):
        if tokens is not None and tokens.shape[-2] != len(positions):
            raise ValueError(
                f"injector: {name} has {tokens.shape[-2]} visual tokens, the sequence has {len(positions)} visual slots"
            )
    if len(stacks) != len(sites):
        raise ValueError(f"injector: {len(stacks)} stacks for {len(sites)} sites {tuple(sites)}")
    outside = [site for site in sites if not 0 <= site < len(layers)]
    if outside:
        raise ValueError(f"injector: no layer {outside[0]}; the transformer has layers 0 to {len(layers) - 1}")
    if sites:
        refuse_recomputed(layers)

    def adder(index: int, values: Tensor) -> Callable[..., Any]:
        change = None if operation is None else partial(operation, index)
        watch = None if wanted.watch is None else partial(wanted.watch, index)
        visits: set[int] = set()

        def add(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = first_input(args, kwargs)
            positions.window.visit(sites[index], visits)
            added = positions.add(hidden, values, change, watch)
            return None if added is hidden else with_first_input(args, kwargs, added)

        return add

    with ExitStack() as hooks:
        if embedding is not None and fill is not None:
            hooks.callback(behind(embedding, partial(positions.fill, values=fill)).remove)
        for index, (site, values) in enumerate(zip(sites, stacks, strict=True)):
            hooks.callback(before(layers[site], adder(index, values)).remove)
        yield


@contextmanager
def record(layers: Sequence[nn.Module], taps: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """While the block runs, collect the residual stream at ``taps``: tap l is the input of layer l, after stacks were
    added there if that layer runs; tap ``len(layers)`` is the output of the last layer. Enter after :func:`inject`:
    hooks run in their order.

    Yields:
        tap -> hidden states ``[b, t, D]``, filled as the forward pass goes.
    """
    seen: dict[int, Tensor] = {}

    def keep(tap: int, hidden: Any) -> None:
        seen[tap] = hidden[0] if isinstance(hidden, tuple) else hidden

    def at_input(tap: int) -> Callable[..., None]:
        return lambda args, kwargs: keep(tap, first_input(args, kwargs))

    with ExitStack() as hooks:
        for tap in set(taps):
            if tap > 0:  # where the pass may end before layer `tap`, the output of the layer before it is all there is
                hooks.callback(behind(layers[tap - 1], partial(keep, tap)).remove)
            if tap < len(layers):
                hooks.callback(before(layers[tap], at_input(tap)).remove)
        yield seen
