"""Vision transformers of the transformers library: CLIP, SigLIP, DINOv2 and DINOv3.

Decided here:

- ``model`` is the transformer itself, so its weights have transformers' own names (``embeddings.``,
  ``encoder.layers.``): of a CLIP or SigLIP checkpoint with text and vision the vision part is read.
- What the patches do not use (SigLIP's pooling head, DINO's mask token) is dropped, because no gradient would reach it.
- ``final`` has the last norm. CLIP itself applies it to the class token only; here it goes over the patches too.
- The whole depth runs through the model's own ``forward``; where less is needed, its parts are called one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.component import WeightsError, on_meta
from dslight.components.transformers_config import (
    check_agreement,
    check_attention,
    check_source,
    configuration,
    no_code,
    settings_of,
)
from dslight.components.unread import weights_wait
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.upstream.transformers import remember_coordinates


@dataclass(frozen=True)
class _Family:
    """Where an architecture of transformers keeps things."""

    layers: str
    norm: str
    statistics: str  # of its published preprocessing, in transformers.image_utils
    pre_norm: str | None = None
    prefix: int = 1  # without registers
    normed: bool = True  # whether last_hidden_state comes with the last norm
    positions: str | None = None  # a table that does not follow the image's size by itself
    rotary: str | None = None
    arguments: tuple[str, ...] = ()  # that a layer insists on, and gets None for


_FAMILIES = {
    "clip_vision_model": _Family(
        "encoder.layers", "post_layernorm", "OPENAI_CLIP", pre_norm="pre_layrnorm", normed=False,
        positions="embeddings.position_embedding", arguments=("attention_mask",),
    ),
    "siglip_vision_model": _Family(
        "encoder.layers", "post_layernorm", "IMAGENET_STANDARD", prefix=0,
        positions="embeddings.position_embedding", arguments=("attention_mask",),
    ),
    "dinov2": _Family("encoder.layer", "layernorm", "IMAGENET_DEFAULT"),
    "dinov2_with_registers": _Family("encoder.layer", "layernorm", "IMAGENET_DEFAULT"),
    "dinov3_vit": _Family("model.layer", "norm", "IMAGENET_DEFAULT", rotary="rope_embeddings"),
}  # fmt: skip


class HFVisionEncoder(VisionEncoder):
    """CLIP, SigLIP (and SigLIP2 at a fixed resolution), DINOv2 (with and without registers) or DINOv3 ViT.

    A DINOv3 that trains rescales its patch coordinates at random in every pass (``pos_embed_rescale``), as its authors
    trained it; frozen, it does not.

    Args:
        pretrained: hub name or local folder; weights and configuration come from there.
        config: the configuration of the vision part, ``{model_type: clip_vision_model, hidden_size: ..., ...}``. Alone:
            random weights. With ``pretrained``: what the checkpoint must be, so that a recipe can be planned and
            checked without reading it.
        dtype: of the weights, e.g. ``bfloat16``.
        attention: transformers' ``attn_implementation``: ``sdpa``, ``eager``, ``flash_attention_2``, ..., or ``auto``.
        image_size: height and width in pixels of one view; default: the configuration's. At another one the position
            embedding of CLIP and SigLIP is resized once (bicubic, as transformers' ``interpolate_pos_encoding``), DINO
            does so by itself.
        extra_layers: new layers of the same kind behind those of the checkpoint, with random weights, before the last
            norm: DeepStack-V needs them where its sites go beyond the encoder's depth (5, at CLIP-L, in the paper's
            code). Negative taps count from the new end.
        mean: normalisation, per channel; default: the checkpoint's own, or what its family is published with.
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
        settings = _settings(pretrained, config, trust_remote_code)
        self._family = _FAMILIES[settings.model_type]
        layers = settings.num_hidden_layers
        settings.num_hidden_layers = layers + extra_layers
        missing: set[str] = set()
        if pretrained is None or weights_wait():
            model = AutoModel.from_config(settings, **options)
        else:
            with no_code(pretrained, "pretrained"):
                model, report = AutoModel.from_pretrained(
                    pretrained, config=settings, output_loading_info=True, **options
                )
            missing = set(report["missing_keys"])
        self.model: Any = getattr(model, "vision_model", model)  # transformers before 5.17 wraps CLIP's and SigLIP's
        _drop_unused(self.model)
        self.model.train()  # from_pretrained leaves evaluation mode, and Lightning trains in the mode that it finds
        new = {f"{self._family.layers}.{layers + i}." for i in range(extra_layers)}
        lacking = [
            name
            for name, _ in self.model.named_parameters()
            if {name, f"vision_model.{name}"} & missing and not name.startswith(tuple(new))
        ]
        if lacking:
            more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
            raise WeightsError(f"pretrained: the checkpoint {pretrained} lacks {', '.join(lacking[:3])}{more}")
        self.width = int(settings.hidden_size)
        self.prefix_tokens = self._family.prefix + int(getattr(settings, "num_register_tokens", 0))
        patch = _pair(settings.patch_size)
        self.image_size = _pair(image_size or settings.image_size)
        self.grid = (self.image_size[0] // patch[0], self.image_size[1] // patch[1])
        if min(self.grid) < 1:
            raise ValueError(f"image_size: {image_size} pixels are less than one patch of {max(patch)}")
        if self._family.positions is not None and self.image_size != _pair(settings.image_size):
            _resize_positions(self.model.embeddings, self.image_size[0], self.grid, self._family.prefix)
        if self._family.rotary is not None:
            remember_coordinates(self.grid)
        self.mean, self.std = _statistics(pretrained, self._family, mean, std)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The model's own list of layers."""
        return cast(Sequence[nn.Module], self.model.get_submodule(self._family.layers))

    @property
    def norm(self) -> nn.Module:
        """The last norm."""
        return self.model.get_submodule(self._family.norm)

    def unused(self, tap: Tap) -> list[nn.Module]:
        """Behind a tap before the end lies the last norm too."""
        return super().unused(tap) + ([] if tap == "final" else [self.norm])

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """The model's own forward pass, or only its first layers."""
        family = self._family
        if depth == self.depth:
            final = self.model(pixels, return_dict=True).last_hidden_state
            return (final if family.normed else self.norm(final))[:, self.prefix_tokens :]
        hidden = self.model.embeddings(pixels)
        if family.pre_norm is not None:
            hidden = self.model.get_submodule(family.pre_norm)(hidden)
        options: dict[str, Any] = dict.fromkeys(family.arguments)
        if family.rotary is not None:
            options["position_embeddings"] = self.model.get_submodule(family.rotary)(pixels)
        for layer in self.layers[:depth]:
            hidden = layer(hidden, **options)
        return None


def _settings(pretrained: str | None, config: dict[str, Any] | None, trust: bool) -> Any:
    """The configuration of the vision part."""
    known = ", ".join(_FAMILIES)
    if config is not None and "model_type" not in config:
        raise ValueError(f"config.model_type: missing; name one of {known}")
    if config is not None and config["model_type"] not in _FAMILIES:
        kind = config["model_type"]
        part = f"{kind}_vision_model"
        hint = f"; describe the vision part alone, {part}" if part in _FAMILIES else ""
        raise ValueError(f"config.model_type: {kind!r} is none of {known}{hint}")
    if pretrained is None or (config is not None and on_meta()):
        return configuration(config or {})
    whole = settings_of(pretrained, trust)
    settings = getattr(whole, "vision_config", whole)
    if settings.model_type not in _FAMILIES:
        raise ValueError(f"pretrained: {pretrained} is a {settings.model_type!r}, none of {known}")
    check_agreement(config or {}, settings, pretrained)
    return settings


def _drop_unused(model: Any) -> None:
    """Take out what has nothing to do with the features of patches."""
    if getattr(model, "use_head", False):  # SigLIP's attention pooling
        model.use_head = False
        del model.head
    if getattr(model.embeddings, "mask_token", None) is not None:  # of DINO's own pretraining
        model.embeddings.mask_token = None


def _resize_positions(embeddings: Any, size: int, grid: tuple[int, int], prefix: int) -> None:
    """Resize the position table ``[prefix + P, C]`` of CLIP's and SigLIP's embeddings to another (square) image."""
    table = embeddings.position_embedding.weight.detach()
    side = math.isqrt(len(table) - prefix)
    patches = table[prefix:].float().T.view(1, -1, side, side)
    patches = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    table = torch.cat([table[:prefix], patches.flatten(2)[0].T.to(table.dtype)])
    embeddings.position_embedding = nn.Embedding.from_pretrained(table, freeze=False)
    count = len(table)
    embeddings.register_buffer("position_ids", torch.arange(count, device=table.device)[None], persistent=False)
    embeddings.image_size, embeddings.num_patches, embeddings.num_positions = size, count - prefix, count


def _statistics(
    pretrained: str | None, family: _Family, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pixels: as given, else the checkpoint's, else the family's."""
    from transformers import ImageProcessingMixin, image_utils

    given: dict[str, Any] = {}
    if pretrained is not None and not on_meta():
        try:
            given, _ = ImageProcessingMixin.get_image_processor_dict(pretrained)
        except OSError:  # a checkpoint without preprocessing
            given = {}
    published = [getattr(image_utils, f"{family.statistics}_{name}") for name in ("MEAN", "STD")]
    return mean or given.get("image_mean") or published[0], std or given.get("image_std") or published[1]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
