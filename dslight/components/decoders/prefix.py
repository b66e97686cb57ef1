"""Answers to several questions behind one beginning: it is computed once, and its cache stands in front of each.

Questions about a picture are all asked behind the same tokens: a system text, the picture. Their keys and values, in
all layers, are the same in every row, so a pass over each *beginning* fills a cache, the cache is repeated for the
rows, and a second pass computes the rest of each. Between the two stands the padding of the shorter rests; it is
masked, and positions are counted without it. In exact arithmetic that is what a pass over whole rows computes, for
decoders whose layers see a masked position no more than one that is not there; which do is tried on their tiny copy
(:mod:`dslight.components.decoders.trials`).

Answers that are done leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


def answers(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    visual_mask: Tensor,
    found: Beginnings,
    injecting: Callable[[Tensor], AbstractContextManager[Any]] = lambda mask: nullcontext(),
    begins: int = 0,
    max_new_tokens: int = 20,
    eos_token_id: int | Sequence[int] = (),
    pad_token_id: int = 0,
    logits: list[Tensor] | None = None,
) -> Tensor:
    """The likeliest continuations ``[B, new]``.

    Args:
        model: a decoder of transformers with its head.
        ids, mask, visual_mask: as of :func:`beginnings`.
        found: how its rows begin.
        injecting: in which the beginnings are computed, given their visual mask.
        begins: what positions are counted from.
        max_new_tokens, eos_token_id, pad_token_id: as of ``generate``.
        logits: is given those of each token, ``[b, vocabulary]`` of the rows that are left.
    """
    first_ids, first_mask, first_visual = begun(found, ids, mask, visual_mask)
    with injecting(first_visual):
        _, cache = _passed(model, first_ids, first_mask, begins)
    rows = torch.tensor(found.group, device=ids.device)
    cache[1].batch_select_indices(rows)
    rest, real = rests(found, ids)
    seen = torch.cat([first_mask[rows], real], dim=1)
    scores, cache = _passed(model, rest, seen, begins, cache)
    ends = torch.as_tensor(eos_token_id, dtype=torch.int64, device=ids.device)
    said = ids.new_full((len(ids), max_new_tokens), pad_token_id)
    left = torch.arange(len(ids), device=ids.device)  # which rows the batch still holds
    done = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
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
            cache[1].batch_select_indices(kept)
            left, seen, token, done = left[kept], seen[kept], token[kept], done[kept]
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
        scores, cache = _passed(model, token[:, None], seen, begins, cache)
    return said


def _passed(
    model: Any, ids: Tensor, mask: Tensor, begins: int, cache: tuple[str, Any] | None = None
) -> tuple[Tensor, tuple[str, Any]]:
    """Logits of the last column ``[B, vocabulary]``, in float32 as ``generate`` compares them, and the cache with the
    name that the library calls it by; ``mask`` is of all columns so far."""
    place = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :] + begins
    options: dict[str, Any] = {} if cache is None else {cache[0]: cache[1]}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    out = model(input_ids=ids, attention_mask=mask, position_ids=place, use_cache=True, **options)
    name = next(name for name in ("cache", "past_key_values") if name in out.keys())  # noqa: SIM118
    return out.logits[:, -1].float(), (name, out[name])
