"""A tokenizer of bytes and a random model of a few thousand parameters, for contracts that need them."""

from __future__ import annotations

from typing import Any

import torch

from dslight.components import DeepStackL, HFCausalLM, MLPProjector, TimmEncoder
from dslight.vlm import VLM


def byte_tokenizer() -> Any:
    """A fast tokenizer of bytes and an end token, 257 in all."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<end>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")


def tiny_model(kind: type[VLM] = VLM, **arguments: Any) -> VLM:
    """A model of ``kind`` of four random parts, whose tokenizer is :func:`byte_tokenizer`: views of 16 x 16 pixels,
    four crops stacked into four layers.

    Args:
        kind: :class:`dslight.VLM`, or a subclass.
        arguments: its own; also parts in place of these.

    Example:
        >>> from dslight.testing import tiny_model
        >>> tiny_model().stacking.sites
        (0, 1, 2, 3)
    """
    torch.manual_seed(0)
    vit = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    llama |= {"num_attention_heads": 2, "vocab_size": 257, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    parts: dict[str, Any] = {
        "vision_encoder": TimmEncoder("vit_tiny_patch16_224", model_args=vit),
        "projector": MLPProjector,
        "stacking": DeepStackL(crops=4, start=0),
        "language_model": HFCausalLM(config=llama),
    }
    model = kind(**{**parts, **arguments})
    model.tokenizer = byte_tokenizer()
    return model
