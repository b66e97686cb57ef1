"""Attention in both directions: the tokens of an image see each other (Gemma 3), or all of what is asked does
(PaliGemma's prefix). All else stays causal.

A decoder of transformers is causal by itself, and takes a mask of four dimensions in place of its own. So every pass
that computes a part of the sequence with blocks in it is given one, whoever calls the decoder: training, ``generate``
behind a cache, beams. As in transformers' models, a sliding window also bounds what the tokens of an image see, and
does not bound what is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dslight.components.decoders.packing import as_mask
from dslight.nn.hooks import before
from dslight.nn.window import CACHES, Window

Bidirectional = Literal["none", "images", "prompt"]
ARGUMENT = "attention_mask"
FULL, SLIDING = "full_attention", "sliding_attention"


def blocks_of(kind: Bidirectional, visual_mask: Tensor, asked: Tensor | None, segments: Tensor | None) -> Tensor:
    """Which block each position belongs to, int64 ``[B, T]``; -1: to none.

    Args:
        kind: ``images``: each run of visual tokens is one; ``prompt``: what is asked.
        visual_mask: bool ``[B, T]``.
        asked: bool ``[B, T]``; ``None``: everything is.
        segments: int64 ``[B, T]``, the document of each position of packed rows.
    """
    if kind == "prompt":
        own = torch.zeros_like(visual_mask, dtype=torch.int64) if segments is None else segments
        return own if asked is None else own.masked_fill(~asked, -1)
    begins = visual_mask.clone()
    begins[:, 1:] &= ~visual_mask[:, :-1] if segments is None else ~visual_mask[:, :-1] | (segments.diff(dim=1) != 0)
    return (begins.cumsum(1) - 1).masked_fill(~visual_mask, -1)


@contextmanager
def seeing(model: Any, blocks: Tensor, window: Window, bounded: bool) -> Iterator[None]:
    """While the block runs, positions of ``model``'s passes see the others of their block.

    Args:
        model: a decoder of transformers with its head, whose masks may be exchanged.
        blocks: from :func:`blocks_of`, -1 at padding.
        window: of the pass that runs.
        bounded: whether a sliding window bounds what is seen in front.
    """

    def act(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = next(x for x in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args) if x is not None)
        start, given = window.start(tokens.shape[1]), kwargs.get(ARGUMENT)
        if start >= window.length:
            return None
        config = model.config.get_text_config()
        width = getattr(config, "sliding_window", None)
        layers = list(getattr(config, "layer_types", None) or [SLIDING if width else FULL])
        cache = next((v for k, v in kwargs.items() if k in CACHES and hasattr(v, "get_mask_sizes")), None)
        whole = blocks.repeat_interleave(len(tokens) // len(blocks), 0)  # beams
        queries = torch.arange(start, start + tokens.shape[1], device=blocks.device)
        masks: dict[str, Tensor] = {}
        for kind in dict.fromkeys(layers):
            held = (len(queries), 0) if cache is None else cache.get_mask_sizes(len(queries), layers.index(kind))
            keys = torch.arange(held[0], device=blocks.device) + held[1]
            own = given.get(kind) if isinstance(given, dict) else given
            masks[kind] = _mask(model, own, whole, queries, keys, width if kind == SLIDING else None, bounded)
        return args, {**kwargs, ARGUMENT: masks if len(masks) > 1 else next(iter(masks.values()))}

    handle = before(model.get_decoder(), act)
    try:
        yield
    finally:
        handle.remove()


def _mask(
    model: Any,
    given: Tensor | None,
    blocks: Tensor,
    queries: Tensor,
    keys: Tensor,
    near: int | None,
    bounded: bool,
) -> Tensor:
    """``[B, 1, q, k]``: what is given, if that is a mask of pairs already, and the blocks."""
    missing = int(max(queries[-1], keys[-1])) + 1 - blocks.shape[1]  # of answers
    whole = F.pad(blocks, (0, max(missing, 0)), value=-1)
    together = (whole[:, queries, None] == whole[:, None, keys]) & (whole[:, None, keys] >= 0)
    distance = queries[:, None] - keys
    behind = torch.ones_like(distance, dtype=torch.bool) if near is None else distance < near
    if bounded:
        together &= behind
    if given is not None and given.ndim == 4:
        opened = together[:, None]
        return given | opened if given.dtype == torch.bool else given.masked_fill(opened, 0)
    seen = together | ((distance >= 0) & behind)
    if given is not None:
        real = F.pad(given, (0, max(int(keys[-1]) + 1 - given.shape[1], 0)))[:, keys].bool()
        seen = seen & real[:, None]
    return as_mask(model, seen)
