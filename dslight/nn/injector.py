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
- Prefill only. How many tokens the KV cache already holds tells which window of the sequence a forward pass computes; a
  decode step finds no visual position in it, a chunk of a chunked prefill finds its own.
- Beams repeat the rows of a batch; rows of the mask are repeated alike.
- Hooks of another thread's call never fire here, so two generations may run on one model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dslight.nn.intervention import Injection, intervened

Operation = Callable[[Tensor, Tensor], Tensor]
"""What is added, ``[n, D]``, given the residual stream at the slots and the stack there, both ``[n, D]``."""


class _Positions:
    """Where the visual tokens are: (row, column) in the whole sequence, and how that maps into the window of one
    forward pass.
    """

    def __init__(self, mask: Tensor) -> None:
        self.batch, self.length = mask.shape
        self.row, self.column = mask.nonzero(as_tuple=True)  # row-major, like the packed values
        self.start = 0  # tokens that the KV cache already holds

    def __len__(self) -> int:
        return len(self.row)

    def select(self, values: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor] | None:
        """Flat indices into ``hidden`` ``[b, t, D]`` and the rows of ``values`` ``[N, D]`` that go there; ``None``:
        nothing to do.
        """
        rows, length = hidden.shape[:2]
        if self.start >= self.length or len(self) == 0:
            return None
        row, column = self.row, self.column - self.start
        if self.start or length < self.length:
            inside = (column >= 0) & (column < length)
            row, column, values = row[inside], column[inside], values[inside]
        repeats, rest = divmod(rows, self.batch)
        if rest:
            raise ValueError(f"injector: {rows} rows in the residual stream, but the visual mask has {self.batch}")
        if repeats > 1:  # beams: row r became rows r * repeats ... r * repeats + repeats - 1
            beam = torch.arange(repeats, device=row.device)
            row = (row[:, None] * repeats + beam).flatten()
            column = column.repeat_interleave(repeats)
            values = values.repeat_interleave(repeats, dim=0)
        return row * length + column, values.to(device=hidden.device, dtype=hidden.dtype)

    def add(self, hidden: Tensor, values: Tensor, operation: Operation | None = None) -> Tensor:
        if operation is not None and len(self) == 0:  # as in fill: a gate gets its zero gradient on a text-only rank
            return hidden + operation(hidden.new_zeros(0, hidden.shape[-1]), values.to(hidden.dtype)).sum()
        found = self.select(values, hidden)
        if found is None:
            return hidden
        flat, (index, rows) = hidden.flatten(0, 1), found
        if operation is not None:
            rows = operation(flat.index_select(0, index), rows).to(hidden.dtype)
        return flat.index_add(0, index, rows).view_as(hidden)

    def fill(self, hidden: Tensor, values: Tensor) -> Tensor:
        if len(self) == 0:
            # the sum is 0; it ties the encoder to the loss, so that its backward runs on a text-only rank too
            return hidden + values.sum().to(hidden.dtype)
        found = self.select(values, hidden)
        if found is None:
            return hidden
        return hidden.flatten(0, 1).index_copy(0, *found).view_as(hidden)


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
    layer = layers[0]
    checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
    if checkpointed and type(layer).__call__ is not nn.Module.__call__:
        raise RuntimeError(
            "gradient checkpointing: this version of transformers recomputes a layer together with its hooks, and "
            "so without the stacks, which are gone by then; use a newer one (5.23 recomputes forward alone)"
        )


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states that a layer is called with, ``[b, t, D]``."""
    return args[0] if args else kwargs["hidden_states"]


def with_first_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other hidden states."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": value}


@contextmanager
def inject(
    layers: Sequence[nn.Module],
    mask: Tensor,
    stacks: Tensor,
    sites: Sequence[int],
    *,
    fill: Tensor | None = None,
    embedding: nn.Module | None = None,
    decoder: nn.Module | None = None,
    operation: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> Iterator[None]:
    """While the block runs, add ``stacks`` to the residual stream of ``layers``.

    Args:
        layers: the transformer's layers, each called with its hidden states ``[b, t, D]`` as first argument (or as
            ``hidden_states``).
        mask: bool ``[B, T]`` over the whole sequence: where visual tokens stand.
        stacks: ``[S, N, D]``, N = ``mask.sum()``, packed in row-major order of the mask.
        sites: the S layers at whose inputs the stacks are added.
        fill: ``[N, D]``: replaces the output of ``embedding`` at the mask (slot 0 of a language model).
        embedding: the token embedding; needed with ``fill``.
        decoder: the module that receives ``past_key_values`` as a keyword; tells the window of a cached forward pass.
        operation: what is added instead of the stack itself, given (index of the stack, residual stream at the slots
            ``[n, D]``, the stack there ``[n, D]``).

    Raises:
        ValueError: on a count of tokens other than the mask's, or a site that is not there.
        RuntimeError: as :func:`refuse_recomputed`.
    """
    wanted = intervened(Injection(layers, stacks, tuple(sites), fill, operation))
    stacks, sites, fill, operation = wanted.stacks, wanted.sites, wanted.fill, wanted.operation
    positions = _Positions(mask)
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

    def see_window(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        positions.start = 0 if cache is None else int(cache.get_seq_length())

    def adder(index: int, values: Tensor) -> Callable[..., Any]:
        change = None if operation is None else partial(operation, index)

        def add(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = first_input(args, kwargs)
            added = positions.add(hidden, values, change)
            return None if added is hidden else with_first_input(args, kwargs, added)

        return add

    with ExitStack() as hooks:
        if decoder is not None:
            hooks.callback(before(decoder, see_window).remove)
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
