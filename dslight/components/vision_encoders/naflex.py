"""SigLIP 2 NaFlex: a plain vision transformer of any image size, its table of positions resized to every image's grid.

Decided here: transformers' modules are called one by one, on packed views: their own forward pass pads a batch to its
longest image. ``final`` has the last norm; the pooling head is dropped, because patches do not use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from dslight.components.transformers_config import check_source
from dslight.components.unread import weights_wait
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.components.vision_encoders.hf_models import build, of_checkpoint, refuse_lacking, vision_settings
from dslight.components.vision_encoders.statistics import statistics
from dslight.components.vision_encoders.views_attention import use
from dslight.nn.injector import inject_packed, record
from dslight.places import moved
from dslight.types import Grid
from dslight.upstream.torch import real_tensors

KIND = "siglip2_vision_model"


class NaFlexEncoder(VisionEncoder):
    """SigLIP 2's NaFlex checkpoints with every image at its own size (:class:`~dslight.NaFlexViews`).

    Args:
        pretrained: hub name or local folder; of a model with text and vision, the vision part.
        config: the configuration of the vision part, ``{model_type: siglip2_vision_model, hidden_size: ..., ...}``.
            Alone: random weights. With ``pretrained``: what the checkpoint must be.
        dtype: of the weights, e.g. ``bfloat16``.
        merge: sides of a piece in patches: what the projector's blocks have to divide.
        mean: normalisation, per channel; default: the checkpoint's own, or what its kind is published with.
        std: normalisation, per channel.

    Raises:
        ValueError: starting with the argument to change.
        WeightsError: for a checkpoint that lacks weights.

    Example:
        >>> small = {"model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 48, "patch_size": 8}
        >>> small |= {"num_hidden_layers": 3, "num_attention_heads": 2, "num_patches": 16}
        >>> encoder = dslight.NaFlexEncoder(config=small, merge=2)
        >>> two = torch.zeros(6 + 2, 3, 16, 16, dtype=torch.uint8)  # images of 2 x 3 and of 2 x 1 pieces
        >>> encoder(two, pieces=[(2, 3), (2, 1)])[0].shape
        torch.Size([8, 4, 32])
    """

    native = True

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        dtype: str = "float32",
        merge: int = 1,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        from transformers import AutoModel

        if merge < 1:
            raise ValueError(f"merge: a piece has at least 1 x 1 patches, got {merge}")
        options: dict[str, Any] = {"dtype": check_source(pretrained, config, dtype), "attn_implementation": "sdpa"}
        settings, key = vision_settings(pretrained, config, False)
        if settings.model_type != KIND:
            raise ValueError(f"{key}: {settings.model_type!r} is no {KIND}; HFVisionEncoder takes models of one size")
        missing: set[str] = set()
        if pretrained is None or weights_wait():
            try:
                model = build(settings, options)
            except ValueError as error:
                raise ValueError(f"{key}: {settings.model_type} {error}") from error
        else:
            model, missing = of_checkpoint(AutoModel, pretrained, settings, options)
        self.model: Any = getattr(model, "vision_model", model)  # transformers before 5.17 wraps it
        if getattr(self.model, "use_head", False):
            self.model.use_head = False
            del self.model.head
        use(self.model)
        self.model.train()  # from_pretrained leaves evaluation mode, and Lightning trains in the mode that it finds
        refuse_lacking(self.model, missing, pretrained)
        self._patch = int(settings.patch_size)
        self.width, self.grid = int(settings.hidden_size), (merge, merge)
        self.image_size = (merge * self._patch, merge * self._patch)
        self.mean, self.std = statistics(pretrained, settings.model_type, mean, std, False)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The model's own layers; what they take and give is packed, ``[1, V * P, C]``."""
        return self.model.encoder.layers

    def unused(self, tap: Tap) -> list[nn.Module]:
        """Behind a tap before the end lies the last norm too."""
        return super().unused(tap) + ([] if tap == "final" else [self.model.post_layernorm])

    def read(
        self,
        pixels: Tensor,
        taps: Sequence[Tap],
        stacks: Tensor | None,
        sites: Sequence[int],
        pieces: Sequence[Grid] | None = None,
    ) -> list[Tensor | None]:
        """See :meth:`VisionEncoder.read`."""
        indices = [self.resolve_tap(tap) for tap in taps]
        with ExitStack() as hooks:
            if stacks is not None:
                hooks.enter_context(inject_packed(self.layers, stacks, sites))
            inner = [index for tap, index in zip(taps, indices, strict=True) if tap != "final"]
            seen = hooks.enter_context(record(self.layers, inner))
            final = self.encode(self.normalise(pixels), self.needed(indices, sites), pieces)
        return [
            final if tap == "final" else seen[index].view(len(pixels), -1, self.width)
            for tap, index in zip(taps, indices, strict=True)
        ]

    def encode(self, pixels: Tensor, depth: int, pieces: Sequence[Grid] | None = None) -> Tensor | None:
        """The model's layers over packed views, or only the first of them."""
        (high, wide), patch, embeddings = self.grid, self._patch, self.model.embeddings
        views = pieces or [(1, 1)] * len(pixels)
        patches = pixels.unflatten(-1, (wide, patch)).unflatten(-3, (high, patch))
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(len(pixels) * high * wide, -1)  # colours last
        hidden = (embeddings.patch_embedding(patches) + self._positions(views, pixels.device))[None]
        with real_tensors():
            ends = accumulate((rows * cols * high * wide for rows, cols in views), initial=0)
            bounds = torch.tensor(list(ends), dtype=torch.int32)
        bounds = moved(bounds, pixels.device)
        for layer in self.layers[:depth]:
            hidden = layer(hidden, bounds)
        if depth < self.depth:
            return None
        return self.model.post_layernorm(hidden).view(len(pixels), -1, self.width)

    def _positions(self, views: Sequence[Grid], device: torch.device) -> Tensor:
        """Of every patch, ``[V * P, C]``, piece by piece."""
        (high, wide), embeddings = self.grid, self.model.embeddings
        side = embeddings.position_embedding_size
        table = embeddings.position_embedding.weight.view(side, side, -1)
        made = {}
        for rows, cols in set(views):
            shape = moved(torch.tensor([[rows * high, cols * wide]]), device)
            own = embeddings.resize_positional_embeddings(table, shape, rows * high * cols * wide)[0]
            made[rows, cols] = own.view(rows, high, cols, wide, -1).transpose(1, 2).flatten(0, 3)
        return torch.cat([made[view] for view in views])
