"""AdamW whose states take a byte a number: bitsandbytes' own (Dettmers et al. 2022), which is no dependency.

Decided here: its class has no types, so a recipe could not check its arguments; this one has, and makes theirs. States
of fewer numbers than ``min_8bit_size`` (norms, biases) stay in 32 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer


class AdamW8bit(Optimizer):
    """bitsandbytes' ``AdamW8bit``; what is made is an object of its class.

    Args:
        params: groups.
        lr: of groups that name none.
        betas: as of AdamW.
        eps: as of AdamW.
        weight_decay: of groups that name none.
        min_8bit_size: numbers that a tensor needs for states in 8 bits.

    Raises:
        ValueError: bitsandbytes is not installed.
    """

    def __new__(
        cls,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ) -> Any:
        """Theirs."""
        try:
            from bitsandbytes.optim import AdamW8bit as Theirs  # type: ignore[import-not-found]
        except ImportError as error:
            raise ValueError("AdamW8bit: bitsandbytes is not installed: pip install bitsandbytes") from error
        return Theirs(params, lr, betas, eps, weight_decay, min_8bit_size=min_8bit_size)
