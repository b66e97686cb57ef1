"""What a model costs: FLOPs and kept bytes, counted by running its parts on fake tensors.

FLOPs are counted by torch's own counter from the operations that would run, activations are the tensors that autograd
would keep. So there is no formula per architecture, and any encoder or decoder that runs has a cost: for ``dslight
plan`` before a weight is read, and for the utilisation (MFU) that a run reports while it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dslight.nn.head import narrowed
from dslight.nn.hooks import before, first_input
from dslight.recipe.experiment import Experiment
from dslight.types import Grid
from dslight.upstream.compiler import uncompiled
from dslight.upstream.torch import count_flops, fake_tensors, storage
from dslight.vlm import VLM


@dataclass(frozen=True)
class Costs:
    """Of one sample.

    Attributes:
        flops: of the forward pass, by part.
        activations: bytes that autograd keeps; less where layers are checkpointed.
        views: that the vision encoder reads.
        positions: of the sequence, visual and text.
        narrows: whether the language model's head was seen; if not, in training it makes logits of all positions.
        half: FLOPs of the language model's forward pass over half of the positions.
        head: FLOPs of the language model's head for a position; 0, where in training it sees all of them.
    """

    flops: dict[str, float]
    activations: int
    views: int
    positions: int = 0
    narrows: bool = False
    half: float = 0.0
    head: float = 0.0


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of a training step, backward pass included, by what its batches hold. What checkpointing computes again is
    not counted, nor is padding: the model FLOPs of PaLM's utilisation (MFU).

    Attributes:
        view: of a view, in encoder and projector.
        row: of a row, in blocks of cross-attention.
        position: of a position of the sequence that is no padding.
        pair: of a pair of such positions in a row (of packed rows, in a document), in attention.
        learned: of a supervised position, in the language model's head.
    """

    view: float
    row: float
    position: float
    pair: float
    learned: float = 0.0

    def __call__(self, views: float, rows: float, positions: float, pairs: float, learned: float) -> float:
        """FLOPs of a batch: ``pairs`` is the sum over its rows (documents) of their squared numbers of positions."""
        spent = self.view * views + self.row * rows + self.position * positions
        return spent + self.pair * pairs + self.learned * learned


def training_flops(experiment: Experiment, text_tokens: int = 64) -> TrainingFlops:
    """What a step costs, from the cost of one sample: a backward pass takes as much as the forward pass for the
    gradients that flow through a part, and as much again for those of its weights, as far as they train.

    Args:
        experiment: on the meta device; it is of no other use afterwards.
        text_tokens: text positions of the sample that is counted.
    """
    parts, found = experiment.model.parts(), {}
    passed = False  # whether gradients flow through what comes before
    for name in ("vision_encoder", "projector", "stacking", "language_model"):
        weights = [p for p in parts[name].parameters() if p.ndim >= 2] if name in parts else []
        trained = sum(p.numel() for p in weights if p.requires_grad) / max(1, sum(p.numel() for p in weights))
        passed = passed or trained > 0
        found[name] = (1.0 + passed + trained, 1.0 + 2 * passed)
    cost = costs(experiment, experiment.largest_grid, text_tokens, rates=True)
    spent = {name: cost.flops.get(name, 0.0) * both[0] for name, both in found.items()}
    whole, length = cost.flops.get("language_model", 0.0), max(1, cost.positions)
    near = length // 2
    pair = max(0.0, whole / length - cost.half / max(1, near)) / max(1, length - near)
    position = max(0.0, whole / length - pair * length - cost.head)
    return TrainingFlops(
        view=(spent["vision_encoder"] + spent["projector"]) / cost.views,
        row=spent["stacking"],
        position=position * found["language_model"][0],
        pair=pair * found["language_model"][1],
        learned=cost.head * found["language_model"][0],
    )


