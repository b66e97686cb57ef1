"""A model as a Hugging Face folder: weights under llava-hf's names, in shards, and a configuration.

The names of :func:`field_names` are read back by :mod:`dslight.checkpoints.names`. What llava-hf has no name for
(stacking parameters, other encoders and projectors) keeps ours, so that nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslight.components import HFCausalLM, HFVisionEncoder, MLPProjector


def field_names(parts: Mapping[str, Any]) -> dict[str, str]:
    """Our names of a model's tensors -> llava-hf's; one name per tensor, so a tied head is the embedding."""
    body = language_body(parts["language_model"])
    linear = is_llava_projector(parts["projector"])
    found: dict[str, str] = {}
    seen: set[tuple[int, ...]] = set()
    for part, module in parts.items():
        for name, tensor in module.own_state().items():
            storage = (tensor.data_ptr(), *tensor.shape)
            if tensor.numel() and tensor.device.type != "meta" and storage in seen:
                continue
            seen.add(storage)
            ours = f"{part}.{name}"
            if part == "language_model" and body is not None:
                inner = name.removeprefix("model.")
                inner = f"model.{inner.removeprefix(f'{body}.')}" if inner.startswith(f"{body}.") else inner
                found[ours] = f"language_model.{inner}"
            elif part == "vision_encoder" and isinstance(module, HFVisionEncoder):
                found[ours] = name.replace("model.", "vision_tower.vision_model.", 1)
            elif part == "projector" and linear:
                found[ours] = name.replace("net.0", "multi_modal_projector.linear_1").replace(
                    "net.2", "multi_modal_projector.linear_2"
                )
            else:
                found[ours] = "image_newline" if ours == "stacking.newline" else ours
    return found


def is_llava_projector(projector: Any) -> bool:
    """Whether a projector is two linear layers with an exact GELU between, and one for all levels."""
    two = {f"net.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    return isinstance(projector, MLPProjector) and set(projector.own_state()) == two


def language_body(language_model: Any) -> str | None:
    """What a decoder of transformers calls itself without its head; ``None`` for others, which keep our names."""
    return language_model.model.base_model_prefix if isinstance(language_model, HFCausalLM) else None


def write_tensors(state: Mapping[str, Tensor], folder: Path, shard_size: str, dtype: torch.dtype | None = None) -> None:
    """Write ``model.safetensors``, or shards and their index when it would be larger than ``shard_size``."""
    from huggingface_hub import save_torch_state_dict

    given = {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor).detach().cpu()
        for name, tensor in state.items()
    }
    save_torch_state_dict(given, folder, max_shard_size=shard_size, metadata={"format": "pt"})


def write_json(content: Mapping[str, Any], path: Path) -> None:
    """Write readable JSON."""
    path.write_text(json.dumps(content, indent=2) + "\n")
