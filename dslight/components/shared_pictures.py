"""Questions about the same pictures, in one batch: these are encoded once, and so is all that stands before them.

A batch of questions says by ``pictures`` which of its rows show the same ones; its views hold each once. What the
language model needs is either the beginnings of the rows, once (see :mod:`dslight.components.decoders.prefix`), or the
visual tokens of every row, which are then copies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dslight.components.decoders import prefix
from dslight.components.decoders.causal_lm import HFCausalLM
from dslight.components.language_model import LanguageModel
from dslight.types import Batch, VisualTokens

T = TypeVar("T")
_ANSWERS = ("generate", "generate_ids", "continued")
_GREEDY = {"max_new_tokens", "eos_token_id", "pad_token_id"}


def generate(language_model: LanguageModel, batch: Batch, visual: VisualTokens, **options: Any) -> Tensor:
    """As :meth:`LanguageModel.generate`, of a batch whose views hold the pictures of several rows once.

    Args:
        language_model: continues the rows.
        batch: with ``pictures``, or without: then each row has its own.
        visual: the tokens of the batch's views.
        options: as of ``generate``.
    """
    given = batch.input_ids, batch.attention_mask, batch.visual_mask
    if not batch.pictures:
        return language_model.generate(*given, visual, **options)
    prompts = read(language_model, batch, visual, options, alike=True)
    if prompts is not None:
        return cast(HFCausalLM, language_model).write([prompts], **options)
    return language_model.generate(*given, spread(visual, batch.visual_mask, batch.pictures), **options)


def read(
    language_model: LanguageModel, batch: Batch, visual: VisualTokens, options: Mapping[str, Any], alike: bool = False
) -> prefix.Read | None:
    """The prompts of a batch, passed over; ``None`` where only ``generate`` can answer so.

    Args:
        language_model: continues the rows.
        batch, visual: as of :func:`generate`.
        options: with which the answers are to be written.
        alike: whether only rows are read that begin alike.
    """
    # what stands beside the sequence is looked at behind the prompts too
    if not isinstance(language_model, HFCausalLM) or visual.memory is not None or not set(options) <= _GREEDY:
        return None
    own = any(getattr(type(language_model), name) is not getattr(HFCausalLM, name) for name in _ANSWERS)
    if own or not language_model.shares_beginnings:  # a subclass has its own way to answer
        return None
    ids = language_model.standing_for(batch.input_ids, batch.visual_mask)
    given = ids, batch.attention_mask, batch.visual_mask
    found = prefix.beginnings(*given, batch.pictures) if batch.pictures else None
    if found is None and alike:
        return None
    if found is None and batch.pictures:
        visual = spread(visual, batch.visual_mask, batch.pictures)
    return language_model.read(*given, visual, found)


def spread(visual: VisualTokens, visual_mask: Tensor, pictures: Sequence[int]) -> VisualTokens:
    """The visual tokens of every row, given those of each group of pictures in the order of its first row.

    Args:
        visual: slots ``[S+1, n, D]``.
        visual_mask: bool ``[B, T]``.
        pictures: the group of each row.
    """
    counts = visual_mask.sum(1).tolist()
    sizes = dict(zip(pictures, counts, strict=True))
    order = list(dict.fromkeys(pictures))
    starts = dict(zip(order, accumulate((sizes[group] for group in order), initial=0), strict=False))
    index = torch.cat([torch.arange(starts[group], starts[group] + sizes[group]) for group in pictures])
    blocks = [sizes[group] for group in order]
    wanted = [order.index(group) for group in pictures]
    memory = visual.memory
    if memory is not None:
        images = _chosen(range(len(memory.slots)), memory.slots, blocks, wanted)
        tokens = memory.tokens.split(list(memory.counts))
        memory = replace(
            memory,
            tokens=torch.cat([memory.tokens[:0], *(tokens[i] for i in images)]),
            counts=tuple(memory.counts[i] for i in images),
            slots=tuple(memory.slots[i] for i in images),
        )
    slots = visual.slots.index_select(1, index.to(visual.slots.device))
    told = visual.grids
    grids = tuple(_chosen(told, [grid.tokens for grid in told], blocks, wanted)) if told else ()
    return replace(visual, slots=slots, memory=memory, grids=grids)


def _chosen(items: Sequence[T], sizes: Sequence[int], blocks: Sequence[int], wanted: Sequence[int]) -> list[T]:
    """Items of some sizes fill blocks one after the other; those of the wanted blocks."""
    inside: list[list[T]] = []
    at = 0
    for block in blocks:
        filled, own = 0, []
        while filled < block:
            filled += sizes[at]
            own.append(items[at])
            at += 1
        inside.append(own)
    return [item for block in wanted for item in inside[block]]
