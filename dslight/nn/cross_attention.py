"""Gated cross-attention: a transformer attends to tokens beside its sequence, in front of chosen layers (Flamingo,
arXiv 2204.14198, section 3.1.2; the "internal" fusion of arXiv 2503.06063).

    h = h + tanh(a) * CrossAttention(norm(h), memory);    h = h + tanh(b) * FFN(norm(h))

The rival of stacking: the same tokens reach the same layers, but every position asks for what it wants instead of being
handed what belongs to its place. Blocks stand in front of layers as stacks do: hooks that live for the length of a
``with`` block, no decoder is copied, nothing is kept on a module.

Decided here:

- A position sees the images of its own row that begin at or before it, so the decoder stays causal. Rows are known from
  the mask over the *expanded* sequence, as in the injector.
- A position that sees nothing passes a block unchanged, feed-forward half included (Flamingo lets that one act on all):
  text alone is the plain decoder. The block runs nevertheless, on a token of zeros where a batch has none, so that
  its parameters get zero gradients, and under sharding no rank waits for another.
- Unlike a stack, a block acts in every decode step too. Without gradients, keys and values of the memory are computed
  in the first pass and used by the later ones.
- Beams repeat the rows of a batch; they are folded into the queries, so that the memory is not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dslight.nn.hooks import before, first_input, refuse_recomputed, with_first_input
from dslight.nn.window import Window
from dslight.places import moved, runs
from dslight.types import Memory

KeysValues = tuple[Tensor, Tensor]
Slots = Sequence[tuple[int, int]]
NEVER = 1 << 40
"""A column that no sequence reaches, an image that no row has."""


class GatedCrossAttention(nn.Module):
    """One block.

    Args:
        width: D.
        heads: of the attention.
        head_dim: width of each; ``heads * head_dim`` need not be D.
        ffn: width of the feed-forward half, in multiples of D; 0: there is none.
        init: of both gates; 0: at first the block does nothing.
    """

    def __init__(self, width: int, heads: int = 8, head_dim: int = 64, ffn: int = 4, init: float = 0.0) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.gate = nn.Parameter(torch.full((1,), init))  # of one dimension: FSDP2 shards no scalars
        self.ffn: nn.Module | None = None
        if ffn:
            wide = [nn.Linear(width, ffn * width, bias=False), nn.GELU(), nn.Linear(ffn * width, width, bias=False)]
            self.ffn = nn.Sequential(nn.LayerNorm(width), *wide)
            self.ffn_gate = nn.Parameter(torch.full((1,), init))

    def forward(self, hidden: Tensor, memory: Tensor | KeysValues, visible: Tensor) -> tuple[Tensor, KeysValues]:
        """Attend.

        Args:
            hidden: the residual stream, ``[B, t, D]``.
            memory: ``[B, L, D]``, or its keys and values from an earlier call.
            visible: bool ``[B, t, L]``, which token of the memory each position sees.

        Returns:
            the residual stream behind the block, and keys and values ``[B, heads, L, head_dim]``.
        """
        dtype = self.gate.dtype
        sees = visible.any(-1, keepdim=True)
        keys, values = memory if isinstance(memory, tuple) else self._read(memory.to(dtype))
        # who sees nothing may look everywhere, and the result is dropped: a softmax over nothing would be NaN
        attended = F.scaled_dot_product_attention(
            self._split(self.query(self.norm(hidden.to(dtype)))), keys, values, attn_mask=(visible | ~sees)[:, None]
        )
        hidden = _add(hidden, self.gate, self.out(attended.transpose(1, 2).flatten(2)), sees)
        if self.ffn is not None:
            hidden = _add(hidden, self.ffn_gate, self.ffn(hidden.to(dtype)), sees)
        return hidden, (keys, values)

    def _read(self, memory: Tensor) -> KeysValues:
        return self._split(self.key(memory)), self._split(self.value(memory))

    def _split(self, x: Tensor) -> Tensor:
        """``[B, n, heads * head_dim]`` -> ``[B, heads, n, head_dim]``."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _add(hidden: Tensor, gate: Tensor, change: Tensor, where: Tensor) -> Tensor:
    return hidden + torch.where(where, gate.tanh() * change, 0).to(hidden.dtype)


