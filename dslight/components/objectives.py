"""Objectives: what a part is trained with when it is fitted alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.component import Objective
from dslight.components.vision_encoder import VisionEncoder
from dslight.nn.sampling import mosaic, sample
from dslight.types import DenseBatch, Grid


class PatchClassification(Objective):
    """Dense supervised pre-training of a vision encoder: every patch names the class of the place that it shows.

    One linear head for base views and one for crops, because a patch of a base view shows more of the image than a
    patch of a crop; or one for both.

    Args:
        width: C, the encoder's width (the builder gives it).
        num_classes: the number of classes.
        crops: whether crops are learnt; else they do not pass the encoder.
        one_head: base views and crops are read by the same head, so that both name a class in one code.
        parts: (rows, columns) of crops; a base patch then also names the class of every crop's patch that shows a part
            of its place, with a loss of its own. Every image needs this grid.

    Example:
        >>> from functools import partial
        >>> data = dslight.DenseLabelData(["data/digits/train"], dslight.GridViews(2, 2), global_batch_size=4)
        >>> learns = {"vision_encoder": 1e-3, "objective": 1e-3}
        >>> once = {"max_steps": 1, "enable_progress_bar": False}
        >>> names = partial(dslight.PatchClassification, num_classes=10)
        >>> dslight.fit(encoder, data, learns, once, "runs/patches", objective=names)
        runs/patches: ...
    """

    def __init__(
        self, width: int, num_classes: int, crops: bool = True, one_head: bool = False, parts: Grid | None = None
    ) -> None:
        super().__init__()
        if parts is not None and min(parts) < 1:
            raise ValueError(f"parts: {tuple(parts)}; a grid of crops has at least one row and one column")
        self.base_head = nn.Linear(width, num_classes)
        self.crops, self.crop_head = crops, nn.Linear(width, num_classes) if crops and not one_head else None
        self.parts = None if parts is None else (parts[0], parts[1])
        self.part_heads = None if parts is None else nn.Linear(width, parts[0] * parts[1] * num_classes)

    def counted(self, batch: DenseBatch) -> int:
        """Images, without the repeats that pad a rank's share of validation."""
        return int(batch.valid.sum())

    def forward(self, component: VisionEncoder, batch: DenseBatch) -> dict[str, Tensor]:
        """Mean cross entropy of either kind of view over its patches (and of parts), their mean, and the accuracies.

        Views that a batch has none of count as 0, so that every rank has every score and every head a gradient.
        """
        views = batch.views
        base, crops = views.base_index, views.crop_index
        if not self.crops:
            (seen,) = component(views.pixels[base])
            features = seen.new_zeros(len(views.pixels), *seen.shape[1:]).index_copy(0, base, seen)
        else:
            (features,) = component(views.pixels)
        counts = torch.tensor([rows * cols for rows, cols in views.grids], device=batch.valid.device)
        base, crops = base[batch.valid], crops[batch.valid.repeat_interleave(counts)]
        losses, scores, kinds = [], {}, 0
        for name, head, index in (("base", self.base_head, base), ("crop", self.crop_head or self.base_head, crops)):
            if name == "crop" and not self.crops:
                continue
            loss, scores[f"{name}_accuracy"] = _scored(head(features[index]), batch.targets[index])
            losses.append(loss)
            kinds += len(index) > 0
        if self.part_heads is not None:
            targets = self._parts(component.grid, batch)[batch.valid]
            loss, scores["part_accuracy"] = _scored(
                self.part_heads(features[base]).unflatten(-1, (targets.shape[-1], -1)), targets
            )
            losses.append(loss)
        return {"loss": torch.stack(losses).sum() / max(kinds, 1), **scores}

    def _parts(self, patches: Grid, batch: DenseBatch) -> Tensor:
        """The classes of the crops' patches at the place of each base patch, int64 ``[I, P, rows * cols]``."""
        assert self.parts is not None
        for key, grid in zip(batch.keys, batch.views.grids, strict=True):
            if grid != self.parts:
                raise ValueError(
                    f"objective.parts: {self.parts}, but {key} has a grid of {grid} crops; all images need that one"
                )
        crops = batch.targets[batch.views.crop_index]
        maps = mosaic(crops.view(len(batch), -1, *patches, 1), self.parts)
        return sample(maps, self.parts, "2d").flatten(2).permute(1, 2, 0)


def _scored(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and accuracy; 0 of none."""
    logits, targets = logits.flatten(0, -2).float(), targets.flatten()
    count = max(len(targets), 1)
    return F.cross_entropy(logits, targets, reduction="sum") / count, (logits.argmax(-1) == targets).sum() / count
