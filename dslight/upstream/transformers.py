"""transformers. Nothing of it is imported before it is needed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from sys import modules
from typing import Any

from torch import Tensor, nn


def is_news(record: logging.LogRecord) -> bool:
    """Not that the validation of rotary settings does not know the sections of axes, which its own models read."""
    said = record.getMessage()
    return not (said.startswith("Unrecognized keys in `rope_parameters`") and "mrope_" in said)


logging.getLogger("transformers.modeling_rope_utils").addFilter(is_news)


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


def whole_layers(cache: Any, columns: int) -> list[Any]:
    """The layers of a cache, if each keeps the keys and values ``[B, heads, columns, width]`` of every column; else
    none."""
    layers = list(getattr(cache, "layers", ()))
    kept = all(type(layer).__name__ == "DynamicLayer" and layer.get_seq_length() == columns for layer in layers)
    return layers if kept else []


SPARE = 16
"""Columns that a cache with room has beyond those in use."""


def give_room(cache: Any) -> None:
    """Let the layers of a cache that keep every column take more of them without a copy of all before each time."""
    from transformers.cache_utils import DynamicLayer

    def with_room(kept: Tensor, columns: int) -> Tensor:
        rows, heads, used, width = kept.shape
        store = kept.new_empty(rows, heads, columns, width)
        store[:, :, :used] = kept
        return store

    class RoomyLayer(DynamicLayer):
        keys: Any
        values: Any

        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.keys, self.values, self.is_initialized = layer.keys, layer.values, True
            self.dtype, self.device = layer.keys.dtype, layer.keys.device
            self.stores: list[Tensor] = []

        def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            used = self.get_seq_length()
            end = used + key_states.shape[2]
            if not self.stores or end > self.stores[0].shape[2]:
                self.stores = [with_room(kept, end + SPARE) for kept in (self.keys, self.values)]
            for store, states in zip(self.stores, (key_states, value_states), strict=True):
                store[:, :, used:end] = states
            self.keys, self.values = (store[:, :, :end] for store in self.stores)
            return self.keys, self.values

        def batch_select_indices(self, indices: Tensor) -> None:
            self.stores = []
            super().batch_select_indices(indices)

    cache.layers = [RoomyLayer(layer) for layer in cache.layers]


def remember_coordinates(model: nn.Module, grid: tuple[int, int]) -> None:
    """Let models with DINOv3's positions compute the coordinates of the patches on the CPU once.

    Transformers keeps them by shape and device. Were the first to ask a pass on fake tensors, later ones in the same
    process would get the fake ones.
    """
    import torch

    with torch.device("cpu"):
        for module in {modules[type(part).__module__] for part in model.modules()}:
            if compute := getattr(module, "get_patches_center_coordinates", None):
                compute(*grid, dtype=torch.float32, device=torch.device("cpu"))


@dataclass
class Joined:
    """Tensors of a checkpoint that are one of a model, or several: experts that stand one by one in a file and in one
    tensor in memory, a projection that is split; mostly one tensor under another name.

    Attributes:
        target: the model's name (of several: the first).
        sources: transformers' pattern -> the file's names, in their order.
    """

    target: str
    sources: dict[str, list[str]] = field(default_factory=dict)
    transform: Any = None

    def made(self, model: Any, tensor: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """The model's tensors by name, given the file's by name."""
        if self.transform is None:
            (names,) = self.sources.values()
            return {self.target: tensor(names[0])}
        transform = deepcopy(self.transform)
        for pattern, names in self.sources.items():
            for name in names:
                transform.add_tensor(self.target, name, pattern, lambda name=name: tensor(name))
        made = transform.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def joined(model: Any, names: Iterable[str]) -> list[Joined]:
    """What transformers makes of a checkpoint's tensors when it reads them into ``model``, which may be without memory;
    nothing where this version has no such table.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )
    except ImportError:
        return []
    table = get_model_conversion_mapping(model)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    of_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    own, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Joined] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, own)
        if target not in own and name in own:
            target, pattern = name, None
        group = found.setdefault(target, Joined(target))
        if pattern is not None:
            group.transform = of_pattern[pattern]
        group.sources.setdefault(pattern or name, []).append(name)
    return list(found.values())


def from_settings(kind: Any, settings: Any, options: dict[str, Any]) -> Any:
    """A model of one class with random weights, of a type and with an attention that are named (``AutoModel`` does so
    for the classes that it knows).
    """
    return kind._from_config(settings, **options)


def attend_by(model: Any, name: str) -> None:
    """Let a model take the attention that is registered as ``name``, unchecked: of one that is called flash it would be
    asked whether the flash-attn package is there.
    """
    model.config._attn_implementation = name


def vision_geometry(tower: Any, grids: Tensor) -> dict[str, Any]:
    """What the towers of Qwen's kind work out from ``grids``, int64 ``[views, 3]`` of frames, rows and columns, by the
    names under which they take it instead; nothing where this version of transformers has no such way.
    """
    try:
        from transformers import vision_utils as known
    except ImportError:
        return {}
    merge, made = tower.config.spatial_merge_size, {"cu_seqlens": known.get_vision_cu_seqlens(grids)}
    made["position_ids"] = known.get_vision_position_ids(grids, merge)
    if hasattr(tower, "num_grid_per_side"):
        made["interp_indices"], made["interp_weights"] = known.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=tower.num_grid_per_side,
            mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners,
            spatial_merge_size=merge,
        )
    if getattr(tower.config, "window_size", None):
        made["window_index"], made["cu_window_seqlens"] = known.get_vision_window_index(
            grids, spatial_merge_size=merge, window_size=tower.config.window_size, patch_size=tower.config.patch_size
        )
    return made
