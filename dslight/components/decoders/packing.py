"""Documents that share a row: the mask and the positions that keep them apart, for decoders that take both."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from dslight.components import documents
from dslight.upstream.transformers import attention_of, is_recurrent, masks_windows


def mixes(model: Any) -> str:
    """Why a decoder would mix the documents of a row; empty: nothing is known that would."""
    config = model.config.get_text_config()
    attention = attention_of(config)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if attention not in ("sdpa", "eager", documents.NAME):
        return f"attention {attention!r} takes no mask of documents; set attention to sdpa or eager"
    if is_recurrent(model) or kinds:
        return f"layers of {', '.join(sorted(kinds)) or 'recurrent state'} run on into the next document"
    if getattr(config, "alibi", False) or "position_ids" not in signature(model.forward).parameters:
        return "its positions cannot begin anew within a row"
    if getattr(config, "sliding_window", None) and not masks_windows(model.get_decoder()):
        return f"how its sliding window of {config.sliding_window} is masked is not known"
    return ""


def isolating_mask(model: Any, segments: Tensor) -> Any:
    """``[B, 1, T, T]``, or one for each kind of layer: causal within a document. Padding is a document too, since a
    softmax over nothing would be NaN.
    """
    index = torch.arange(segments.shape[1], device=segments.device)
    distance = index[:, None] - index
    seen = (segments[:, :, None] == segments[:, None]) & (distance >= 0)
    return by_window(
        model,
        lambda window: as_mask(model, seen if window is None else seen & (distance < window)),
        segments.shape[1],
    )


def by_window(model: Any, mask: Callable[[int | None], Tensor], length: int) -> Any:
    """What the decoder takes as its mask: ``mask(window)``, or one for each kind of layer."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if not window or window >= length:
        return mask(None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    if len(kinds) == 1:
        return mask(window if kinds == {"sliding_attention"} else None)
    return {"full_attention": mask(None), "sliding_attention": mask(window)}


def as_mask(model: Any, seen: Tensor) -> Tensor:
    """Which position sees which, bool ``[B, T, T]``, as the decoder's attention takes it: ``[B, 1, T, T]``."""
    if attention_of(model.config.get_text_config()) in ("sdpa", documents.NAME):
        return seen[:, None]
    least = torch.finfo(model.dtype).min  # eager attention adds its mask
    return torch.zeros(seen.shape, dtype=model.dtype, device=seen.device).masked_fill(~seen, least)[:, None]


def positions_within(segments: Tensor) -> Tensor:
    """The position of each token within its document, int64 ``[B, T]``."""
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(-1).values
