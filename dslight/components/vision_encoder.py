"""Vision encoders (elsewhere: vision towers): from pixels to patch features at one or several depths.

A new encoder is a subclass of :class:`VisionEncoder` that sets six facts about itself and defines
:meth:`~VisionEncoder.encode`. Taps and ViT-side stacking then work without another line, because both are done from
outside, at the inputs of ``layers``. Run ``dslight.testing.VisionEncoderContract`` over it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dslight.components.component import Component, on_meta
from dslight.nn.injector import inject, record
from dslight.types import Grid

Tap = int | Literal["final"]
"""Where features are read: l = the input of layer l (Hugging Face's ``hidden_states[l]``; negative counts from the
end, so -2 is LLaVA's ``mm_vision_select_layer``), ``final`` = the encoder's own output, with its last norm.
"""


class VisionEncoder(Component, ABC):
    """A stack of transformer layers over patches.

    A subclass sets, in ``__init__``:

    Attributes:
        width: C, the width of the features.
        grid: (rows, columns) of patches of one view.
        image_size: (height, width) in pixels of one view.
        prefix_tokens: tokens before the patches in the residual stream (class token, registers).
        mean: per channel, of pixel values in 0..1.
        std: per channel.
    """

    kind: ClassVar[str] = "vision_encoder"

    width: int
    grid: Grid
    image_size: tuple[int, int]
    prefix_tokens: int = 0
    mean: Sequence[float]
    std: Sequence[float]

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's layers, in order. Each takes its hidden states ``[V, prefix + P, C]`` as first argument."""

    @abstractmethod
    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """Run the network.

        Args:
            pixels: float ``[V, 3, H, W]``, normalised.
            depth: how many layers are needed. Running more is allowed, but wasted; at ``len(self.layers)`` the result
                counts.

        Returns:
            The final features of the patches ``[V, P, C]``, last norm included; ignored unless ``depth`` is the full
            depth.
        """

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self.layers)

    def unused(self, tap: Tap) -> list[nn.Module]:
        """The modules whose output is not used when features are read at ``tap``."""
        return [] if tap == "final" else list(self.layers)[self.resolve_tap(tap) :]

    @property
    def shard_units(self) -> list[nn.Module]:
        """One unit per layer."""
        return list(self.layers)

    def normalise(self, pixels: Tensor) -> Tensor:
        """From uint8 ``[V, 3, H, W]`` to the encoder's own floats."""
        reference = next(self.parameters())
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return ((pixels.float() / 255 - mean) / std).to(reference.dtype)

    def resolve_tap(self, tap: Tap) -> int:
        """The tap as a layer index in 0..depth; ``final`` counts as depth.

        Raises:
            ValueError: for a tap beyond the encoder's depth.
        """
        if tap == "final":
            return self.depth
        index = tap if tap >= 0 else self.depth + 1 + tap
        if not 0 <= index <= self.depth:
            raise ValueError(
                f"tap {tap} is beyond the encoder's depth: it has {self.depth} layers, so taps 0 to {self.depth}"
            )
        return index

    def forward(
        self,
        pixels: Tensor,
        taps: Sequence[Tap] = ("final",),
        stacks: Tensor | None = None,
        sites: Sequence[int] = (),
    ) -> list[Tensor]:
        """Features of the patches, prefix tokens dropped.

        Args:
            pixels: uint8 ``[V, 3, H, W]`` at ``image_size``.
            taps: where to read.
            stacks: ``[S, V, P, C]``: added to the patches at the inputs of the layers ``sites`` (DeepStack-V).
            sites: S layer indices.

        Returns:
            One ``[V, P, C]`` per tap, P = rows * columns of ``grid``, row by row.
        """
        indices = [self.resolve_tap(tap) for tap in taps]
        patches = self.grid[0] * self.grid[1]
        with ExitStack() as hooks:
            if stacks is not None:
                mask = torch.ones(len(pixels), self.prefix_tokens + patches, dtype=torch.bool, device=pixels.device)
                mask[:, : self.prefix_tokens] = False
                hooks.enter_context(inject(self.layers, mask, stacks.flatten(1, 2), sites))
            inner = [index for tap, index in zip(taps, indices, strict=True) if tap != "final"]
            seen = hooks.enter_context(record(self.layers, inner))
            # a tap at the embedding or at a site is read when the layer behind it is entered, so that layer has to run
            needed = [min(index + (index == 0 or index in sites), self.depth) for index in indices]
            final = self.encode(self.normalise(pixels), depth=max(needed))
        features = [
            final if tap == "final" else seen[index][:, self.prefix_tokens :]
            for tap, index in zip(taps, indices, strict=True)
        ]
        for tap, feature in zip(taps, features, strict=True):
            expected = (len(pixels), patches, self.width)
            if feature is None or feature.shape != expected:
                got = None if feature is None else tuple(feature.shape)
                raise ValueError(
                    f"{type(self).__name__}: tap {tap} gave features {got}, its grid and width promise {expected}"
                )
        return features  # type: ignore[return-value]  # None was refused above


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
        import timm
        from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

        if not timm.is_model(name):
            close = ", ".join(get_close_matches(name.split(".")[0], timm.list_models())) or "see timm.list_models()"
            raise ValueError(f"name: timm has no model {name!r}; similar: {close}")
        options: dict[str, Any] = {"num_classes": 0, **(model_args or {})}
        try:
            self.model: Any = timm.create_model(name, pretrained=pretrained and not on_meta(), **options)
        except TypeError as error:
            raise ValueError(f"model_args: timm's {name} refuses {model_args}: {error}") from error
        if not isinstance(getattr(self.model, "blocks", None), nn.ModuleList | nn.Sequential):
            raise ValueError(f"name: {name} has no transformer blocks, so there is nothing to tap or to stack on")
        # pooling heads are not run; left in, they would be parameters that no gradient ever reaches
        for name, replacement in (("attn_pool", None), ("fc_norm", nn.Identity())):
            if getattr(self.model, name, None) is not None:
                setattr(self.model, name, replacement)
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

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """The whole network, or only its first layers."""
        if depth < self.depth:
            self.model.forward_intermediates(
                pixels, indices=[depth - 1], stop_early=True, intermediates_only=True, norm=False, output_fmt="NLC"
            )
            return None
        return self.model.forward_features(pixels)[:, self.prefix_tokens :]
