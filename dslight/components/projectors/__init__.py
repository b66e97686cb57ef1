"""The projectors of this library: small final classes of :class:`~dslight.components.Projector`."""

from dslight.components.projectors.mlp import IdentityProjector, MLPProjector

__all__ = ["IdentityProjector", "MLPProjector"]
