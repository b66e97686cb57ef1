"""transformers. Nothing of it is imported before it is needed."""

from __future__ import annotations

import ast
from functools import cache
from inspect import getsource
from sys import modules
from textwrap import dedent
from typing import Any, TypeGuard

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
    """Whether a decoder's layers call whatever is registered as their attention, and hand it the mask of four
    dimensions that the model is given, unread: their code asks transformers' table, treats no name in it as its own
    case, and passes the mask on.
    """
    decoder = model.get_decoder()
    code = modules[type(decoder).__module__]
    asks = model._can_set_attn_implementation() and hasattr(code, "ALL_ATTENTION_FUNCTIONS")
    return asks and '"sdpa"' not in _source(code) and all(_hands_on(kind) for kind in set(map(type, decoder.modules())))


@cache
def _hands_on(kind: type) -> bool:
    """Whether such a layer, if it calls an attention, calls it with the mask that it is given itself."""
    source = dedent(_source(kind.forward))
    if "attention_interface(" not in source:
        return True
    nodes = [*ast.walk(ast.parse(source))]
    calls = [n for n in nodes if isinstance(n, ast.Call) and _is_name(n.func, "attention_interface")]
    masks = [[*call.args, *(keyword.value for keyword in call.keywords)] for call in calls]
    changed = any(_is_name(n, "attention_mask") and isinstance(n.ctx, ast.Store) for n in nodes)
    return not changed and all(any(_is_name(given, "attention_mask") for given in call) for call in masks)


def _is_name(node: ast.AST, name: str) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and node.id == name


@cache
def _source(code: Any) -> str:
    try:
        return getsource(code)
    except (OSError, TypeError):  # it is written in no file
        return ""


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
