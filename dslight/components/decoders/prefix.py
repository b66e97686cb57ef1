"""Answers to several questions behind one beginning: it is computed once, and its cache stands in front of each.

Questions about a picture are all asked behind the same tokens: a system text, the picture. Their keys and values, in
all layers, are the same in every row, so a pass over each *beginning* fills a cache, the cache is repeated for the
rows, and a second pass computes the rest of each. Between the two stands the padding of the shorter rests; it is
masked, and positions are counted without it. In exact arithmetic that is what a pass over whole rows computes, for
decoders whose layers see a masked position no more than one that is not there; which do is tried on their tiny copy
(:mod:`dslight.components.decoders.trials`).

Reading prompts costs what their tokens cost. Writing a token costs about as much for many rows as for few, so several
batches are read one after the other and written together: their caches are joined, with padding in front of the shorter
ones. Answers that are done leave the batch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dslight.upstream.transformers import give_room, whole_layers

NEUTRAL = {
    "_from_model_config", "bos_token_id", "cache_implementation", "do_sample", "eos_token_id", "max_length",
    "max_new_tokens", "output_attentions", "output_hidden_states", "pad_token_id", "temperature", "top_k", "top_p",
    "transformers_version", "use_cache",
}  # fmt: skip
"""Settings of transformers' ``generate`` that mean nothing where the likeliest token is taken."""
_FEWER = 0.75
"""Rows leave the batch once no more than this share of them is left: the cache is copied for it."""


@dataclass(frozen=True)
class Beginnings:
    """Rows of a batch, taken apart.

    Attributes:
        rows: a row of each group, which begins as all of them do.
        group: of each row.
        lengths: of each group, how many tokens its rows share.
        starts: of each row, the column where it begins.
    """

    rows: list[int]
    group: list[int]
    lengths: list[int]
    starts: list[int]


def beginnings(ids: Tensor, mask: Tensor, visual_mask: Tensor, group: Sequence[int]) -> Beginnings | None:
    """Which rows of a left-padded batch ``[B, T]`` begin alike; ``None`` where little or nothing would be saved.

    Args:
        ids: input ids.
        mask: attention mask.
        visual_mask: where visual tokens stand.
        group: of each row; rows of a group show the same pictures.
    """
    columns = ids.shape[1]
    texts, starts = ids.tolist(), (columns - mask.sum(1)).tolist()
    last = torch.where(visual_mask.any(1), columns - visual_mask.flip(1).int().argmax(1), 0).tolist()
    members: dict[int, list[int]] = {}
    for row, name in enumerate(group):
        members.setdefault(name, []).append(row)
    rows, lengths, of_row, saved = [], [], [0] * len(group), 0
    for number, own in enumerate(members.values()):
        words = [texts[row][starts[row] :] for row in own]
        length = min(map(len, words)) - 1
        if len(own) > 1:
            length = next((i for i in range(length) if len({text[i] for text in words}) > 1), length)
        else:
            length = min(length, max(last[own[0]] - starts[own[0]], 1))
        if length < 1 or any(last[row] - starts[row] > length for row in own):
            return None  # a picture behind the part that all share
        rows.append(own[0])
        lengths.append(length)
        saved += (len(own) - 1) * length
        for row in own:
            of_row[row] = number
    whole = int(mask.sum())
    return Beginnings(rows, of_row, lengths, starts) if saved > 0.2 * whole else None


def begun(found: Beginnings, *tensors: Tensor) -> list[Tensor]:
    """Of tensors ``[B, T]`` (ids, a mask), the beginnings of the groups ``[G, P]``, padded in front with zeros."""
    longest = max(found.lengths)
    parts = list(zip(found.rows, found.lengths, strict=True))
    spans = [(row, found.starts[row], found.starts[row] + length) for row, length in parts]
    return [_lined_up([tensor[row, a:b] for row, a, b in spans], longest) for tensor in tensors]


