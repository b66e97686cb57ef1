"""What a recipe says of a model of transformers: a checkpoint, a configuration, or both. For encoders and decoders."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch


def check_source(pretrained: str | None, config: Mapping[str, Any] | None, dtype: str) -> torch.dtype:
    """The dtype that ``dtype`` names.

    Raises:
        ValueError: when it names none, or neither a checkpoint nor a configuration is given.
    """
    if pretrained is None and config is None:
        raise ValueError("pretrained: name a checkpoint, or give a `config` for random weights")
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype):
        raise ValueError(f"dtype: {dtype!r} is no torch dtype; float32, bfloat16 and float16 are")
    return named


def check_attention(attention: str | None, dtype: torch.dtype) -> str | None:
    """What transformers takes as ``attn_implementation``.

    Args:
        attention: as the recipe says; ``auto``: FlashAttention where it is installed and the weights have half
            precision, else ``sdpa``, which torch brings along; ``None``: transformers' own choice.
        dtype: of the weights.

    Raises:
        ValueError: for FlashAttention that is not installed.
    """
    if attention == "auto":
        half = dtype in (torch.bfloat16, torch.float16)
        return "flash_attention_2" if half and find_spec("flash_attn") and torch.cuda.is_available() else "sdpa"
    if attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ValueError(
            "attention: flash_attention_2 needs the package flash-attn, which is not installed here; sdpa needs "
            "nothing, auto takes FlashAttention where it is installed"
        )
    return attention


def configuration(config: Mapping[str, Any]) -> Any:
    """Transformers' configuration object of ``{model_type: llama, hidden_size: ..., ...}``.

    Raises:
        ValueError: for an architecture that transformers does not know, or a field that the architecture has not.
    """
    from transformers import AutoConfig

    if "model_type" not in config:
        raise ValueError("config.model_type: missing; name an architecture of transformers, e.g. llama, qwen2, phi3")
    options = dict(config)
    kind = options.pop("model_type")
    try:
        known = AutoConfig.for_model(kind)
    except ValueError as error:
        raise ValueError(f"config.model_type: transformers has no architecture {kind!r}") from error
    # transformers keeps a misspelt key as an attribute that nothing reads, so it is looked for here
    unknown = [key for key in options if not hasattr(known, key)]
    if unknown:
        raise ValueError(f"config.{unknown[0]}: {type(known).__name__} has no such field")
    return AutoConfig.for_model(kind, **options)


def check_agreement(expected: Mapping[str, Any], actual: Any, name: str) -> None:
    """Compare what a recipe says of a checkpoint with its own configuration.

    Raises:
        ValueError: for the first field that differs.
    """
    for key, value in expected.items():
        if getattr(actual, key, None) != value:
            raise ValueError(
                f"config.{key}: the recipe says {value!r}, the checkpoint {name} has {getattr(actual, key, None)!r}"
            )
