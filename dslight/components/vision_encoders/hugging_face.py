"""Vision transformers of the transformers library: any whose layers take and give one stream ``[B, N, C]``.

Decided here:

- ``model`` is the transformer itself, so its weights have transformers' own names (``embeddings.``,
  ``encoder.layers.``): of a checkpoint with text and vision, CLIP or a whole multimodal model, the vision part is read.
- What it is, is found out on the meta device (:mod:`~dslight.components.vision_encoders.discovery`), not looked up.
- What the patches do not use (SigLIP's pooling head, DINO's mask token) is dropped, because no gradient would reach it.
- ``final`` has the last norm. CLIP itself applies it to the class token only; here it goes over the patches too.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from dslight.components.transformers_config import check_attention, check_source
from dslight.components.unread import weights_wait
from dslight.components.vision_encoder import Tap, VisionEncoder, say_unseen
from dslight.components.vision_encoders.discovery import discover, remembered
from dslight.components.vision_encoders.hf_models import (
    build,
    grid_of,
    has_table,
    instead,
    of_checkpoint,
    options_at,
    output_of,
    pair,
    refuse_lacking,
    resize_positions,
    vision_settings,
)
from dslight.components.vision_encoders.statistics import statistics
from dslight.components.vision_encoders.stream import VIEWS, Stream, drop, first_layers, whole_layers
from dslight.upstream.transformers import remember_coordinates


class HFVisionEncoder(VisionEncoder):
    """A vision transformer of transformers: CLIP, SigLIP (and SigLIP2 at a fixed resolution), DINOv2, DINOv3, ViT,
    DeiT, BEiT, AIMv2 and others; ``python -m benchmarks.encoders`` lists which.

    A DINOv3 that trains rescales its patch coordinates at random in every pass (``pos_embed_rescale``), as its authors
    trained it; frozen, it does not.

    Args:
        pretrained: hub name or local folder; weights and configuration come from there. Of a model with text and
            vision, the vision part.
        config: the configuration of the vision part, ``{model_type: clip_vision_model, hidden_size: ..., ...}``. Alone:
            random weights. With ``pretrained``: what the checkpoint must be, so that a recipe can be planned and
            checked without reading it.
        dtype: of the weights, e.g. ``bfloat16``.
        attention: transformers' ``attn_implementation``: ``sdpa``, ``eager``, ``flash_attention_2``, ..., or ``auto``.
        image_size: height and width in pixels of one view; default: the configuration's. At another one the position
            embedding is resized as transformers does it (``interpolate_pos_encoding``; CLIP's and SigLIP's once).
        extra_layers: new layers of the same kind behind those of the checkpoint, with random weights, before the last
            norm: DeepStack-V needs them where its sites go beyond the encoder's depth (5, at CLIP-L, in the paper's
            code). Negative taps count from the new end.
        mean: normalisation, per channel; default: the checkpoint's own, or what its kind is published with.
        std: normalisation, per channel.
        trust_remote_code: run code that the checkpoint brings along, or that ``attention`` fetches from the hub. It can
            do all that you can; without it, such a checkpoint is refused.

    Raises:
        ValueError: starting with the argument to change.
        WeightsError: for a checkpoint that lacks weights.

    Example:
        >>> encoder = dslight.HFVisionEncoder("openai/clip-vit-large-patch14-336")
        >>> features = encoder(torch.zeros(2, 3, *encoder.image_size, dtype=torch.uint8), taps=[-2])
        >>> features[0].shape == (2, encoder.grid[0] * encoder.grid[1], encoder.width)
        True
    """

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        dtype: str = "float32",
        attention: str | None = None,
        image_size: int | None = None,
        extra_layers: int = 0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        kind = check_source(pretrained, config, dtype)
        implementation = check_attention(attention, kind, trust_remote_code)
        options: dict[str, Any] = {"dtype": kind, "attn_implementation": implementation}
        options |= {"trust_remote_code": trust_remote_code}
        if extra_layers < 0:
            raise ValueError(f"extra_layers: must be at least 0, got {extra_layers}")
        settings, key = vision_settings(pretrained, config, trust_remote_code, partial(_refusal, options))
        layers: Any = getattr(settings, "num_hidden_layers", None)
        if extra_layers and not isinstance(layers, int):
            raise ValueError(f"extra_layers: {type(settings).__name__} has no num_hidden_layers that could be more")
        if extra_layers:
            settings.num_hidden_layers = layers + extra_layers
        size, sized = _image_size(image_size, settings, key), image_size is not None
        named = f"{type(settings).__module__} {settings.to_json_string(use_diff=False)} {size} {implementation}"
        self._stream, self._options, resized = remembered(
            f"transformers {named}", lambda: _discover(settings, size, options, key, sized)
        )
        self.image_size = cast(tuple[int, int], size)
        missing: set[str] = set()
        if pretrained is None or weights_wait():
            model = build(settings, options)
        else:
            model, missing = of_checkpoint(AutoModel, pretrained, settings, options)
        self.model: Any = getattr(model, "vision_model", model)  # transformers before 5.17 wraps CLIP's and SigLIP's
        drop(self.model, self._stream.dropped)
        self.model.train()  # from_pretrained leaves evaluation mode, and Lightning trains in the mode that it finds
        path, depth = self._stream.layers, self.depth
        new = tuple(f"{path}.{index}." for index in range(depth - extra_layers, depth))
        refuse_lacking(self.model, missing, pretrained, new)
        self.width, self.grid, self.prefix_tokens = self._stream.width, self._stream.grid, self._stream.prefix
        if resized:
            resize_positions(self.model.embeddings, self.image_size[0], self.grid, self.prefix_tokens)
        remember_coordinates(self.model, self.grid)
        patch = getattr(settings, "patch_size", None)
        say_unseen(self.image_size, pair(patch) if patch else None, self.grid, "image_size")
        self.mean, self.std = statistics(pretrained, settings.model_type, mean, std, self._stream.normalises)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The model's own list of layers."""
        return whole_layers(self.model, self._stream.layers)

    @property
    def norm(self) -> nn.Module:
        """The last norm; ``nn.Identity`` where the model has none."""
        path = self._stream.norm or (self._stream.behind[-1] if self._stream.behind else None)
        return nn.Identity() if path is None else self.model.get_submodule(path)

    def unused(self, tap: Tap) -> list[nn.Module]:
        """Behind a tap before the end lies the last norm too."""
        behind = [self.model.get_submodule(path) for path in self._stream.behind]
        return super().unused(tap) + ([] if tap == "final" else behind)

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """The model's own forward pass, or only its first layers."""
        with first_layers(self.model, self._stream.layers, depth if self._stream.early else self.depth):
            output = output_of(self.model, pixels, self._options)
        if depth < self.depth:
            return None
        if self._stream.norm is not None:
            output = self.model.get_submodule(self._stream.norm)(output)
        return self._stream.patches(output)


