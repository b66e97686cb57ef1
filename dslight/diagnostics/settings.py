"""What a recipe may ask for under ``diagnostics``. No torch: the report reads what came of it, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Heat = Literal["gradient_x_input", "gradient", "attention"]


@dataclass(frozen=True)
class Diagnostics:
    """Whether the stacks do anything, measured behind a validation on the first questions of each source.

    Cost, over ``limit`` questions: their pictures are encoded once (for stacks into the vision encoder: in every arm);
    ``norms`` one prefill; ``drop`` S + 2 prefills; ``shuffle`` two more, and the other pictures; the answers of all
    arms are generated together. A heat map takes one generation and one backward pass.

    Args:
        norms: norm of what every stack adds, relative to the residual stream there; and their cosine.
        drop: scores with one stack left out, for each, and with none.
        shuffle: scores with the stacks exchanged among their sites, and with those of another image.
        heat_maps: for how many questions (spread evenly over the first ``limit``) to draw where in the image the
            reference answer's log-likelihood comes from.
        heat: how: ``gradient_x_input`` of the stacked tokens (signed: for or against the answer), the norm of the
            ``gradient``, or the mass of ``attention`` from the answer (needs eager attention; tells positions apart,
            not stacks).
        limit: questions of each source, the first ones; those without an image are skipped.
        while_training: also ``drop`` and ``shuffle`` in the validations within a training, not only in the one at its
            end. ``norms`` are always measured.
        seed: of the exchange of stacks.
    """

    norms: bool = True
    drop: bool = False
    shuffle: bool = False
    heat_maps: int = 0
    heat: Heat = "gradient_x_input"
    limit: int = 200
    while_training: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit: at least 1 question, got {self.limit}")
        if not 0 <= self.heat_maps <= self.limit:
            raise ValueError(f"heat_maps: 0 to {self.limit} (diagnostics.limit), got {self.heat_maps}")
