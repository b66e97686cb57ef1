"""Boxes and points in answers, and how well a box fits: referring expressions (RefCOCO) and screens (ScreenSpot).

Formats that are read, each as its models write it; the result is in 0..1 of the picture's width and height:

* Qwen2-VL: ``<|box_start|>(12,40),(500,900)<|box_end|>``, in thousandths. Qwen3-VL: ``{"bbox_2d": [12, 40, 500, 900]}``
  or ``{"point_2d": [x, y]}``, in thousandths. Qwen2.5-VL writes the same in pixels of the picture that it was shown.
* InternVL: ``<box>[[12, 40, 500, 900]]</box>``, in thousandths.
* PaliGemma: ``<loc0040><loc0012><loc0900><loc0500>``: y1 x1 y2 x2, in 1/1024.
* Anything with four numbers, or two for a point: ``[0.1, 0.2, 0.3, 0.4]`` in shares if none is above 1, else in
  thousandths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2, in 0..1."""

_LOCATIONS = re.compile(r"<loc(\d{4})>")
_NAMED = re.compile(r'"(?:bbox_2d|bbox|box|point_2d|point)"\s*:\s*(\[[^\]]*\])')
_MARKED = re.compile(r"<\|box_start\|>(.*?)<\|box_end\|>|<box>(.*?)</box>|<point>(.*?)</point>", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")


def parse_place(answer: str, pixels: Sequence[float] | None = None) -> tuple[float, ...] | None:
    """The first box (4 numbers) or point (2 numbers) that an answer gives, in 0..1; ``None`` if there is none.

    Args:
        answer: the model's.
        pixels: (width, height) of the picture that the model was shown, if it answers in pixels.
    """
    if len(found := [int(one) / 1024 for one in _LOCATIONS.findall(answer)]) >= 2:
        return (found[1], found[0], found[3], found[2]) if len(found) >= 4 else (found[1], found[0])
    if match := _NAMED.search(answer):
        answer = match[1]
    elif match := _MARKED.search(answer):
        answer = next(part for part in match.groups() if part is not None)
    numbers = [float(one) for one in _NUMBER.findall(answer)]
    if len(numbers) < 2:
        return None
    numbers = numbers[: 4 if len(numbers) >= 4 else 2]
    if pixels is not None:
        return tuple(one / pixels[i % 2] for i, one in enumerate(numbers))
    return tuple(numbers) if max(numbers) <= 1 else tuple(one / 1000 for one in numbers)


def iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 for one that has no area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def inside(place: Sequence[float], box: Sequence[float]) -> bool:
    """Whether a point, or the middle of a box, lies in ``box``, its edges included."""
    x, y = (place[0], place[1]) if len(place) == 2 else ((place[0] + place[2]) / 2, (place[1] + place[3]) / 2)
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]
