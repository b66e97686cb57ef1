"""``dslight plan``: what a recipe describes and what it would cost, without a weight or a sample.

Shapes come from building the recipe on the meta device, costs from running its parts on fake tensors
(:mod:`dslight.run.cost`). Numbers are for one sample with the largest crop grid; additions, norms and softmax are not
counted as FLOPs (torch counts products and attention).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import nn

from dslight.layout import NEWLINE
from dslight.recipe.build import check
from dslight.recipe.checks import batches_per_step, chat_habits
from dslight.recipe.checks import world_size as named_world_size
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.run.cost import Costs, costs
from dslight.run.sizes import Sizes
from dslight.run.unseen import unseen
from dslight.train.lora import coverage
from dslight.train.strategy import copies_of
from dslight.types import Grid
from dslight.vlm import VLM


@dataclass(frozen=True)
class Part:
    """A line of the parts table; ``lr`` is ``None`` for a frozen part, ``forward_flops`` where cost is not counted."""

    name: str
    kind: str
    parameters: int
    trainable: int
    lr: float | None
    forward_flops: float | None


@dataclass(frozen=True)
class Memory:
    """Bytes per rank. Weights, gradients and optimizer states are sharded over the world, or over the ranks that
    share a copy of the model; activations are not."""

    weights: int
    gradients: int
    optimizer: int
    unsharded: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.unsharded + self.activations


@dataclass(frozen=True)
class Plan:
    """What :func:`plan` finds out.

    Attributes:
        name: the recipe's.
        parts: one entry per part.
        image_size: (height, width) of a view in pixels.
        grids: the crop grids that the views may have.
        effective_resolution: (height, width) of all crops together, for the largest grid.
        visual_tokens: patch tokens of all views that are read (the paper's "Vis.Tok"), for the largest grid.
        context_length: visual positions of the sequence, for the largest grid.
        newline_tokens: those of them that hold a newline token; the paper's "Cxt.Len" leaves them out.
        text_tokens: assumed for FLOPs and memory.
        placements: (part, layer, what enters there).
        world_size: ranks that share the parameters.
        micro_batch_size: samples that a rank takes at once.
        memory: per rank; ``None`` where cost is not counted.
        checkpointed: parts that keep only what enters a layer.
        native: whether images have sizes of their own; then ``image_size`` is that of the base view assumed here.
    """

    name: str
    parts: list[Part]
    image_size: tuple[int, int]
    grids: list[Grid]
    effective_resolution: tuple[int, int]
    visual_tokens: int
    context_length: int
    newline_tokens: int
    text_tokens: int
    placements: list[tuple[str, int, str]]
    world_size: int
    micro_batch_size: int
    memory: Memory | None
    notes: list[str] = field(default_factory=list)
    checkpointed: list[str] = field(default_factory=list)
    native: bool = False

    @property
    def forward_flops(self) -> float:
        """Of one sample, all parts."""
        return sum(part.forward_flops or 0 for part in self.parts)

    def to_json(self, sizes: Sizes | None = None) -> str:
        """Everything, for programs, and what is known of the images of a data set."""
        cost = {"forward_flops": self.forward_flops, "memory_total": self.memory.total} if self.memory else {}
        more = {} if sizes is None else {"sizes": asdict(sizes)}
        return json.dumps({**asdict(self), **cost, **more}, indent=2)

    def to_text(self) -> str:
        """Everything, for people."""
        flops, m = self.forward_flops, self.memory
        cost = f"{'forward FLOPs':>16}{'':>7}" if m else ""
        lines = [f"{self.name}", "", f"{'part':<16}{'class':<20}{'parameters':>12}{'trainable':>12}{'lr':>9}{cost}"]
        for part in self.parts:
            lr = "frozen" if part.lr is None else f"{part.lr:g}"
            own = part.forward_flops or 0
            cost = f"{_count(own):>16}{f'{own / flops:.0%}' if flops else '':>7}" if m else ""
            lines.append(
                f"{part.name:<16}{part.kind:<20}{_count(part.parameters):>12}{_count(part.trainable):>12}{lr:>9}{cost}"
            )
        totals = _count(sum(p.parameters for p in self.parts)), _count(sum(p.trainable for p in self.parts))
        cost = f"{'':>9}{_count(flops):>16}{'':>7}" if m else ""
        lines.append(f"{'total':<36}{totals[0]:>12}{totals[1]:>12}{cost}")
        newlines = self.newline_tokens
        crops = "times as large" if self.native else "crops"
        grids = ", ".join("single view" if grid == (0, 0) else f"{grid[0]}x{grid[1]} {crops}" for grid in self.grids)
        lines += [
            "",
            f"views            {self.image_size[0]}x{self.image_size[1]} px: base view"
            + (f" + {grids}" if self.grids != [(0, 0)] else "")
            + (", of one image (--image)" if self.native else ""),
            f"resolution       {self.effective_resolution[0]}x{self.effective_resolution[1]} px effective",
            f"visual tokens    {self.visual_tokens} read, {self.context_length} in the context"
            + (f" = {self.context_length - newlines} + {newlines} newline tokens" if newlines else ""),
        ]
        if self.text_tokens:
            lines.append(
                f"context length   {self.context_length} visual + {self.text_tokens} text (assumed; --text-tokens)"
            )
        if self.placements:
            lines.append("")
            lines += [f"{part + ' layer ' + str(layer):<26} {what}" for part, layer, what in self.placements]
        if m:
            kept = f"activations checkpointed in {', '.join(self.checkpointed)}" if self.checkpointed else ""
            lines += [
                "",
                f"memory per rank  {_bytes(m.total)}: {self.world_size} rank{'s' * (self.world_size > 1)}, "
                f"micro-batch {self.micro_batch_size}, two optimizer states, "
                f"{kept or 'no activation checkpointing'}",
                f"                 weights {_bytes(m.weights)}, gradients {_bytes(m.gradients)}, "
                f"optimizer {_bytes(m.optimizer)}, unsharded {_bytes(m.unsharded)}, "
                f"activations {_bytes(m.activations)}",
            ]
        return "\n".join(lines + (["", *self.notes] if self.notes else []))


_LONGEST = 2**24
"""Text positions of a sample for which costs are counted."""


def plan(
    recipe: Mapping[str, Any],
    world_size: int | None = None,
    text_tokens: int = 64,
    cost: bool = True,
    image: tuple[int, int] | None = None,
) -> Plan:
    """Check a recipe and count its cost.

    Args:
        recipe: as composed.
        world_size: ranks that the parameters are sharded over; default: the processes that the recipe names.
        text_tokens: text positions of a sample.
        cost: whether FLOPs and memory are counted, which takes most of the time.
        image: (height, width) of the image that the numbers are of, where images have sizes of their own; default: the
            largest that the views allow.

    Raises:
        RecipeError: when the recipe is wrong.
    """
    if world_size is not None and world_size < 1:
        raise RecipeError(f"--world-size: {world_size}; 1 or more")
    if not 0 <= text_tokens <= _LONGEST:
        raise RecipeError(f"--text-tokens: {text_tokens}; from 0 to {_LONGEST:,}")
    experiment = replace(check(recipe), image=image)
    if image is not None and not experiment.encoder.native:
        high, wide = experiment.encoder.image_size
        raise RecipeError(f"--image: every view of this recipe is {high} x {wide}, whatever the image; leave it out")
    world_size = world_size or named_world_size(recipe)
    sharers = world_size // _copies(recipe, world_size)
    model, data, encoder = experiment.model, experiment.data, experiment.encoder
    grid = experiment.largest_grid
    crops = grid[0] * grid[1]
    micro = 1
    if experiment.of_shards:
        micro = data.global_batch_size // (world_size * batches_per_step(data, world_size))
    parameters = list(model.parameters())
    units = [
        sum(p.nbytes for p in u.parameters())
        for part in model.parts().values()
        for u in getattr(part, "shard_units", [])
    ]
    counted = costs(experiment, grid, text_tokens) if cost else Costs({}, 0, 0)
    stage: Any = model.stage
    trains, frozen = (stage.train, stage.frozen) if stage else ({}, {})
    patches = encoder.grid[0] * encoder.grid[1]
    height, width = (side * count for side, count in zip(encoder.image_size, experiment.pieces, strict=True))
    if isinstance(model, VLM) and experiment.slots is not None:
        stacking = model.stacking
        context, newlines = len(experiment.context), experiment.context.count(NEWLINE)
        passed = [experiment.views_of(run) for run in stacking.passes(grid)]
        read, placements = sum(rows * cols for each in passed for rows, cols in each), stacking.placements
        magnified = max(1, stacking.fine) * (1 if stacking.uses_crops else 0)
    else:
        read, context, newlines, placements, text_tokens, magnified = 1 + crops, 0, 0, [], 0, 1
    trainable = sum(p.nbytes for p in parameters if p.requires_grad)
    weights = sum(p.nbytes for p in parameters)
    return Plan(
        name=str(recipe.get("name", "")),
        parts=[
            Part(
                name,
                type(part).__name__,
                sum(p.numel() for p in _own(part)),
                sum(p.numel() for p in _own(part) if p.requires_grad),
                trains[name].lr if name in trains else None,
                counted.flops.get(name, 0) if cost else None,
            )
            for name, part in model.parts().items()
        ],
        image_size=(height, width),
        grids=experiment.grids,
        native=encoder.native,
        effective_resolution=(height * max(1, grid[0] * magnified), width * max(1, grid[1] * magnified)),
        visual_tokens=patches * read,
        context_length=context,
        newline_tokens=newlines,
        text_tokens=text_tokens,
        placements=placements,
        world_size=world_size,
        micro_batch_size=micro,
        memory=Memory(
            weights=weights // sharers,
            gradients=trainable // sharers,
            optimizer=2 * trainable // sharers,
            unsharded=(weights - sum(units) + 2 * max(units, default=0)) if sharers > 1 else 0,
            activations=counted.activations * micro,
        )
        if cost
        else None,
        notes=[
            *_notes(model, context, text_tokens, counted),
            *_chat_notes(experiment),
            *_data_notes(experiment),
            *_val_notes(recipe),
            *unseen(recipe),
        ],
        checkpointed=[name for name, how in [*trains.items(), *frozen.items()] if how.checkpointing],
    )  # fmt: skip


def _copies(recipe: Mapping[str, Any], world_size: int) -> int:
    """Of the model, each shared by some of the processes (hybrid sharding)."""
    trainer = recipe.get("trainer") or {}
    strategy = trainer.get("strategy")
    arguments = (strategy.get("init_args") or {}) if isinstance(strategy, Mapping) else {}
    try:
        return copies_of(arguments.get("replicate", 1), world_size, trainer.get("num_nodes", 1))
    except ValueError as error:
        raise RecipeError(f"trainer.strategy.init_args.{error}") from None


def _chat_notes(experiment: Experiment) -> list[str]:
    """What the tokenizer's chat template does, where the data are written with it and it lies on this machine."""
    language_model = getattr(experiment.model, "language_model", None)
    if not getattr(language_model, "has_tokenizer", False):
        return []
    try:
        tokenizer: Any = language_model.load_tokenizer()  # type: ignore[union-attr]
    except (ValueError, OSError):  # what is wrong with it is said where it is needed
        return []
    found = chat_habits(experiment, tokenizer)
    return [] if found is None else found.notes


def _data_notes(experiment: Experiment) -> list[str]:
    if experiment.of_shards:
        return []
    name = type(experiment.data).__name__
    return [f"note: {name} makes its own batches; counted for 1 sample a rank and the views that the model looks at"]


def _val_notes(recipe: Mapping[str, Any]) -> list[str]:
    """Which sources of questions the recipe's own file does not name."""
    by_base: dict[str, list[str]] = {}
    for name, base in getattr(recipe, "inherited", {}).items():
        by_base.setdefault(base, []).append(name)
    return [f"note: data.val: {', '.join(names)} inherited from {base}" for base, names in by_base.items()]


def _notes(model: Any, context: int, text_tokens: int, counted: Costs) -> list[str]:
    """What works, but is worth a word."""
    notes = [
        f"note: LoRA in {name} stands beside {coverage(part)}"
        for name, part in model.parts().items()
        if getattr(part, "adapted", False)
    ]
    limit = getattr(model.language_model, "max_positions", None) if isinstance(model, VLM) else None
    if limit is not None and context + text_tokens > limit:
        notes.append(
            f"note: {context} visual + {text_tokens} text positions are more than the {limit} that the language model "
            f"was made for (max_position_embeddings)"
        )
    if counted.positions and not counted.narrows:
        notes.append(
            "note: the language model's head was not found, so a training step makes logits of all positions instead "
            "of the supervised ones"
        )
    return notes


def _own(part: Any) -> list[nn.Parameter]:
    return list(part.own_parameters() if hasattr(part, "own_parameters") else part.parameters())


def _count(number: float) -> str:
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return f"{number:.0f}"


def _bytes(number: float) -> str:
    for limit, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= limit:
            return f"{number / limit:.1f} {unit}"
    return f"{number:.0f} B"