def costs(experiment: Experiment, grid: Grid, text_tokens: int, rates: bool = False) -> Costs:
    """Count one sample.

    Args:
        experiment: on the meta device; it is of no other use afterwards.
        grid: of the sample's image.
        text_tokens: text positions of the sample.
        rates: also count ``half`` and ``head``, which takes two more passes of the language model.
    """
    model, encoder = experiment.model, experiment.encoder
    flops: dict[str, float] = {}
    kept: dict[int, Tensor] = {}

    # layers run as the stage says, but compiled ones as they are written
    with fake_tensors(), uncompiled():
        _leave_meta(model)
        weights = {storage(p) for p in [*model.parameters(), *model.buffers()]}

        def keep(tensor: Tensor) -> Tensor:
            if storage(tensor) not in weights:
                kept[storage(tensor)] = tensor
            return tensor

        def measure(name: str, run: Callable[[], Any]) -> Any:
            with count_flops() as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                out = run()
            flops[name] = flops.get(name, 0) + counter.get_total_flops()
            return out

        def views(count: int) -> Tensor:
            return torch.zeros(count, 3, *encoder.image_size, dtype=torch.uint8)

        if not isinstance(model, VLM) or experiment.slots is None:
            count = 1 + grid[0] * grid[1]
            measure(encoder.kind, lambda: encoder(views(count)))
            return Costs(flops, _bytes(kept.values()), count)
        features: list[Tensor] = []
        seen = 0
        for run in model.stacking.passes(grid):
            pieces = experiment.views_of(run)
            count = sum(rows * columns for rows, columns in pieces)
            more = {"pieces": pieces} if encoder.native else {}
            features = measure("vision_encoder", partial(encoder, views(count), taps=run.taps, **more))
            seen += count
        slots = len(experiment.context)
        projector, (height, width) = model.projector, model.stacking.map_grid(encoder)
        maps = experiment.slots.maps(grid, experiment.pieces)
        visual = [
            features[0].new_zeros(maps, height, width, c).requires_grad_(features[0].requires_grad)
            for c in projector.in_widths
        ]
        tokens = measure("projector", lambda: projector(visual))
        reached = tokens.requires_grad or any(p.requires_grad for p in model.stacking.parameters())
        hook = model.language_model.embedding.register_forward_hook(
            lambda module, args, out: out.detach().requires_grad_(reached or out.requires_grad)
        )
        ids = torch.zeros(1, slots + text_tokens, dtype=torch.int64)
        with _noticed(model.language_model.head) as seen_of_head:
            measure("language_model", lambda: model.language_model.logits(ids, torch.ones_like(ids)))
        hook.remove()
        reached = reached or any(p.requires_grad for p in model.language_model.parameters())
        beside = model.stacking.beside(grid) * tokens.shape[2] * tokens.shape[3]
        memory = tokens.new_zeros(1, beside, tokens.shape[-1]).requires_grad_(tokens.requires_grad)
        visible = torch.ones(1, ids.shape[1], beside, dtype=torch.bool)
        for block in model.stacking.blocks:  # each at a site of its own, so on a residual stream of its own
            stream = torch.zeros(1, ids.shape[1], tokens.shape[-1]).requires_grad_(reached)
            measure("stacking", partial(block, stream, memory, visible))
        counted = Costs(flops, _bytes(kept.values()), seen, ids.shape[1], narrows=any(seen_of_head))
        if not rates:
            return counted
        half = ids[:, : ids.shape[1] // 2]
        with torch.no_grad(), count_flops() as counter:
            model.language_model.logits(half, torch.ones_like(half))
        with torch.no_grad(), count_flops() as narrow, narrowed(model.language_model.head, 1, half[0, :1]):
            model.language_model.logits(half, torch.ones_like(half))
        short = counter.get_total_flops()
        head = (short - narrow.get_total_flops()) / max(1, half.shape[1] - 1)
    return replace(counted, half=short, head=head)


@contextmanager
def _noticed(head: nn.Module | None) -> Iterator[list[bool]]:
    """Of each call of ``head``: whether it gets hidden states ``[B, T, D]``."""
    calls: list[bool] = []
    if head is None:
        yield calls
        return

    def note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(first_input(args, kwargs).ndim == 3)

    handle = before(head, note)
    try:
        yield calls
    finally:
        handle.remove()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _leave_meta(model: nn.Module) -> None:
    """Give every parameter and buffer a fake tensor on the CPU: the kernels counted are those that would run.

    Tied weights stay tied.
    """
    made: dict[int, Any] = {}
    for module in model.modules():
        own: Any = {"recurse": False, "remove_duplicate": False}
        for name, tensor in [*module.named_parameters(**own), *module.named_buffers(**own)]:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, tensor.requires_grad)
            setattr(module, name, made.setdefault(id(tensor), empty))