class _Rows:
    """The memory of each row of a batch, and what a window of the sequence sees of it."""

    def __init__(self, mask: Tensor, memory: Memory, window: Window, slots: Slots | None) -> None:
        self.window = window
        self.batch, self.latest = len(mask), memory.latest
        found = runs(mask.flatten().nonzero().squeeze(1)) if slots is None else slots
        if sum(memory.slots) != (count := sum(end - begin for begin, end in found)):
            raise ValueError(
                f"cross-attention: {sum(memory.slots)} visual slots of the memory's images, {count} in the sequence"
            )
        begins: list[list[int]] = [[] for _ in range(self.batch)]
        images: list[list[int]] = [[] for _ in range(self.batch)]
        places = chain.from_iterable(range(*run) for run in found)
        for size, count in zip(memory.slots, memory.counts, strict=True):
            r, c = divmod(min(islice(places, size)), mask.shape[1])
            images[r] += [len(begins[r])] * count
            begins[r].append(c)
        # [B, most images of a row], [B, L], [B, L, D]; L is at least 1
        self.begins = moved(_padded(begins), mask.device)
        self.images = moved(F.pad(_padded(images), (0, int(not any(images))), value=NEVER), mask.device)
        tokens = pad_sequence(list(memory.tokens.split([len(own) for own in images])), batch_first=True)
        self.tokens = F.pad(tokens, (0, 0, 0, self.images.shape[1] - tokens.shape[1]))
        self._window: tuple[tuple[int, int], Tensor] | None = None
        self._kept: dict[int, Any] = {}

    def visible(self, length: int) -> Tensor:
        """bool ``[B, length, L]``, for a stream of ``length`` positions of the pass that runs."""
        window = (self.window.start(length), length)
        if self._window is None or self._window[0] != window:
            column = window[0] + torch.arange(length, device=self.begins.device)
            begun = (self.begins[:, None] <= column[:, None]).sum(-1, keepdim=True)  # images, [B, length, 1]
            image = self.images[:, None]
            self._window = window, (image == begun - 1) if self.latest else (image < begun)
        return self._window[1]

    def read(self, index: int, block: Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]], hidden: Tensor) -> Tensor:
        """``hidden`` ``[b, t, D]`` behind the block."""
        rows, length = hidden.shape[:2]
        repeats, rest = divmod(rows, self.batch)
        if rest:
            raise ValueError(f"cross-attention: {rows} rows in the residual stream, the visual mask has {self.batch}")
        memory = self.tokens
        if not torch.is_grad_enabled():
            memory = self._kept.get(index, memory)
        # beams: row r became rows r * repeats ... r * repeats + repeats - 1, here one after the other again
        visible = self.visible(length) if repeats == 1 else self.visible(length).repeat(1, repeats, 1)
        changed, kept = block(hidden.reshape(self.batch, repeats * length, -1), memory, visible)
        if not torch.is_grad_enabled():
            self._kept[index] = kept
        return changed.view_as(hidden)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """``[B, longest]``."""
    return pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=NEVER)


@contextmanager
def attend(
    layers: Sequence[nn.Module],
    mask: Tensor,
    memory: Memory | None,
    *,
    window: Window | None = None,
    slots: Slots | None = None,
) -> Iterator[None]:
    """While the block runs, ``layers`` attend to ``memory``. Enter after :func:`~dslight.nn.injector.inject`: stacks
    are then added first.

    Args:
        layers: the transformer's layers, each called with its hidden states ``[b, t, D]`` as first argument (or as
            ``hidden_states``).
        mask: bool ``[B, T]`` over the whole sequence: where visual tokens stand.
        memory: ``None``: nothing to attend to.
        window: of the pass that runs, from :func:`~dslight.nn.window.follow`; ``None``: every pass computes the whole
            sequence.
        slots: where the mask is true in its rows laid end to end, as runs of (first, behind the last); ``None``: they
            are looked for, and a GPU is waited for.

    Raises:
        ValueError: on slots other than the mask's, on tokens other than counted, or a site that is not there.
        RuntimeError: as :func:`~dslight.nn.hooks.refuse_recomputed`; in a pass whose window is not known.
    """
    if memory is None:
        yield
        return
    if sum(memory.counts) != len(memory.tokens) or len(memory.counts) != len(memory.slots):
        raise ValueError(
            f"cross-attention: {len(memory.tokens)} tokens of memory, counted as {sum(memory.counts)} of "
            f"{len(memory.counts)} images; {len(memory.slots)} images take slots"
        )
    if len(memory.blocks) != len(memory.sites):
        raise ValueError(f"cross-attention: {len(memory.blocks)} blocks for {len(memory.sites)} sites {memory.sites}")
    outside = [site for site in memory.sites if not 0 <= site < len(layers)]
    if outside:
        raise ValueError(f"cross-attention: no layer {outside[0]}; the transformer has layers 0 to {len(layers) - 1}")
    refuse_recomputed(layers)
    rows = _Rows(mask, memory, window or Window(mask.shape[1]), slots)

    def reader(index: int, block: Callable[..., Any]) -> Callable[..., Any]:
        def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return with_first_input(args, kwargs, rows.read(index, block, first_input(args, kwargs)))

        return read

    with ExitStack() as hooks:
        for index, (site, block) in enumerate(zip(memory.sites, memory.blocks, strict=True)):
            hooks.callback(before(layers[site], reader(index, block)).remove)
        yield
