"""Groups: the tokens of the crops of a batch, sampled into stacks of the length of the base map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dslight.nn.sampling import ONE_GROUP, SamplerName, mosaic, sample
from dslight.types import Grid, Views


def make_groups(
    crops: Tensor, grids: Sequence[Grid], count: int, sampler: SamplerName, position: float = 0.0, block: int = 0
) -> Tensor:
    """Sample the maps of all crops into groups.

    Args:
        crops: ``[K, h, w, C]``, all crops of all images.
        grids: per image, the (rows, columns) of its crops.
        count: S. Images with fewer crops leave the last groups zero, as the paper's code does; a sampler that makes
            more groups (``corner``) gives its first.
        sampler: how.
        position: amplitude of the position code on the mosaic.
        block: side of the blocks that ``corner`` samples from; otherwise the grid's own sides are sampled by.

    Returns:
        ``[S, I, h', w', C']``.
    """
    sizes = [rows * cols for rows, cols in grids]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]

    def sampled(tokens: Tensor, grid: Grid) -> Tensor:
        whole = placed(mosaic(tokens, grid), position)
        made = sample(whole, (block, block) if block else grid, sampler)[:count]
        lacking = count - len(made)
        return made if lacking == 0 else torch.cat([made, made.new_zeros(lacking, *made.shape[1:])])

    kinds = {grid for grid in grids if grid != (0, 0)}
    if len(kinds) == 1 and (0, 0) not in grids:  # the usual case costs no copy
        (grid,) = kinds
        return sampled(crops.unflatten(0, (-1, grid[0] * grid[1])), grid)
    by_image: dict[int, Tensor] = {}
    for grid in kinds:
        images = [i for i, own in enumerate(grids) if own == grid]
        chosen = torch.stack([crops[offsets[i] : offsets[i] + sizes[i]] for i in images])
        by_image |= dict(zip(images, sampled(chosen, grid).unbind(1), strict=True))
    shape = next(iter(by_image.values())).shape if by_image else (count, *crops.shape[1:])
    none = crops.new_zeros(shape) + (crops.sum() * 0 if not by_image else 0)
    return torch.stack([by_image.get(i, none) for i in range(len(grids))], dim=1)


def unfilled(views: Views, count: int, sampler: SamplerName) -> list[list[bool]]:
    """Which of ``count`` groups of each base view (of each of its pieces) no crop fills, ``[count][M]``."""
    both = zip(views.grids, views.base_pieces, strict=True)
    sizes = [rows * cols for (rows, cols), (high, wide) in both for _ in range(high * wide)]
    if sampler in ONE_GROUP:
        return [[size == 0 for size in sizes]] * count
    return [[group >= size for size in sizes] for group in range(count)]


def placed(tokens: Tensor, position: float) -> Tensor:
    """Add the position code of its own grid to maps ``[..., height, width, C]``."""
    if not position:
        return tokens
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    height, width, channels = tokens.shape[-3:]
    code = build_sincos2d_pos_embed([height, width], channels, device=tokens.device)
    return tokens + position * code.view(height, width, channels).to(tokens.dtype)