def rests(found: Beginnings, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What stands behind the beginning of each row, ``[B, R]`` padded in front, and its mask."""
    spans = [start + found.lengths[group] for start, group in zip(found.starts, found.group, strict=True)]
    parts = [ids[row, start:] for row, start in enumerate(spans)]
    longest = max(map(len, parts))
    return _lined_up(parts, longest), _lined_up([torch.ones_like(part) for part in parts], longest)


def _lined_up(parts: Sequence[Tensor], columns: int) -> Tensor:
    whole = parts[0].new_zeros((len(parts), columns))
    for row, part in zip(whole, parts, strict=True):
        row[columns - len(part) :] = part
    return whole


def neutral(model: Any) -> bool:
    """Whether ``generate`` of this model, told to be greedy, takes the likeliest token and nothing else."""
    config = getattr(model, "generation_config", None)
    return config is None or set(config.to_diff_dict()) <= NEUTRAL


@dataclass
class Read:
    """Prompts that have been read, and whose answers can be written.

    Attributes:
        scores: of their first tokens, ``[B, vocabulary]`` in float32.
        name: what the library calls a cache.
        cache: keys and values.
        seen: mask of its columns ``[B, T]``.
    """

    scores: Tensor
    name: str
    cache: Any
    seen: Tensor

    @property
    def joins(self) -> bool:
        """Whether its cache can be joined with others: all layers keep the keys and values of every column."""
        return bool(whole_layers(self.cache, self.seen.shape[1]))

    @property
    def size(self) -> int:
        """Bytes of the cache."""
        return sum(2 * layer.keys.numel() * layer.keys.element_size() for layer in self.cache.layers)


def read(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    visual_mask: Tensor,
    found: Beginnings | None,
    injecting: Callable[[Tensor], AbstractContextManager[Any]] = lambda mask: nullcontext(),
    begins: int = 0,
) -> Read:
    """Pass over prompts.

    Args:
        model: a decoder of transformers with its head.
        ids, mask, visual_mask: as of :func:`beginnings`.
        found: how its rows begin; ``None``: each is read whole.
        injecting: in which what holds visual tokens is computed, given its visual mask.
        begins: what positions are counted from.
    """
    if found is None:
        with injecting(visual_mask):
            scores, name, cache = _passed(model, ids, mask, begins)
        return Read(scores, name, cache, mask)
    first_ids, first_mask, first_visual = begun(found, ids, mask, visual_mask)
    with injecting(first_visual):
        _, name, cache = _passed(model, first_ids, first_mask, begins)
    rows = torch.tensor(found.group, device=ids.device)
    cache.batch_select_indices(rows)
    rest, real = rests(found, ids)
    seen = torch.cat([first_mask[rows], real], dim=1)
    scores, name, cache = _passed(model, rest, seen, begins, {name: cache})
    return Read(scores, name, cache, seen)


def write(
    model: Any,
    prompts: Sequence[Read],
    begins: int = 0,
    max_new_tokens: int = 20,
    eos_token_id: int | Sequence[int] = (),
    pad_token_id: int = 0,
    logits: list[Tensor] | None = None,
) -> Tensor:
    """The likeliest continuations of all rows ``[B, new]``, in the order of the prompts, which are used up.

    Args:
        model: that has read them.
        prompts: several whose caches join, or one.
        begins: as of :func:`read`.
        max_new_tokens, eos_token_id, pad_token_id: as of ``generate``.
        logits: is given those of each token, ``[b, vocabulary]`` of the rows that are left.
    """
    name, cache = prompts[0].name, prompts[0].cache
    scores = torch.cat([one.scores for one in prompts])
    columns = max(one.seen.shape[1] for one in prompts)
    seen = torch.cat([F.pad(one.seen, (columns - one.seen.shape[1], 0)) for one in prompts])
    if len(prompts) > 1:
        _join([one.cache for one in prompts], columns)
    if whole_layers(cache, columns):
        give_room(cache)
    ends = torch.as_tensor(eos_token_id, dtype=torch.int64, device=seen.device)
    said = seen.new_full((len(seen), max_new_tokens), pad_token_id)
    left = torch.arange(len(seen), device=seen.device)  # which rows the batch still holds
    done = torch.zeros(len(seen), dtype=torch.bool, device=seen.device)
    for step in range(max_new_tokens):
        if logits is not None:
            logits.append(scores)
        token = scores.argmax(-1).masked_fill(done, pad_token_id)
        said[left, step] = token
        done = done | torch.isin(token, ends)
        count = int(done.sum())
        if count == len(left) or step == max_new_tokens - 1:
            return said[:, : step + 1]
        if len(left) - count <= _FEWER * len(left):
            kept = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(kept)
            left, seen, token, done = left[kept], seen[kept], token[kept], done[kept]
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        scores, name, cache = _passed(model, token[:, None], seen, begins, {name: cache})
    return said


def _join(caches: Sequence[Any], columns: int) -> None:
    """Make the first of the caches that of all rows, padded in front to as many columns; the others are emptied."""
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        for side in ("keys", "values"):
            parts = [getattr(layer, side) for layer in layers]
            padded = [F.pad(part, (0, 0, columns - part.shape[2], 0)) for part in parts]
            setattr(layers[0], side, torch.cat(padded))
            for layer in layers[1:]:
                setattr(layer, side, None)


def _passed(
    model: Any, ids: Tensor, mask: Tensor, begins: int, cache: dict[str, Any] | None = None
) -> tuple[Tensor, str, Any]:
    """Logits of the last column ``[B, vocabulary]``, in float32 as ``generate`` compares them, and the cache with the
    name that the library calls it by; ``mask`` is of all columns so far."""
    place = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :] + begins
    options: dict[str, Any] = dict(cache or {})
    if _keeps_logits(type(model).forward):
        options["logits_to_keep"] = 1
    out = model(input_ids=ids, attention_mask=mask, position_ids=place, use_cache=True, **options)
    name = next(name for name in ("cache", "past_key_values") if name in out.keys())  # noqa: SIM118
    return out.logits[:, -1].float(), name, out[name]


@functools.cache
def _keeps_logits(forward: Callable[..., Any]) -> bool:
    return "logits_to_keep" in inspect.signature(forward).parameters
