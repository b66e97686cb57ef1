"""Which models are a LLaVA to transformers: then its own class opens them, and computes what we compute.

``LlavaForConditionalGeneration`` is an encoder that is read at one or several taps, a two-layer projector, and a
decoder with a plain linear head. Stacks have no place in it: a stacked model must not be written as one, since
transformers would silently drop them.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from dslight.checkpoints.names import translate
from dslight.checkpoints.write import field_names, is_llava_projector, language_body
from dslight.components import HFCausalLM, HFVisionEncoder, LowResolution

DECODERS = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma")
"""Architectures whose head is a plain linear layer, and whose embedded images transformers' LLaVA treats as we do."""

ENCODERS: dict[str, Literal["default", "full"]] = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Architecture -> ``vision_feature_select_strategy``: whether a class token is dropped."""


def why_not_llava(parts: dict[str, Any]) -> str | None:
    """Why transformers' LLaVA cannot be this model, for people; ``None``: it can."""
    encoder, projector, stacking, lm = (
        parts[name] for name in ("vision_encoder", "projector", "stacking", "language_model")
    )
    name = type(stacking).__name__
    if stacking.num_stacks:
        return f"plain transformers would drop the {stacking.num_stacks} stacks that {name} adds to the residual stream"
    if type(stacking) is not LowResolution or stacking.position:
        return f"transformers' LLaVA has no {name}{' with a position code' if stacking.position else ''}"
    if type(encoder) is not HFVisionEncoder or encoder.model.config.model_type not in ENCODERS:
        return f"transformers' LLaVA would have another vision encoder than {type(encoder).__name__}"
    if not all(isinstance(tap, int) for tap in stacking.base_taps):
        return "transformers' LLaVA reads its encoder without the last norm; this one is read with it (tap: final)"
    if not is_llava_projector(projector):
        return "transformers' LLaVA has one projector of two linear layers"
    if not isinstance(lm, HFCausalLM) or lm.model.config.model_type not in DECODERS:
        kind = lm.model.config.model_type if isinstance(lm, HFCausalLM) else type(lm).__name__
        return f"transformers' LLaVA may compute other logits with a {kind} than we do"
    return None


def llava_config(parts: dict[str, Any], image_token: int, vocabulary: int) -> Any:
    """The configuration of transformers' LLaVA.

    Args:
        parts: of a model that :func:`why_not_llava` has nothing against.
        image_token: id of the placeholder.
        vocabulary: the number of token ids, the placeholder's included.

    Raises:
        ValueError: when transformers would make other tensors of it than the model has.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    encoder, lm = parts["vision_encoder"], parts["language_model"]
    vision, text = encoder.model.config.to_dict(), lm.model.config.to_dict()
    headless = {"vision_use_head": False} if "siglip" in vision["model_type"] else {}
    taps = [encoder.resolve_tap(tap) for tap in parts["stacking"].base_taps]
    config = LlavaConfig(
        vision_config={**vision, "image_size": encoder.image_size[0], **headless},
        text_config={**text, "vocab_size": vocabulary},
        image_token_index=image_token,
        image_seq_length=encoder.grid[0] * encoder.grid[1],
        vision_feature_layer=taps[0] if len(taps) == 1 else taps,
        vision_feature_select_strategy=ENCODERS[encoder.model.config.model_type],
        tie_word_embeddings=bool(getattr(lm.model.config, "tie_word_embeddings", False)),
        architectures=["LlavaForConditionalGeneration"],
        dtype=lm.model.dtype,
    )  # type: ignore[arg-type]
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(config).state_dict()
    named = set(translate(theirs, body=language_body(lm) or "model").values())
    ours = set(field_names(parts))
    tied = {"language_model.model.lm_head.weight"} if config.tie_word_embeddings else set()
    if named - tied != ours - tied:
        raise ValueError(f"transformers' LLaVA would have other tensors: {', '.join(sorted(named ^ ours)[:5])}")
    return config
