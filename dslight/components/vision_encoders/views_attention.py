"""Attention of packed views, each by itself: how a tower of any image size attends, and what it has to know for that.

Transformers' towers take views one by one unless a flash attention is there; every layer then asks the device how long
the views are, and waits. Here all of that is found out once for a pass, on the CPU. Views (or windows) of equal length
are one call; on a GPU in half precision torch's variable-length kernel takes all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dslight.places import moved
from dslight.types import Grid
from dslight.upstream.torch import real_tensors
from dslight.upstream.transformers import attend_by, vision_geometry

NAME = "dslight_flash_views"
"""Transformers hands the bounds of all views only to an attention that is called flash."""


def use(tower: Any) -> None:
    """Let a tower of transformers attend by :func:`attention` from now on."""
    _register()
    attend_by(tower, NAME)


def geometry(tower: Any, views: Sequence[Grid], device: torch.device) -> dict[str, Any]:
    """What a tower is called with beside its patches.

    Args:
        tower: of transformers.
        views: (rows, columns) of patches of each.
        device: that it runs on.
    """
    with real_tensors():  # also where a plan runs it on fake ones, which nothing could be read from
        grids = torch.tensor([[1, rows, columns] for rows, columns in views])
        made = vision_geometry(tower, grids)
        for name in ("cu_seqlens", "cu_window_seqlens"):
            if name in made:
                made[name.replace("cu", "max").removesuffix("s")] = int(made[name].diff().max())
    return {
        name: moved(value, device) if isinstance(value, Tensor) else value
        for name, value in {"grid_thw": grids, **made}.items()
    }


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Transformers' interface of an attention function.

    Args:
        module: the attention layer.
        query: ``[1, H, T, d]``, as ``key`` and ``value``.
        key: see ``query``.
        value: see ``query``.
        attention_mask: none, or ``cu_seq_lens_q`` by that name, for layers that hand on nothing else.
        dropout: of the attention weights.
        scaling: of the scores.
        cu_seq_lens_q: int32 ``[views + 1]``, where each view begins, and the end; ``None``: one view.
        max_length_q: the longest.
        options: unused.

    Returns:
        ``[1, T, H, d]``.
    """
    if attention_mask is not None:
        cu_seq_lens_q = attention_mask
    how: dict[str, Any] = {"dropout_p": dropout, "scale": scaling}
    if cu_seq_lens_q is None or len(cu_seq_lens_q) == 2:
        return nn.functional.scaled_dot_product_attention(query, key, value, **how).transpose(1, 2), None
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        bounds, longest = cu_seq_lens_q.to(query.device, torch.int32), int(max_length_q or query.shape[2])
        found: Any = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling)
        return found[None], None
    apart: Any = _apart  # whose decorator hides what it takes
    return apart(query, key, value, cu_seq_lens_q, how), None


@torch.compiler.disable
def _apart(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, how: dict[str, Any]) -> Tensor:
    lengths = [end - begin for begin, end in pairwise(bounds.tolist())]
    kinds = sorted(set(lengths))
    if len(kinds) == 1:
        return _equal(query, key, value, len(lengths), how)
    if len(kinds) > len(lengths) // 2:  # few are alike: no copy
        split = [x.split(lengths, dim=2) for x in (query, key, value)]
        return torch.cat([_equal(q, k, v, 1, how) for q, k, v in zip(*split, strict=True)], dim=1)
    starts = list(accumulate(lengths, initial=0))
    index = [
        torch.tensor(
            [start + i for start, own in zip(starts, lengths, strict=False) if own == kind for i in range(own)]
        )
        for kind in kinds
    ]
    order = moved(torch.cat(index), query.device)
    sizes = [len(own) for own in index]
    split = [x.index_select(2, order).split(sizes, dim=2) for x in (query, key, value)]
    counts = [size // kind for size, kind in zip(sizes, kinds, strict=True)]
    found = [_equal(q, k, v, count, how) for q, k, v, count in zip(*split, counts, strict=True)]
    return torch.cat(found, dim=1).index_select(1, order.argsort())


def _equal(query: Tensor, key: Tensor, value: Tensor, count: int, how: dict[str, Any]) -> Tensor:
    """Of ``count`` views of equal length: ``[1, T, H, d]``."""
    q, k, v = (x[0].unflatten(1, (count, -1)).transpose(0, 1) for x in (query, key, value))
    found = nn.functional.scaled_dot_product_attention(q, k, v, **how)
    return found.transpose(1, 2).flatten(0, 1)[None]


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
