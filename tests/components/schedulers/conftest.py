"""What the tests of the schedulers share: an encoder without attention, and images in which one place is painted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dslight.components import MLPProjector, VisionEncoder
from dslight.components.stacking import StackingScheduler
from dslight.types import Views, VisualTokens

Box = tuple[float, float, float, float]
"""A place of an image: top, bottom, left, right, in 0..1."""


class _Tokenwise(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tanh(self.linear(hidden))


class PatchEncoder(VisionEncoder):
    """4 x 4 patches of 12 pixels, 4 layers, no attention: a token knows its own patch and nothing else."""

    width, grid, image_size, mean, std = 8, (4, 4), (48, 48), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 12, stride=12)
        self.blocks = nn.ModuleList(_Tokenwise(8) for _ in range(4))

    @property
    def layers(self):
        return self.blocks

    def encode(self, pixels: Tensor, depth: int) -> Tensor | None:
        hidden = self.embed(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks[:depth]:
            hidden = block(hidden)
        return hidden if depth == self.depth else None


@pytest.fixture
def patch_encoder() -> PatchEncoder:
    torch.manual_seed(0)
    return PatchEncoder().eval().requires_grad_(False)


def _tiles(place: Box | None, rows: int, cols: int, fine: int = 1) -> Tensor:
    """An image of ``rows x cols`` tiles of ``fine x fine`` views each, grey but for the place: ``[.., 3, 48, 48]``."""
    height, width = rows * fine * 48, cols * fine * 48
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    if place is not None:
        top, bottom, left, right = (
            round(side * length) for side, length in zip(place, (height, height, width, width), strict=True)
        )
        image[:, top:bottom, left:right] = 200
    tiles = image.reshape(3, rows, fine, 48, cols, fine, 48).permute(1, 4, 2, 5, 0, 3, 6)
    return tiles.reshape(rows * cols * fine * fine, 3, 48, 48)


@pytest.fixture
def painted() -> Callable[..., Views]:
    """``painted(grids, image, place, fine, sizes)``: grey images, of which one is painted at a place of its own."""

    def paint(grids, image=0, place=None, fine=0, sizes=()) -> Views:
        views = []
        for i, (rows, cols) in enumerate(grids):
            at = place if i == image else None
            views.append(_tiles(at, 1, 1))
            if rows:
                views.append(_tiles(at, rows, cols))
            if fine:
                views.append(_tiles(at, 1, 1, fine))
                views.append(_tiles(at, rows, cols, fine))
        return Views(torch.cat(views), list(grids), fine, list(sizes)[: len(grids)])

    return paint


@pytest.fixture
def lay_out() -> Callable[..., VisualTokens]:
    """``lay_out(scheduler, encoder, views)``: all the way to slots, through a random linear projector per level."""

    def run(scheduler: StackingScheduler, encoder: Any, views: Views) -> VisualTokens:
        torch.manual_seed(1)
        projector = MLPProjector(scheduler.widths(encoder), 16, layers=1, per_level=True).requires_grad_(False)
        scheduler.connect(16)
        if scheduler.newline is not None:
            with torch.no_grad():
                scheduler.newline.fill_(7.0)
        with torch.no_grad():
            return scheduler.lay_out(projector(scheduler(encoder, views)), views)

    return run
