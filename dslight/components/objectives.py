"""Objectives: what a part is trained with when it is fitted alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dslight.components.component import Objective
from dslight.components.vision_encoder import VisionEncoder
from dslight.types import DenseBatch


class PatchClassification(Objective):
    """Dense supervised pre-training of a vision encoder: every patch names the class of the place that it shows.

    One linear head for base views and one for crops, because a patch of a base view shows more of the image than a
    patch of a crop.

    Args:
        width: C, the encoder's width (the builder gives it).
        num_classes: the number of classes.
        crops: whether the views have crops.

    Example:
        >>> from functools import partial
        >>> data = dslight.DenseLabelData(["data/digits/train"], dslight.GridViews(2, 2), global_batch_size=4)
        >>> learns = {"vision_encoder": 1e-3, "objective": 1e-3}
        >>> once = {"max_steps": 1, "enable_progress_bar": False}
        >>> names = partial(dslight.PatchClassification, num_classes=10)
        >>> dslight.fit(encoder, data, learns, once, "runs/patches", objective=names)
        runs/patches: ...
    """

    def __init__(self, width: int, num_classes: int, crops: bool = True) -> None:
        super().__init__()
        self.base_head = nn.Linear(width, num_classes)
        self.crop_head = nn.Linear(width, num_classes) if crops else None

    def counted(self, batch: DenseBatch) -> int:
        """Images, without the repeats that pad a rank's share of validation."""
        return int(batch.valid.sum())

    def forward(self, component: VisionEncoder, batch: DenseBatch) -> dict[str, Tensor]:
        """Mean cross entropy of either kind of view over its patches, their mean, and the accuracies.

        Views that a batch has none of count as 0, so that every rank has every score and every head a gradient.
        """
        (features,) = component(batch.views.pixels)
        crops = torch.tensor([rows * cols for rows, cols in batch.views.grids], device=batch.valid.device)
        parts = {
            "base": (self.base_head, batch.views.base_index[batch.valid]),
            "crop": (self.crop_head, batch.views.crop_index[batch.valid.repeat_interleave(crops)]),
        }
        losses, scores, kinds = [], {}, 0
        for name, (head, index) in parts.items():
            if head is None:
                continue
            logits, targets = head(features[index]).flatten(0, 1).float(), batch.targets[index].flatten()
            patches = max(len(targets), 1)
            losses.append(F.cross_entropy(logits, targets, reduction="sum") / patches)
            scores[f"{name}_accuracy"] = (logits.argmax(-1) == targets).sum() / patches
            kinds += len(index) > 0
        return {"loss": torch.stack(losses).sum() / max(kinds, 1), **scores}
