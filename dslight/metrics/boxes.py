"""Accuracy of boxes (RefCOCO, RefCOCO+, RefCOCOg) and of clicks (ScreenSpot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from dslight.metrics.base import MeanScore, check_protocol
from dslight.metrics.functional.boxes import inside, iou, parse_place

Rule = Literal["iou", "point"]


class BoxAccuracy(MeanScore):
    """The share of answers whose box fits, or whose point hits (see ``dslight.metrics.functional.boxes``).

    A reference is a box as text, ``[x1, y1, x2, y2]`` in 0..1 of the picture.

    Args:
        rule: ``iou``: the boxes overlap by ``threshold`` or more; ``point``: the point, or the middle of the box, lies
            in the reference.
        threshold: of the intersection over union.
        pixels: (width, height) of the picture that the model was shown, for one that answers in pixels, as Qwen2.5-VL;
            default: thousandths or shares.
        types: of the breakdown.
        kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = dslight.metrics.BoxAccuracy()
        >>> metric.update(["[100, 100, 500, 480]", "no"], [["[0.1, 0.1, 0.5, 0.5]"]] * 2)
        >>> float(metric.compute()["accuracy"]), float(metric.compute()["unresolved"])
        (0.5, 0.5)
    """

    headline = "accuracy"

    def __init__(
        self,
        rule: Rule = "iou",
        threshold: float = 0.5,
        pixels: tuple[int, int] | None = None,
        types: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(types, **kwargs)
        check_protocol(rule, get_args(Rule))
        self.rule: Rule = rule
        self.threshold, self.pixels = threshold, pixels

    def score(self, prediction: str, references: Sequence[str]) -> float | None:
        """1.0 or 0.0; ``None`` for an answer without a box (or, by the rule ``point``, without a point)."""
        place = parse_place(prediction, self.pixels)
        boxes = [box for box in map(parse_place, references) if box is not None and len(box) == 4]
        if len(boxes) != len(references):
            raise ValueError(f"target: a box [x1, y1, x2, y2] in 0..1 is needed, got {references[0]!r}")
        if place is None or (self.rule == "iou" and len(place) != 4):
            return None
        if self.rule == "point":
            return float(any(inside(place, box) for box in boxes))
        return float(any(iou(place, box) >= self.threshold for box in boxes))
