"""Attention within the documents of packed rows, without a mask of all pairs of positions.

Time and memory grow with the sum of the documents' squared lengths. Transformers lets an attention function be
registered under a name, and hands a mask of four dimensions to it layer by layer, unread. So where documents begin
travels in place of that mask, also into layers that are computed again (checkpointing) or compiled. On a GPU in half
precision torch's variable-length kernel takes all documents at once, elsewhere scaled dot-product attention takes them
one by one. Rows that are not packed are one call, and need no mask at all: what pads them stands behind them.

With any other mask the function is transformers' ``sdpa``.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.mask_passing import passes_mask
from dslight.upstream.transformers import attention_of, registers_attention

NAME = "dslight_documents"


def supported(model: Any) -> bool:
    """Whether a decoder's attention can be this one: ``sdpa``, from transformers' table, and called with the mask that
    the model is given.
    """
    usual = attention_of(model.config.get_text_config()) in ("sdpa", NAME)
    return usual and registers_attention(model) and passes_mask(model.get_decoder())


def use(model: Any) -> None:
    """Let ``model`` attend by :func:`attention` from now on."""
    if attention_of(model.config.get_text_config()) != NAME:
        _register()
        model.set_attn_implementation(NAME)


def as_mask(bounds: Tensor, longest: int, window: int | None = None) -> Tensor:
    """What is handed to layers as a mask: ``[1, longest, window, d + 1]`` of no memory but that of ``bounds``.

    Args:
        bounds: int64 ``[d + 1]``, where documents begin in the rows laid end to end, and the end.
        longest: positions of the longest document.
        window: how many positions one sees, itself included; ``None``: all before it.
    """
    return bounds.expand(1, longest, min(window or longest, longest), len(bounds))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' interface of an attention function.

    Args:
        module: the attention layer.
        query: ``[B, H, T, d]``; ``key`` and ``value`` with as many heads or fewer.
        key: see ``query``.
        value: see ``query``.
        attention_mask: from :func:`as_mask`, or any that ``sdpa`` takes.
        dropout: of the attention weights.
        scaling: of the scores.
        options: as ``sdpa`` takes them.

    Returns:
        ``[B, T, H, d]``.
    """
    plain = _sdpa()
    how: dict[str, Any] = {**options, "dropout": dropout, "scaling": scaling}
    if attention_mask is None or attention_mask.dtype != torch.int64 or attention_mask.ndim != 4:
        return plain(module, query, key, value, attention_mask, **how)
    _, longest, window, count = attention_mask.shape
    how["is_causal"] = True
    if count - 1 == len(query) and longest == query.shape[2]:  # each row a document
        return plain(module, query, key, value, _near(longest, window, query), **how)
    bounds = attention_mask[0, 0, 0]
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        return _at_once(query, key, value, bounds, longest, window, scaling), None
    apart: Any = _one_by_one  # whose decorator hides what it takes
    return apart(module, query, key, value, bounds, window, how), None


def _near(length: int, window: int, like: Tensor) -> Tensor | None:
    """Which positions ``[1, 1, length, length]`` a window shows; ``None``: all before."""
    if window >= length:
        return None
    index = torch.arange(length, device=like.device)
    distance = index[:, None] - index
    return ((distance >= 0) & (distance < window))[None, None]


@torch.compiler.disable
def _one_by_one(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, window: int, how: dict[str, Any]
) -> Tensor:
    plain, length = _sdpa(), query.shape[2]
    starts = bounds.tolist()
    rows: list[list[int]] = [[] for _ in query]
    for begin, end in pairwise(starts):
        rows[begin // length].append(end - begin)
    found = []
    for lengths, *row in zip(rows, *(x.split(1) for x in (query, key, value)), strict=True):
        parts = [
            plain(module, *part, _near(part[0].shape[2], window, query), **how)[0]
            for part in zip(*(x.split(lengths, dim=2) for x in row), strict=True)
        ]
        found.append(torch.cat(parts, dim=1))
    return torch.cat(found)


def _at_once(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, window: int, scaling: float | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, _ = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    ends, left = bounds.to(torch.int32), -1 if window >= longest else window - 1
    options: dict[str, Any] = {"scale": scaling, "window_size": (left, 0), "enable_gqa": heads != key.shape[1]}
    found: Any = varlen_attn(q, k, v, ends, ends, longest, longest, **options)
    return found.unflatten(0, (rows, length))


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])


def _sdpa() -> Any:
    from transformers import AttentionInterface

    return AttentionInterface()["sdpa"]
