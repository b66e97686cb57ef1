"""Back to the image: from a number per stacked token to numbers on the patches of the views it was made of.

Taps, samplers, crops, newline tokens and unpadding decide which patches a token shows, and every scheduler may decide
anew. Decided here: no table of that is kept. A scheduler arranges features *linearly* (it selects, groups, averages),
so the way back is the transpose of what it does, and autograd has that: the scheduler is run on features that are all
zero, and the numbers are pulled back through it as gradients are. Their sum is kept; a pooled token is spread over the
patches that it is the mean of; position codes and biases are constants and drop out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dslight.components.projector import Projector
from dslight.components.stacking import StackingScheduler
from dslight.components.vision_encoder import Tap, VisionEncoder
from dslight.nn.sampling import mosaic
from dslight.types import Grid, Views

CHANNELS = 4  # of the features that stand for patches; position codes need a multiple of 4

Kind = Literal["base", "crops", "fine"]


class NoPlace(ValueError):  # noqa: N818 - it is no fault
    """Tokens that show no place of the image."""


class _Patches:
    """Stands for the vision encoder: gives the features it was made with, and notes the stacks it is given."""

    def __init__(self, encoder: VisionEncoder, features: Tensor) -> None:
        self._encoder, self._features = encoder, features
        self.stacks: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def __call__(
        self,
        pixels: Tensor,
        taps: Sequence[Tap] = ("final",),
        stacks: Tensor | None = None,
        sites: Any = (),
        pieces: Any = None,
    ) -> list[Tensor]:
        if stacks is not None:
            self.stacks = stacks
        return [self._features[pixels]] * len(taps)


class _LayOut(nn.Module):
    def __init__(self, stacking: StackingScheduler) -> None:
        super().__init__()
        self.stacking = stacking

    def forward(self, tokens: Tensor, views: Views) -> Tensor:
        return self.stacking.lay_out(tokens, views).slots


def to_patches(
    stacking: StackingScheduler,
    encoder: VisionEncoder,
    projector: Projector,
    views: Views,
    slots: Tensor,
    inside: Tensor | None = None,
) -> Tensor:
    """Numbers of tokens to numbers of patches.

    Args:
        stacking, encoder, projector: of the model.
        views: of the batch.
        slots: ``[S+1, N]``, a number for every token of every slot.
        inside: ``[S', M * P]``, for every token of the stacks into the vision encoder.

    Returns:
        float32 ``[S' + S + 1, V, rows, cols]`` on the CPU: slot 0 first, then the stacks in the order of their numbers.

    Raises:
        NoPlace: where the projector's tokens show no place.
    """
    slots = slots.detach().float().cpu()
    count, (rows, cols) = len(views.pixels), encoder.grid
    numbers = replace(views, pixels=torch.arange(count))  # a view's pixels are its number
    with torch.inference_mode(False), torch.enable_grad():
        features = torch.zeros(count, rows * cols, CHANNELS, requires_grad=True)
        patches = _Patches(encoder, features)
        levels = stacking(patches, numbers)
        within = projector.out_grid((levels[0].shape[1], levels[0].shape[2]))
        tokens = torch.zeros(len(levels), len(levels[0]), *within, projector.out_width, requires_grad=True)
        plain = {f"stacking.{name}": torch.zeros(p.shape) for name, p in stacking.named_parameters()}  # may be sharded
        laid = functional_call(_LayOut(stacking), plain, (tokens, numbers))
        found = []
        for slot, given in enumerate(slots):
            wanted = torch.zeros_like(laid)
            wanted[slot, :, 0] = given
            (of_maps,) = torch.autograd.grad(laid, tokens, wanted, retain_graph=True, allow_unused=True)
            found.append(_through(levels, of_maps, projector, features))
        if inside is not None and len(inside) and patches.stacks is not None:
            stacks = patches.stacks.flatten(1, -2)
            for number, given in enumerate(inside.detach().float().cpu()):
                wanted = torch.zeros_like(stacks)
                wanted[number] = given[:, None] / stacks.shape[-1]
                (of_patches,) = torch.autograd.grad(stacks, features, wanted, retain_graph=True)
                found.insert(1 + number, of_patches.sum(-1))
    return torch.stack(found).unflatten(-1, (rows, cols))


def _through(levels: Sequence[Tensor], of_maps: Tensor | None, projector: Projector, features: Tensor) -> Tensor:
    """Behind the projector ``[levels, M, h', w', D]`` to the patches ``[V, P]``."""
    total = torch.zeros(features.shape[:2])
    for level, given in zip(levels, () if of_maps is None else of_maps.sum(-1), strict=False):
        if not given.any():
            continue
        spread = _enlarged(given, (level.shape[1], level.shape[2]), projector)
        wanted = (spread / level.shape[-1])[..., None].expand_as(level)
        (of_patches,) = torch.autograd.grad(level, features, wanted, retain_graph=True)
        total += of_patches.sum(-1)
    return total


def _enlarged(given: Tensor, grid: Grid, projector: Projector) -> Tensor:
    """``[M, h', w']`` on ``grid``: a token is spread over the places that it was made of."""
    high, wide = grid[0] // given.shape[1], grid[1] // given.shape[2]
    if not projector.aligned or (given.shape[1] * high, given.shape[2] * wide) != grid:
        raise NoPlace(f"the tokens of {type(projector).__name__} show no place of the image")
    return given.repeat_interleave(high, 1).repeat_interleave(wide, 2) / (high * wide)


@dataclass(frozen=True)
class Panel:
    """One map over one picture.

    Attributes:
        slot: 0, or the stack's number.
        kind: the views that it lies over.
        picture: uint8 ``[3, H, W]``.
        heat: ``[rows, cols]`` over all of it.
    """

    slot: int
    kind: Kind
    picture: Tensor
    heat: Tensor


def panels(views: Views, patches: Tensor, image: int = 0) -> list[Panel]:
    """The maps of one image, each over the views that its tokens were made of: the base view, the mosaic of the crops,
    the mosaic of the fine crops. Maps that are zero everywhere lie over the base view.

    Args:
        views: of the batch.
        patches: ``[S+1, V, rows, cols]`` from :func:`to_patches`.
        image: which of the batch.
    """
    grid, fine = views.grids[image], views.fine
    base, crops = views.base_pieces[image], views.crop_pieces[image]
    tiles, first = 1 + grid[0] * grid[1], sum(views.per_image[:image])
    behind = first + base[0] * base[1]
    of: dict[Kind, tuple[slice, Grid]] = {"base": (slice(first, behind), base)}
    if tiles > 1:
        of["crops"] = (slice(behind, behind + crops[0] * crops[1]), crops)
    if fine:
        behind = first + tiles
        of["fine"] = (slice(behind, behind + fine**2), (fine, fine))  # of the base view: they show all of the image
    found = []
    for slot, of_views in enumerate(patches):
        kinds: list[Kind] = [kind for kind, (span, _) in of.items() if of_views[span].any()]
        for kind in kinds or ["base"]:
            span, tiling = of[kind]
            heat = mosaic(of_views[span][..., None].float(), tiling)[..., 0]
            pixels = views.stills[span].cpu().permute(0, 2, 3, 1)
            found.append(Panel(slot, kind, mosaic(pixels, tiling).permute(2, 0, 1), heat))
    if fine and tiles > 1:
        found += _fine_of_crops(views, patches, image)
    return found


def _fine_of_crops(views: Views, patches: Tensor, image: int) -> list[Panel]:
    """Fine crops of the crops: a mosaic of mosaics."""
    grid, n = views.grids[image], views.fine
    tiles, first = 1 + grid[0] * grid[1], sum(views.per_image[:image])
    span = slice(first + tiles + n * n, first + tiles * (1 + n * n))

    def whole(tokens: Tensor) -> Tensor:
        return mosaic(mosaic(tokens.unflatten(0, (-1, n * n)), (n, n)), grid)

    picture = whole(views.stills[span].cpu().permute(0, 2, 3, 1)).permute(2, 0, 1)
    return [
        Panel(slot, "fine", picture, whole(of_views[span][..., None].float())[..., 0])
        for slot, of_views in enumerate(patches)
        if of_views[span].any()
    ]
