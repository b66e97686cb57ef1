"""The next-token loss, as a sum and a count: the mean is taken over the supervised tokens of the *global* batch.

A mean per rank would give a token of a short answer on one rank more weight than a token of a long answer on another; a
sum and a count can be reduced over ranks first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dslight.places import supervised


def next_token_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of each label given the positions before it.

    Args:
        logits: ``[B, T, vocabulary]``, any float dtype; the loss is computed in float32.
        labels: int64 ``[B, T]``, not shifted, ``IGNORE`` where there is no loss.
        weights: float32 ``[B, T]``, how many times the loss of each label counts; default: once.

    Returns:
        The sum over supervised tokens (scalar, with gradient; 0 when there are none) and their number (int64 scalar);
        with weights, the sum of those (float32 scalar).
    """
    positions, targets = supervised(labels)
    counts = None if weights is None else weights.flatten().index_select(0, positions + 1)
    return summed_loss(logits.flatten(0, 1).index_select(0, positions), targets, counts)


def summed_loss(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`next_token_loss` of supervised positions alone.

    Args:
        logits: ``[n, vocabulary]``.
        targets: int64 ``[n]``, the token behind each.
        weights: float32 ``[n]``.
    """
    if weights is not None:
        return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum(), weights.sum()
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    return total, torch.full((), len(targets), dtype=torch.int64, device=targets.device)