def _refusal(options: dict[str, Any], settings: Any) -> str | None:
    """Why a configuration is refused, if it is."""
    try:
        _discover(settings, _image_size(None, settings, "vision_config"), options, "", False)
    except ValueError as error:
        return str(error).removeprefix(": ")
    return None


def _image_size(given: int | None, settings: Any, key: str) -> tuple[int, int] | None:
    """As given or configured; ``None`` where neither says it."""
    size: Any = given or getattr(settings, "image_size", None) or getattr(settings, "img_size", None)
    patch: Any = getattr(settings, "patch_size", None)
    if size is None:
        return None
    try:
        found = pair(size)
        short = patch is not None and min(side // part for side, part in zip(found, pair(patch), strict=True)) < 1
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key}: image_size {size!r} and patch_size {patch!r} are no sizes in pixels") from error
    if short:
        raise ValueError(f"image_size: {min(found)} pixels are less than one patch of {max(pair(patch or 1))}")
    return found


def _shadow(settings: Any, options: dict[str, Any]) -> Any:
    """The model without memory, in the attention that runs anywhere."""
    plain = options | {"dtype": torch.float32}
    if plain["attn_implementation"] not in (None, "eager", "sdpa"):  # which may need a device
        plain["attn_implementation"] = None
    with torch.device("meta"):
        model = build(deepcopy(settings), plain)
    return getattr(model, "vision_model", model)


def _discover(
    settings: Any, size: tuple[int, int] | None, options: dict[str, Any], key: str, sized: bool
) -> tuple[Stream, dict[str, Any], bool]:
    """What the model is, what its forward is called with, and whether its table of positions has to be resized."""
    try:
        model = _shadow(settings, options)
        native = getattr(settings, "image_size", None)
        other = native is not None and size is not None and pair(native) != size
        resized = other and has_table(model)
        more = options_at(model, other and not resized)
        if size is None:
            raise ValueError("says no image_size; name height and width in pixels of one view")
        if resized:
            rows, columns = (side // part for side, part in zip(size, pair(settings.patch_size), strict=True))
            resize_positions(model.embeddings, size[0], (rows, columns), None)
        pixels = torch.empty(VIEWS, 3, *size, device="meta")
        run = partial(output_of, model, pixels, more)
        return discover(model, run, lambda seen, tokens: grid_of(seen, pixels, settings), True), more, resized
    except ValueError as error:
        if sized and size is not None and "cannot be run" in str(error):
            key = f"image_size: {size[0]} x {size[1]} pixels"
        raise ValueError(f"{key}: {settings.model_type} {error}{instead(settings)}") from error
