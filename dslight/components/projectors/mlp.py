"""Token by token: the projectors that leave a map its size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

from dslight.components.projector import MapProjector


def mlp(
    in_width: int,
    out_width: int,
    layers: int,
    hidden: int | None = None,
    activation: type[nn.Module] = nn.GELU,
    bias: bool = True,
) -> nn.Sequential:
    """Linear layers with activations between them; with exact GELUs, LLaVA's ``mlpNx_gelu``.

    Args:
        in_width: what the first layer takes in.
        out_width: what the last layer gives.
        layers: how many linear layers.
        hidden: the width between them; ``None``: ``out_width``, as in LLaVA.
        activation: between them.
        bias: whether layers have one.
    """
    if layers < 1:
        raise ValueError(f"layers: a projector needs at least 1 layer, got {layers}")
    widths = [in_width, *[hidden or out_width] * (layers - 1), out_width]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths):
        modules += [nn.Linear(before, after, bias), activation()]
    return nn.Sequential(*modules[:-1])


class MLPProjector(MapProjector):
    """An MLP, ``[M, h, w, C]`` -> ``[M, h, w, D]``: the paper's and LLaVA-1.5's ``mlp2x_gelu``; of one layer, LLaVA's
    linear. With ``norm: pre`` it is ViP-LLaVA's, over several taps side by side.

    Args:
        in_widths: C of each level.
        out_width: D.
        layers: the number of linear layers.
        per_level: one MLP for each level; otherwise the base tokens and every stack share one, as in the paper.
        norm: a layer norm over C in front (``pre``), or ``none``.
        eps: of the layer norm.

    Example:
        >>> from functools import partial
        >>> dslight.VLM(encoder, partial(dslight.MLPProjector, layers=1), dslight.DeepStackL(), lm).projector.net
        Sequential(
          (0): Linear(in_features=16, out_features=32, bias=True)
        )
    """

    local = True

    def __init__(
        self,
        in_widths: Sequence[int],
        out_width: int,
        layers: int = 2,
        per_level: bool = False,
        norm: Literal["none", "pre"] = "none",
        eps: float = 1e-5,
    ) -> None:
        self.layers, self.norm, self.eps = layers, norm, eps
        super().__init__(in_widths, out_width, per_level)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        width = self.in_widths[level]
        net = mlp(width, self.out_width, self.layers)
        if self.norm == "none":
            return net
        return nn.Sequential(OrderedDict(norm=nn.LayerNorm(width, self.eps), mlp=net))


class IdentityProjector(MapProjector):
    """No projector, ``[M, h, w, C]`` -> the same, for an encoder that is as wide as the language model (C = D).

    Args:
        in_widths: C of each level, D all of them.
        out_width: D.

    Example:
        >>> dslight.IdentityProjector([32], 32)([torch.ones(1, 4, 4, 32)]).shape
        torch.Size([1, 1, 4, 4, 32])
    """

    local = True

    def __init__(self, in_widths: Sequence[int], out_width: int) -> None:
        if wrong := sorted(set(in_widths) - {out_width}):
            raise ValueError(
                f"in_widths: maps of width {', '.join(map(str, wrong))} do not fit a language model of width "
                f"{out_width} without a projector; use MLPProjector"
            )
        super().__init__(in_widths, out_width)

    def make(self, level: int) -> nn.Module:
        """See :meth:`MapProjector.make`."""
        return nn.Identity()
