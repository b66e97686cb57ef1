"""The projectors of this library: small final classes of :class:`~dslight.components.Projector`."""

from dslight.components.projectors.convolution import CAbstractorProjector
from dslight.components.projectors.levels import LevelLoRAProjector, PerLevelProjector
from dslight.components.projectors.merging import AveragePoolProjector, PixelShuffleMLPProjector
from dslight.components.projectors.mlp import IdentityProjector, MLPProjector
from dslight.components.projectors.pooling import AttentionPoolProjector
from dslight.components.projectors.resampler import PerceiverResamplerProjector
from dslight.components.projectors.window import WindowQFormerProjector

__all__ = [
    "AttentionPoolProjector",
    "AveragePoolProjector",
    "CAbstractorProjector",
    "IdentityProjector",
    "LevelLoRAProjector",
    "MLPProjector",
    "PerLevelProjector",
    "PerceiverResamplerProjector",
    "PixelShuffleMLPProjector",
    "WindowQFormerProjector",
]
