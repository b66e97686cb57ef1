"""Watching a run: how fast it is, what it waits for, how large its gradients are.

Every ``trainer.log_every_n_steps`` steps, and after the last one, these go to all loggers, under the same keys in every
run of a model:

    throughput/samples_per_second, .../text_tokens_per_second, .../visual_tokens_per_second (patches that the encoder
    reads), .../stacked_tokens_per_second (tokens added to a residual stream), .../tokens_per_second (positions of the
    sequence, padding left out), .../data_wait (share of the time), .../mfu (where the device's peak is known)
    memory/peak_gib, grad_norm/PART (before clipping), lr/GROUP

Decided here: rates are of all ranks, over the steps since they were last logged, validation left out. What is on the
device is counted there and fetched only when it is logged, once, together with the only collective. MFU sets the FLOPs
of the model (:mod:`dslight.run.cost`, no recomputation, no padding) against the devices' peak, as PaLM does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dslight.places import moved
from dslight.types import Batch, DenseBatch
from dslight.upstream.lightning import NEXT_BATCH, is_last


class DataWait(PassThroughProfiler):
    """Lightning tells its profiler when it asks for the next batch and when it has got it; the sum is kept here."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        """Something begins."""
        if action_name.endswith(NEXT_BATCH):
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """It is done."""
        if action_name.endswith(NEXT_BATCH):
            self.seconds += time.perf_counter() - self._since


class Watch(pl.Callback):
    """Logs what the module's docstring lists.

    Args:
        flops: of a batch, given (views, rows, positions, sum of the rows' or documents' squared positions, supervised
            positions); called once at the start to be made, and only where the device's peak is known.
        waited: the Trainer's profiler, where data_wait is wanted.
    """

    def __init__(
        self, flops: Callable[[], Callable[[float, float, float, float, float], float]] | None = None,
        waited: DataWait | None = None,
    ) -> None:  # fmt: skip
        self.make_flops, self.waited = flops, waited
        self._flops: Callable[[float, float, float, float, float], float] | None = None
        self._peak: float | None = None
        self._counts: Tensor | None = None  # as _counted gives them
        self._seconds = self._since = self._waited = 0.0
        self._step = 0  # optimizer steps before this batch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        device = trainer.strategy.root_device
        self._peak = get_available_flops(device, _dtype(trainer, device))
        if self._peak and self.make_flops is not None:
            self._flops = self.make_flops()
        self._begin()

    def _begin(self) -> None:
        self._counts, self._seconds, self._since = None, 0.0, time.perf_counter()
        self._waited = self.waited.seconds if self.waited else 0.0

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on."""
        self._since = time.perf_counter()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        self._step = trainer.global_step
        if not isinstance(batch, Batch | DenseBatch):  # a stranger's: who knows what is in it
            return
        counts = _counted(batch, pl_module)
        self._counts = counts if self._counts is None else self._counts + counts

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the gradients' norms, and the learning rates of this step."""
        if not _logged(trainer, trainer.global_step + 1):
            return
        divisor = getattr(pl_module, "gradient_divisor", 1.0)
        for name, part in _parts(pl_module).items():
            norm = gradient_norm(part.parameters())
            if norm is not None:
                pl_module.log(f"grad_norm/{name}", norm / divisor, batch_size=1)
        for i, group in enumerate(optimizer.param_groups):
            pl_module.log(f"lr/{group.get('name', i)}", group["lr"], batch_size=1)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rates, behind an optimizer step."""
        stepped = trainer.global_step > self._step
        if self._counts is None or not stepped or not _logged(trainer, trainer.global_step):
            return
        counts = trainer.strategy.reduce(self._counts, reduce_op="sum").tolist()  # waits for the device
        seconds = self._seconds + time.perf_counter() - self._since
        for name, value in self._rates(trainer, pl_module, counts, seconds).items():
            pl_module.log(name, value, batch_size=1)
        self._begin()

    def _rates(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, counts: list[float], seconds: float
    ) -> dict[str, float]:
        samples, rows, views, patches, learned, positions, visual, squares = counts
        rates = {"samples": samples}
        if positions:
            stacks = getattr(_parts(pl_module).get("stacking"), "num_stacks", 0)
            rates |= {"tokens": positions, "text_tokens": positions - visual, "stacked_tokens": visual * stacks}
        rates |= {"visual_tokens": patches}
        found = {f"throughput/{name}_per_second": value / seconds for name, value in rates.items()}
        if self.waited is not None:
            found["throughput/data_wait"] = (self.waited.seconds - self._waited) / seconds
        if self._flops is not None and self._peak:
            spent = self._flops(views, rows, positions, squares, learned)
            found["throughput/mfu"] = spent / seconds / (self._peak * trainer.world_size)
        return found | {"memory/peak_gib": peak_bytes(trainer.strategy.root_device) / 2**30}


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """The Euclidean norm of all gradients, whole where they are sharded; ``None`` where there are none."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return None
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of this process's tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _parts(pl_module: Any) -> dict[str, nn.Module]:
    return pl_module.parts() if hasattr(pl_module, "parts") else {"model": pl_module}


def _dtype(trainer: pl.Trainer, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in, by the trainer's precision."""
    with trainer.precision_plugin.forward_context():
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return torch.get_default_dtype()


def _logged(trainer: pl.Trainer, step: int) -> bool:
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and (step % every == 0 or is_last(trainer, step))


def _counted(batch: Any, pl_module: Any) -> Tensor:
    """Samples, rows, views, patches, supervised positions, positions, visual slots, squared positions of the rows (of
    packed ones, their documents): float32 ``[8]``."""
    encoder = _parts(pl_module).get("vision_encoder")
    grid = getattr(encoder, "grid", (0, 0))
    views = 0 if batch.views is None else len(batch.views.pixels)
    places = batch.places if isinstance(batch, Batch) else None
    learned = 0 if places is None or places.supervised is None else len(places.supervised)
    known = [len(batch.keys) or len(batch), len(batch), views, views * grid[0] * grid[1], learned]
    counts = moved(torch.tensor([*known, 0, 0, 0], dtype=torch.float32), pl_module.device)
    if places is not None:
        lengths = batch.attention_mask.sum(1)
        alone = lengths
        if batch.segments is not None and places.documents is not None:
            alone = _documents(batch.segments, places.documents)
        counts[5:] = torch.stack([lengths.sum(), batch.visual_mask.sum(), alone.square().sum()])
    return counts


def _documents(segments: Tensor, starts: Tensor) -> Tensor:
    """Positions of each document; of padding, 0."""
    return starts.diff() * (segments.flatten().index_select(0, starts[:-1]) > 0)
