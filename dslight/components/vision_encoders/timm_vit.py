"""Vision transformers of the timm library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.vision_encoder import Tap, VisionEncoder, say_unseen
from dslight.components.vision_encoders.discovery import discover, key_of, remembered
from dslight.components.vision_encoders.stream import VIEWS, Stream, drop, first_layers, whole_layers
from dslight.components.vision_encoders.timm_models import create_timm_model, image_size_of
from dslight.types import Grid

MAPS = "TimmFeatureMaps reads the feature maps of such a model"
"""How the refusal of a model ends whose feature maps can be read."""


class TimmEncoder(VisionEncoder):
    """Any timm vision transformer whose layers take and give one stream ``[B, N, C]`` (ViT, DeiT, CLIP, SigLIP,
    DINOv2/v3, EVA, BEiT, AIMv2, the towers of Qwen3-VL and DeepSeek, and others): found out by a pass that computes
    nothing, before any weight is read. ``python -m benchmarks.encoders`` lists which do.

    Args:
        name: timm's model name, e.g. ``vit_large_patch14_clip_336.openai``.
        pretrained: load timm's weights from the hub (never while building without memory).
        model_args: more arguments of ``timm.create_model``, e.g. ``{img_size: 16, patch_size: 4, embed_dim: 64, depth:
            5}``.
        mean: normalisation, per channel; default: what the weights were trained with.
        std: normalisation, per channel.
        sincos_position: initialise the position embedding with this amplitude times the 2-D sine-cosine code (random
            weights only). It helps a small encoder to find neighbouring patches early.

    Raises:
        ValueError: starting with the argument to change.

    Example:
        >>> encoder = dslight.TimmEncoder("vit_tiny_patch16_224")  # pretrained=True reads timm's weights
        >>> encoder.width, encoder.grid, encoder.depth
        (192, (14, 14), 12)
    """

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        sincos_position: float | None = None,
    ) -> None:
        super().__init__()
        if sincos_position is not None and pretrained:
            raise ValueError("sincos_position: initialises random weights, but pretrained is true")
        path, self._stream, self.image_size = _facts(name, model_args)
        self.model: Any = create_timm_model(name, pretrained, model_args, num_classes=0)
        settings = self.model.pretrained_cfg
        self.model = self.model.get_submodule(path)
        drop(self.model, self._stream.dropped)
        self.width, self.grid, self.prefix_tokens = self._stream.width, self._stream.grid, self._stream.prefix
        self.mean = mean or settings.get("mean") or (0.5, 0.5, 0.5)
        self.std = std or settings.get("std") or (0.5, 0.5, 0.5)
        say_unseen(self.image_size, _patch(self.model), self.grid, "model_args.img_size")
        if sincos_position is not None:
            _write_positions(self.model, name, sincos_position, self.grid, self.width)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The model's own list of layers."""
        return whole_layers(self.model, self._stream.layers)

    def unused(self, tap: Tap) -> list[nn.Module]:
        """Behind a tap before the end lies the last norm too."""
        behind = [self.model.get_submodule(path) for path in self._stream.behind]
        return super().unused(tap) + ([] if tap == "final" else behind)

    def read(
        self, pixels: Tensor, taps: Sequence[Tap], stacks: Tensor | None, sites: Sequence[int]
    ) -> list[Tensor | None]:
        """As every encoder; timm's own checkpointing is refused where it would forget the stacks.

        Raises:
            RuntimeError: for stacks under ``set_grad_checkpointing``.
        """
        if (
            stacks is not None
            and self.training
            and torch.is_grad_enabled()
            and getattr(self.model, "grad_checkpointing", False)
        ):
            raise RuntimeError(
                "gradient checkpointing: timm recomputes a block together with its hooks, and so without the stacks, "
                "which are gone by then; call model.set_grad_checkpointing(False)"
            )
        return super().read(pixels, taps, stacks, sites)

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """The whole network, or only its first layers."""
        with first_layers(self.model, self._stream.layers, depth if self._stream.early else self.depth):
            output = self.model.forward_features(pixels)
        return self._stream.patches(output) if depth == self.depth else None


