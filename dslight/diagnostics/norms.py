"""How large is what a stack adds? Its norm relative to the residual stream where it is added, and their cosine.

Measured at the addition itself: behind the gate, before the layer's norm, in the vision encoder and the language model
alike. A mean over the positions where there is a stack: an image with fewer crops than there are stacks leaves the last
ones empty, and these positions would dilute the number; ``filled`` says how many they are not.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dslight.diagnostics.groups import Group, Groups
from dslight.layout import SlotLayout
from dslight.nn.intervention import Injection
from dslight.types import Batch


@dataclass(frozen=True)
class Norm:
    """What one stack adds.

    Attributes:
        group: the stack.
        relative: mean of \\|added\\| / \\|residual stream\\|.
        added: mean of \\|added\\|.
        stream: mean of \\|residual stream\\| before the addition.
        cosine: mean cosine between the two.
        filled: share of the positions that hold a stack at all.
    """

    group: Group
    relative: float
    added: float
    stream: float
    cosine: float
    filled: float

    def to_json(self) -> dict[str, Any]:
        """For ``diagnostics.json``."""
        values = asdict(self)
        return {**values.pop("group"), **values}


class Norms:
    """Sums over all positions of all batches that pass while :meth:`watch` intervenes.

    Args:
        groups: the model's stacks.

    Attributes:
        sums: float64 ``[S, 6]``, to be added over ranks: relative, added, stream, cosine, filled positions, positions.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self.sums = torch.zeros(len(groups), 6, dtype=torch.float64)

    def watch(self, batch: Batch, layout: SlotLayout, patches: int) -> Any:
        """What to intervene with while ``batch`` passes: nothing is changed.

        Args:
            batch: of questions; invalid ones do not count.
            layout: how many slots an image takes.
            patches: P, of one view in the encoder.
        """
        valid = torch.tensor([question.valid for question in batch.questions], dtype=torch.bool)
        of_slots, of_patches = _valid_positions(batch, valid, layout, patches)

        def act(injection: Injection) -> Injection:
            numbers = self.groups.numbers(injection)
            counts = of_patches if self.groups.inside(injection) else of_slots

            def watch(index: int, slots: Tensor, hidden: Tensor, values: Tensor, added: Tensor) -> None:
                if len(counts):  # none of a batch without images, for which a blank one is read
                    self._count(numbers[index] - 1, hidden, values, added, counts.to(slots.device)[slots])

            return replace(injection, watch=watch)

        return act

    def _count(self, row: int, hidden: Tensor, values: Tensor, added: Tensor, counts: Tensor) -> None:
        filled = (counts & values.any(-1)).double()
        stream, extra = hidden.detach().float(), added.detach().float()
        length, size = stream.norm(dim=-1), extra.norm(dim=-1)
        cosine = F.cosine_similarity(stream, extra, dim=-1)
        numbers = [size / length.clamp(min=torch.finfo(torch.float32).tiny), size, length, cosine]
        found = [(number.double() * filled).sum() for number in numbers]
        self.sums[row] += torch.stack([*found, filled.sum(), counts.double().sum()]).cpu()

    def compute(self) -> list[Norm]:
        """The means; 0 for a stack that no position holds."""
        found = []
        for group, row in zip(self.groups, self.sums.tolist(), strict=True):
            relative, added, stream, cosine = (number / max(row[4], 1) for number in row[:4])
            found.append(Norm(group, relative, added, stream, cosine, filled=row[4] / max(row[5], 1)))
        return found


def _valid_positions(batch: Batch, valid: Tensor, layout: SlotLayout, patches: int) -> tuple[Tensor, Tensor]:
    """Which visual slots, and which patches of the views in the sequence, belong to valid questions: bool ``[N]``,
    ``[M * P]``.
    """
    rows = batch.visual_mask.nonzero()[:, 0].cpu()
    if batch.views is None:
        return valid[rows], torch.zeros(0, dtype=torch.bool)
    maps, slot = [], 0
    for i, (grid, pieces) in enumerate(zip(batch.views.grids, batch.views.base_pieces, strict=True)):
        maps += [int(rows[slot])] * layout.maps(grid, pieces)
        slot += layout(grid, batch.views.sizes[i] if batch.views.sizes else None, pieces)
    return valid[rows], valid[torch.tensor(maps, dtype=torch.int64)].repeat_interleave(patches)
