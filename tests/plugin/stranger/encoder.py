"""A vision encoder that is no timm model: DINOv2 as the transformers library has it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from dslight.components import VisionEncoder


class Dinov2Encoder(VisionEncoder):
    """DINOv2 with random weights.

    Args:
        image_size: of a view, in pixels; square.
        patch_size: of a patch, in pixels.
        hidden_size: C.
        depth: the number of layers.
        heads: of each layer.
    """

    def __init__(
        self, image_size: int = 224, patch_size: int = 14, hidden_size: int = 384, depth: int = 12, heads: int = 6
    ) -> None:
        super().__init__()
        config = Dinov2Config(
            image_size=image_size,
            patch_size=patch_size,
            hidden_size=hidden_size,
            num_hidden_layers=depth,
            num_attention_heads=heads,
        )
        self.model = Dinov2Model(config)
        self.model.embeddings.mask_token = None  # of its own pretraining only
        self.width = hidden_size
        self.image_size = (image_size, image_size)
        self.grid = (image_size // patch_size, image_size // patch_size)
        self.prefix_tokens = 1
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The transformer's own list."""
        return self.model.encoder.layer

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        """Up to the layer that is asked for; the whole network, with its last norm, when that is the last one."""
        if depth == self.depth:
            return self.model(pixels).last_hidden_state[:, self.prefix_tokens :]
        hidden = self.model.embeddings(pixels)
        for layer in self.layers[:depth]:
            hidden = layer(hidden)
        return None
