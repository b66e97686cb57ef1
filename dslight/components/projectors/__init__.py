"""The projectors of this library: small final classes of :class:`~dslight.components.Projector`."""

from dslight.components.projectors.convolution import CAbstractorProjector
from dslight.components.projectors.merging import AveragePoolProjector, PixelShuffleMLPProjector
from dslight.components.projectors.mlp import IdentityProjector, MLPProjector
from dslight.components.projectors.resampler import PerceiverResamplerProjector
from dslight.components.projectors.window import WindowQFormerProjector

__all__ = [
    "AveragePoolProjector",
    "CAbstractorProjector",
    "IdentityProjector",
    "MLPProjector",
    "PerceiverResamplerProjector",
    "PixelShuffleMLPProjector",
    "WindowQFormerProjector",
]
