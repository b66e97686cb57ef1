"""A language model that answers with what its question holds between ``<<`` and ``>>``, for recipes of tests."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dslight import HFCausalLM

SAID = re.compile("<<(.*?)>>", re.DOTALL)


class Copying(HFCausalLM):
    """It sees pictures and prompt as any other, through its tokenizer; only what it says is its own."""

    def generate_ids(self, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        if self.tokenizer is None:
            self.tokenizer = self.load_tokenizer()
        said = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            found = SAID.findall(self.tokenizer.decode(ids[mask.bool()]))
            ids = [*self.tokenizer.encode(found[-1] if found else ""), self.tokenizer.eos_token_id]
            said.append(torch.tensor(ids[: options["max_new_tokens"]]))
        return pad_sequence(said, batch_first=True, padding_value=options["pad_token_id"])
