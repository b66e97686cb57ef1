"""transformers. Nothing of it is imported before it is needed."""

from __future__ import annotations

from sys import modules
from typing import Any

from torch import nn


def attention_of(config: Any) -> str | None:
    """Which attention a model was made with: ``sdpa``, ``eager``, ``flash_attention_2``, ..."""
    return getattr(config, "_attn_implementation", None)


def is_recurrent(model: nn.Module) -> bool:
    """Whether the state of its layers is more than keys and values of positions."""
    return bool(getattr(model, "_is_stateful", False))


def masks_windows(decoder: nn.Module) -> bool:
    """Whether a decoder makes the masks of its sliding windows by transformers' own function, so that it takes one
    mask for each kind of layer in place of them.
    """
    return hasattr(modules[type(decoder).__module__], "create_sliding_window_causal_mask")


def registers_attention(model: Any) -> bool:
    """Whether a decoder takes its attention from transformers' table, where others can be registered."""
    code = modules[type(model.get_decoder()).__module__]
    return model._can_set_attn_implementation() and hasattr(code, "ALL_ATTENTION_FUNCTIONS")


def recomputes_with_hooks(layer: nn.Module) -> bool:
    """Whether gradient checkpointing is on and calls the layer again together with its hooks: before 5.23, where the
    layer's ``__call__`` did it.
    """
    checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
    return bool(checkpointed) and type(layer).__call__ is not nn.Module.__call__


def remember_coordinates(grid: tuple[int, int]) -> None:
    """Let DINOv3 compute the coordinates of the patches on the CPU once.

    Transformers keeps them by shape and device. Were the first to ask a pass on fake tensors, later ones in the same
    process would get the fake ones.
    """
    import torch
    from transformers.models.dinov3_vit import modeling_dinov3_vit

    modeling_dinov3_vit.get_patches_center_coordinates(*grid, dtype=torch.float32, device=torch.device("cpu"))
