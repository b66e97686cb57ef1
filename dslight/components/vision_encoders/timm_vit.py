"""Vision transformers of the timm library."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.component import on_meta
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.limits import check_counts


class TimmEncoder(VisionEncoder):
    """Any timm vision transformer that has ``blocks`` (ViT, DeiT, CLIP, SigLIP, DINOv2/v3, EVA, BEiT and others).

    Args:
        name: timm's model name, e.g. ``vit_large_patch14_clip_336.openai``.
        pretrained: load timm's weights from the hub (never while building without memory).
        model_args: more arguments of ``timm.create_model``, e.g. ``{img_size: 16, patch_size: 4, embed_dim: 64, depth:
            5}``.
        mean: normalisation, per channel; default: what the weights were trained with.
        std: normalisation, per channel.
        sincos_position: initialise the position embedding with this amplitude times the 2-D sine-cosine code (random
            weights only). It helps a small encoder to find neighbouring patches early.

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
        from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

        self.model: Any = create_timm_model(name, pretrained, model_args, num_classes=0)
        if not isinstance(getattr(self.model, "blocks", None), nn.ModuleList | nn.Sequential):
            raise ValueError(
                f"name: {name} has no transformer blocks, so there is nothing to tap or to stack on; TimmFeatureMaps "
                f"reads the feature maps of such a model"
            )
        # pooling heads are not run; left in, they would be parameters that no gradient ever reaches
        for head, replacement in (("attn_pool", None), ("fc_norm", nn.Identity())):
            if getattr(self.model, head, None) is not None:
                setattr(self.model, head, replacement)
        self.width = int(self.model.num_features)
        self.grid = tuple(self.model.patch_embed.grid_size)
        self.image_size = tuple(self.model.patch_embed.img_size)
        self.prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))
        self.mean = mean or self.model.pretrained_cfg.get("mean", (0.5, 0.5, 0.5))
        self.std = std or self.model.pretrained_cfg.get("std", (0.5, 0.5, 0.5))
        if sincos_position is not None:
            if pretrained:
                raise ValueError("sincos_position: initialises random weights, but pretrained is true")
            code = build_sincos2d_pos_embed(list(self.grid), self.width)
            with torch.no_grad():
                self.model.pos_embed[:, -len(code) :] = sincos_position * code

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The model's ``blocks``."""
        return self.model.blocks

    def unused(self, tap: Tap) -> list[nn.Module]:
        """Behind a tap before the end lies the last norm too."""
        return super().unused(tap) + ([] if tap == "final" else [self.model.norm])

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
        if depth < self.depth:
            self.model.forward_intermediates(
                pixels, indices=[depth - 1], stop_early=True, intermediates_only=True, norm=False, output_fmt="NLC"
            )
            return None
        return self.model.forward_features(pixels)[:, self.prefix_tokens :]


def create_timm_model(name: str, pretrained: bool, model_args: dict[str, Any] | None, **options: Any) -> Any:
    """``timm.create_model``, with errors that begin with the argument to change; on the meta device nothing is read.

    Raises:
        ValueError: for a name or an argument that timm does not know.
    """
    import timm

    if ":" in name:
        raise ValueError(f"name: {name} is a place and no model of timm; name the model, and its file under `weights`")
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"):
        if key in (model_args or {}):
            raise ValueError(f"model_args.{key}: weights are read from what `weights` names, and checked there")
    check_counts(model_args or {}, "model_args")
    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name.split(".")[0], timm.list_models())) or "see timm.list_models()"
        raise ValueError(f"name: timm has no model {name!r}; similar: {close}")
    try:
        return timm.create_model(name, pretrained=pretrained and not on_meta(), **{**options, **(model_args or {})})
    except TypeError as error:
        raise ValueError(f"model_args: timm's {name} refuses {model_args}: {error}") from error
