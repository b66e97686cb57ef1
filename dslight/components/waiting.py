"""Batches of questions that were read, and whose answers are written together.

A pass that writes a token of 8 answers takes about as long as one that writes a token of 64: it reads all weights, and
starts all kernels, for few multiplications. So a validation reads one batch of prompts after the other, keeps their
caches, and writes the answers of several batches at once. What is kept has a limit in bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dslight.components.decoders.causal_lm import HFCausalLM
from dslight.components.decoders.prefix import Read

MOST = 8
"""Batches that wait; with more of them little more is saved."""
SHARE = 0.05
"""Of a GPU's memory, what the caches of those that wait may take; while they are joined, a layer is there twice."""
HOST = 2**29
"""Bytes of that, where there is no GPU."""


class Waiting:
    """Prompts of several batches, in their order."""

    def __init__(self) -> None:
        self.prompts: list[Read] = []
        self.rows: list[int] = []

    def add(self, prompts: Read) -> None:
        """Keep a batch that was read."""
        self.prompts.append(prompts)
        self.rows.append(len(prompts.scores))

    @property
    def full(self) -> bool:
        """Whether the answers are to be written before another batch is read."""
        last = self.prompts[-1]
        if not last.joins or len(self.prompts) == MOST:
            return True
        device = last.seen.device
        limit = SHARE * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else HOST
        return sum(one.size for one in self.prompts) + last.size > limit

    def write(self, language_model: HFCausalLM, **options: object) -> list[Tensor]:
        """The answers, new ids ``[B, new]`` of each batch; nothing waits any more.

        Args:
            language_model: that has read them.
            options: of :meth:`HFCausalLM.write`.
        """
        prompts, rows = self.prompts, self.rows
        self.prompts, self.rows = [], []
        if not prompts:
            return []
        if all(one.joins for one in prompts):
            return list(language_model.write(prompts, **options).split(rows))
        return [language_model.write([one], **options) for one in prompts]