def _facts(name: str, args: dict[str, Any] | None) -> tuple[str, Stream, tuple[int, int]]:
    """The path of the encoder in timm's model, what it is, and the size of its images."""
    return remembered(key_of("timm", name, args), lambda: _discover(name, args))


def _discover(name: str, args: dict[str, Any] | None) -> tuple[str, Stream, tuple[int, int]]:
    with torch.device("meta"):
        model = create_timm_model(name, False, args, num_classes=0)
        size = image_size_of(model, args)
        refusals = []
        for path in ("", "encoder"):  # timm's wrappers pool what their encoder gives
            part = model.get_submodule(path) if path == "" or hasattr(model, path) else None
            if hasattr(part, "forward_features"):
                try:
                    return path, _stream(part, size, model.pretrained_cfg), size
                except ValueError as error:
                    refusals.append(str(error))
    said = refusals[0] if refusals else "has no forward_features"
    raise ValueError(f"name: {name} {said}, so there is nothing to tap or to stack on; {_else(name, args)}")


def _stream(model: Any, size: tuple[int, int], settings: dict[str, Any]) -> Stream:
    channels = int(settings.get("input_size", (3,))[0])
    if channels != 3:
        raise ValueError(f"sees {channels} channels, and no colours")
    pixels = torch.empty(VIEWS, 3, *size)
    return discover(model, lambda: model.forward_features(pixels), lambda seen, tokens: _grid(model, size))


def _else(name: str, model_args: dict[str, Any] | None) -> str:
    """Whether its feature maps can be read."""
    from dslight.components.vision_encoders.timm_features import TimmFeatureMaps

    try:
        with torch.device("meta"):
            TimmFeatureMaps(name, model_args=model_args)
    except ValueError as error:
        return f"nor does TimmFeatureMaps read it ({error})"
    return MAPS


def _grid(model: Any, size: tuple[int, int]) -> Grid:
    """(rows, columns) of patches: of timm's own maps, else what the patch embedding says."""
    try:
        with torch.no_grad():
            pixels = torch.empty(1, 3, *size)
            options = {"indices": [0], "stop_early": True, "intermediates_only": True, "output_fmt": "NCHW"}
            maps = model.forward_intermediates(pixels, **options)
        rows, columns = maps[0].shape[2:]
        return int(rows), int(columns)
    except Exception:  # where it has none, or where these ask for values
        patch = _patch(model)
        if patch is None:
            raise ValueError("does not say how its patches lie") from None
        return size[0] // patch[0], size[1] // patch[1]


def _patch(model: Any) -> tuple[int, int] | None:
    """(height, width) in pixels of a patch; ``None`` where it pads images to whole patches, or has none of one size."""
    embed = getattr(model, "patch_embed", None) or getattr(model, "embeds", None)
    patch = getattr(embed, "patch_size", None) or getattr(model, "patch_size", None)
    if patch is None or getattr(embed, "dynamic_img_pad", False):
        return None
    return (patch, patch) if isinstance(patch, int) else (int(patch[0]), int(patch[1]))


def _write_positions(model: Any, name: str, amplitude: float, grid: Grid, width: int) -> None:
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    table: Any = getattr(model, "pos_embed", None)
    rows = grid[0] * grid[1]
    fits = isinstance(table, nn.Parameter) and table.ndim == 3 and rows <= table.shape[1] <= rows + 16
    if not fits or table.shape[-1] != width or width % 4:
        raise ValueError(
            f"sincos_position: {name} has no table with one learnt position for each of its {rows} patches, so there "
            f"is nothing to initialise"
        )
    code = build_sincos2d_pos_embed(list(grid), width)
    with torch.no_grad():
        table[:, -len(code) :] = amplitude * code
