"""How often a training step would wait for a GPU: at most twice, once to see that the loss is finite."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader
from waits import Waits

from dslight.components import (
    CrossAttention,
    DeepStackL,
    DeepStackV,
    GatedAdd,
    LowResolution,
    MLPProjector,
    SequenceConcat,
)
from dslight.train.finite import FiniteLoss
from dslight.train.optim import PartTraining, Stage
from dslight.types import IGNORE, Batch
from dslight.upstream.torch import fake_tensors
from dslight.vlm import VLM

STACKINGS = {
    "low": LowResolution,
    "DeepStackL": lambda: DeepStackL(crops=4, start=0),
    "DeepStackL, gated": lambda: DeepStackL(crops=4, start=0, operation=GatedAdd),
    "DeepStackV": lambda: DeepStackV(crops=4, start=0),
    "cross-attention": lambda: CrossAttention(num_layers=2, heads=2, head_dim=8, init=0.1),
    "mosaic with newlines": lambda: SequenceConcat(newline=True),
}


def batch(make_views, model, packed, seed=0):
    """Two rows with a picture each, of four and of two crops, padded on the right."""
    grids = [(2, 2), (1, 2)] if model.stacking.uses_crops else [(0, 0), (0, 0)]
    views = make_views(grids, seed)
    slots = model.stacking.slot_layout(model.vision_encoder, model.projector)
    counts = [slots(grid, (16 * max(1, grid[0]), 16 * max(1, grid[1]))) for grid in grids]
    views.sizes = [(16 * max(1, grid[0]), 16 * max(1, grid[1])) for grid in grids]
    length = max(counts) + 12
    ids = torch.randint(0, 64, (2, length), generator=torch.Generator().manual_seed(seed))
    mask, visual = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, count in enumerate(counts):
        visual[row, 1 : 1 + count] = True
        mask[row, 1 + count + 8 + row :] = 0
    labels = ids.masked_fill(visual | (mask == 0), IGNORE)
    segments = None
    if packed:
        segments = mask + (torch.arange(length) > max(counts) + 3) * mask
        labels[:, 1:] = labels[:, 1:].masked_fill(segments[:, 1:] != segments[:, :-1], IGNORE)
    return Batch(ids, mask, visual, labels, views, segments=segments)


@pytest.fixture(params=STACKINGS)
def model(request, tiny_encoder, tiny_lm):
    torch.manual_seed(0)
    return VLM(tiny_encoder(), MLPProjector, STACKINGS[request.param](), tiny_lm())


class Counting(pl.Callback):
    """From the moment a batch is there until the next one is asked for."""

    def __init__(self):
        self.steps, self._mode = [], None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._mode = Waits()
        self._mode.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._mode.__exit__(None, None, None)
        self.steps.append(self._mode.counts)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_a_step_waits_at_most_twice(model, make_views, packed):
    if packed and model.stacking.blocks:
        pytest.skip("cross-attention is not packed")
    parts = dict.fromkeys([name for name, part in model.parts().items() if [*part.parameters()]], PartTraining(1e-3))
    # Adam's counts of steps stay on the CPU, where they cannot be told from what a GPU holds
    model.train_with(Stage(parts, torch.optim.SGD, schedule="constant", warmup_steps=0))
    batches = [batch(make_views, model, packed, seed) for seed in range(4)]
    counting = Counting()
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=4, log_every_n_steps=100, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[counting, FiniteLoss()],
        gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(model, DataLoader(batches, batch_size=None))
    for counts in counting.steps[1:]:
        assert counts.total() <= 2, counts


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_a_batch_and_what_is_made_of_it_go_to_a_gpu_without_waiting(model, make_views, packed, monkeypatch):
    """On tensors that claim to be on one: forward pass and loss, in half precision, packed rows by torch's kernel."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))  # PyTorch 2.15 asks the driver
    if packed and model.stacking.blocks:
        pytest.skip("cross-attention is not packed")
    made = batch(make_views, model, packed).located()
    with fake_tensors():
        try:
            torch.ones(1).to("cuda")
        except RuntimeError as error:
            pytest.skip(f"PyTorch {torch.__version__} wants a driver also for tensors that claim: {error}")
        model.to("cuda", torch.bfloat16)
        with Waits() as waits:
            total, count = model.loss(made.to("cuda"))
        assert total.device.type == count.device.type == "cuda"
    assert not waits.counts
    assert waits.seen["_varlen_attn"] == 4 * packed
