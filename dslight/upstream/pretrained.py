"""transformers' models: what a class of ours says about itself by private names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.generation import GenerationMixin
from transformers.modeling_utils import PreTrainedModel


class Composed(PreTrainedModel, GenerationMixin):
    """A model around others, whose decoder chooses its attention and generates."""

    _supports_sdpa = True
    _supports_flash_attn = True

    def keep_whole(self, units: Iterable[nn.Module]) -> None:
        """Let ``device_map`` split between modules of these classes, and within none of them."""
        self._no_split_modules = sorted({type(unit).__name__ for unit in units})
