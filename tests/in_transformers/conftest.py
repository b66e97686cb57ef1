"""A tiny stacked model, ours and as transformers opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Opened:
    """A model, the folder that it was written to, and what transformers opens of it.

    Attributes:
        batch: ours, of two questions: about two pictures, and about nothing.
        given: the same, made by transformers' processor.
    """

    ours: Any
    folder: Path
    model: Any
    processor: Any
    picture: Image.Image
    batch: Any
    given: Any

    @property
    def prompt(self) -> int:
        return self.given["input_ids"].shape[1]

    def said(self, **options: Any) -> Any:
        """Our answers."""
        known = {"pad_token_id": self.ours.tokenizer.pad_token_id, "eos_token_id": self.ours.processor.stop_ids}
        return self.ours.generate(self.batch, max_new_tokens=6, **known, **options)


@pytest.fixture(scope="session")
def opened(pages, tmp_path_factory) -> Opened:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    import dslight
    from dslight.checkpoints.write import write_tensors
    from dslight.in_transformers.write import write_own

    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
    llama = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 64,
        "num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": None,
        "initializer_range": 0.3,
    }  # fmt: skip
    ours = dslight.VLM(
        dslight.TimmEncoder("vit_tiny_patch16_224", model_args=sizes),
        dslight.MLPProjector,
        dslight.DeepStackL(crops=4),
        dslight.HFCausalLM(config=llama),
    ).eval()
    ours.tokenizer = AutoTokenizer.from_pretrained(pages / "tokenizer")
    folder = tmp_path_factory.mktemp("opened") / "model"
    folder.mkdir()
    write_own(ours, ours.processor, ours.to_recipe(), folder)
    write_tensors({f"vlm.{name}": tensor for name, tensor in ours.state_dict().items()}, folder, "5GB")
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    one, two = (Image.fromarray(rng.integers(0, 255, (size, 40, 3), dtype=np.uint8)) for size in (24, 90))
    images = [{"type": "image", "image": each} for each in (one, two)]
    talks = [
        [{"role": "user", "content": [*images, {"type": "text", "text": "B2 A1"}]}],
        [{"role": "user", "content": "A1"}],
    ]
    given = processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True, return_dict=True)
    batch = ours.processor.ask(["B2 A1", "A1"], [[one, two], None])
    return Opened(ours, folder, model, processor, one, batch, given)
