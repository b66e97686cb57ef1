"""Tiny models with every kind of stacking, and batches of questions about their images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from dslight.components import (
    ChannelConcat,
    ConditionedGate,
    CrossAttention,
    DeepStack,
    DeepStackHD,
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    GatedAdd,
    LowResolution,
    MLPProjector,
    SequenceConcat,
    Stack,
)
from dslight.types import IGNORE, Batch, Question
from dslight.vlm import VLM

PER_LEVEL = partial(MLPProjector, per_level=True)

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "LowResolution": LowResolution,
    "DeepStackL": partial(DeepStackL, num_stacks=4, start=0),
    "DeepStackL with positions": partial(DeepStackL, num_stacks=4, start=0, position=1.0),
    "DeepStackV": partial(DeepStackV, num_stacks=2, start=1),
    "SequenceConcat with newlines": partial(SequenceConcat, newline=True),
    "ChannelConcat": partial(ChannelConcat, num_crops=4),
    "DeepStackHD": partial(DeepStackHD, start=0),
    "DeepStackTaps": partial(DeepStackTaps, taps=[1, 2]),
    "CrossAttention": partial(CrossAttention, num_layers=2, num_crops=4, heads=2, head_dim=8, init=0.5),
    "stacks alone": lambda: DeepStack([Stack([1], "base", "identity"), Stack([2, 3, 3, 3], "crops")], base="zero"),
    "merged": lambda: DeepStack([Stack([1, 2], "crops", "patch_merge"), Stack([1], "crops", "pool")]),
    "both sides": lambda: DeepStack([Stack([1, 2, 3, 3])], [Stack([1, 2, 3, 3])]),
    "gated": partial(DeepStackL, num_stacks=4, start=0, operation=partial(GatedAdd, init=0.5)),
    "gated by the decoder": partial(DeepStackL, num_stacks=4, start=0, operation=partial(ConditionedGate, init=0.5)),
}


@pytest.fixture
def make_vlm(tiny_encoder, tiny_lm) -> Callable[..., VLM]:
    """``make_vlm(scheduler, projector, **lm)``: by its name above, or a scheduler."""

    def make(scheduler: Any, projector: Any = PER_LEVEL, **lm: Any) -> VLM:
        stacking = SCHEDULERS[scheduler]() if isinstance(scheduler, str) else scheduler
        return VLM(tiny_encoder(), projector, stacking, tiny_lm(**lm)).eval()

    return make


@pytest.fixture
def ask(make_views) -> Callable[..., Batch]:
    """``ask(vlm, images, valid)``: a row per entry of ``images`` (its crop grids), left-padded; the last two positions
    of each are labelled.
    """

    def make(vlm: VLM, images: list[list[tuple[int, int]]], valid: list[bool] | None = None, seed: int = 0) -> Batch:
        layout = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)
        slots = [sum(layout(grid, (16, 16)) for grid in row) for row in images]
        generator = torch.Generator().manual_seed(seed)
        length = max(slots) + 6
        ids = torch.randint(3, 64, (len(images), length), generator=generator)
        mask, attention = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids)
        for row, count in enumerate(slots):
            first = length - 4 - count
            mask[row, first : first + count] = True
            attention[row, : first - 1] = 0
        labels = torch.where(torch.arange(length) >= length - 2, ids, IGNORE)
        grids = [grid for row in images for grid in row]
        views = make_views(grids, seed=seed, fine=vlm.stacking.fine) if grids else None
        if views is not None:
            views.sizes = [(16, 16)] * len(grids)
        valid = valid or [True] * len(images)
        questions = [Question(f"q{i}", "?", ("yes",), valid=v) for i, v in enumerate(valid)]
        return Batch(ids, attention, mask, labels, views, questions=questions)

    return make
