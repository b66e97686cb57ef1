"""Boxes with words in them, in thousandths of the picture, as OCRBench v2 asks for them and ICDAR scores them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dslight.metrics.functional.boxes import iou

Word = tuple[int, int, int, int, str]
"""x1, y1, x2, y2 and what stands there."""

_BOX = re.compile(r"[(\[]\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*[)\]]")
_BRACKETS = re.compile(r"[\[(]\s*([^\[\]()]*?)\s*[\])]")
_EDGES = "!?.:,*\"()·[]/'"
"""Signs that a word in the file may have before or behind it, and an answer not."""
ANY = "###"
"""The word of a place that cannot be read: what is found there does not count."""


def last_box(answer: str) -> list[int] | None:
    """The last box of four whole numbers up to 1000 in an answer."""
    found = [[int(one) for one in match.groups()] for match in _BOX.finditer(answer)]
    return next((box for box in reversed(found) if max(box) <= 1000), None)


def box_overlap(said: Sequence[Any], right: Sequence[Any]) -> float:
    """Intersection over union; 0 for what are no numbers."""
    try:
        one, two = ([int(number) for number in box] for box in (said, right))
    except (ValueError, TypeError, OverflowError):
        return 0.0
    shared = max(0, min(one[2], two[2]) - max(one[0], two[0])) * max(0, min(one[3], two[3]) - max(one[1], two[1]))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)) - shared
    return shared / union if union else 0.0


def spotted_words(answer: str) -> list[Word]:
    """The words with their boxes in an answer: a Python list of ``[x1, y1, x2, y2, word]``, else whatever stands in
    brackets so. What is no box within 1000, or said before, is left out."""
    found: dict[Word, None] = {}
    for *numbers, word in _candidates(answer):
        try:
            x1, y1, x2, y2 = (int(str(number).strip()) for number in numbers)
        except ValueError:
            continue
        if all(0 <= number <= 1000 for number in (x1, y1, x2, y2)):
            found[x1, y1, x2, y2, str(word).replace("\n", "").strip().strip('"').strip("'")] = None
    return list(found)


def _candidates(answer: str) -> Iterator[Sequence[Any]]:
    try:
        read = ast.literal_eval(answer)
    except Exception:
        read = None
    if read is None:
        parts = (item.split(",", 4) for item in _BRACKETS.findall(answer))
        yield from (one for one in parts if len(one) == 5)
    elif isinstance(read, list | tuple):
        yield from (one[:5] for one in read if isinstance(one, list | tuple) and len(one) >= 5)


def spotting_f1(said: Sequence[Word], polygons: Sequence[Sequence[int]], words: Sequence[str]) -> float:
    """The F1 of boxes that overlap a right one by more than half and have its word, without case.

    Args:
        said: the words of an answer.
        polygons: of the right words, ``x1, y1, x2, y2, ...``; their bounding boxes count.
        words: the right words; ``###`` for one that cannot be read.

    Example:
        >>> from dslight.metrics.functional.spotting import spotting_f1
        >>> spotting_f1([(0, 0, 10, 10, "stop"), (50, 50, 60, 60, "x")], [[0, 0, 10, 0, 10, 10, 0, 10]], ["STOP!"])
        0.6666666666666666
    """
    boxes = [(min(one[0::2]), min(one[1::2]), max(one[0::2]), max(one[1::2])) for one in polygons]
    right = [(box, _written(word)) for box, word in zip(boxes, words, strict=False)]
    found = [((x1, y1, x2, y2), _written(word)) for x1, y1, x2, y2, word in said if x1 < x2 and y1 < y2]
    unread = [box for box, word in right if word == ANY]
    care = [(box, word.upper()) for box, word in right if word != ANY]
    kept = [(box, word.upper()) for box, word in found if not any(_share(box, one) > 0.5 for one in unread)]
    taken: set[int] = set()
    hits = 0
    for box, word in care:
        near = (n for n, (other, _) in enumerate(kept) if n not in taken and iou(box, other) > 0.5)
        if (match := next(near, None)) is not None:
            taken.add(match)
            hits += _same(word, kept[match][1])
    return 2 * hits / (len(care) + len(kept)) if hits else 0.0


def _written(word: str) -> str:
    """A word as it comes back from a line of ICDAR's files."""
    word = word.replace("\r", "")
    quoted = re.match(r'^\s*"(.*)"\s*$', word)
    return quoted[1].replace("\\\\", "\\").replace('\\"', '"') if quoted else word


def _share(box: Sequence[float], unread: Sequence[float]) -> float:
    """Of a box, how much lies in a place that cannot be read."""
    width = max(0, min(box[2], unread[2]) - max(box[0], unread[0]))
    height = max(0, min(box[3], unread[3]) - max(box[1], unread[1]))
    return width * height / ((box[2] - box[0]) * (box[3] - box[1]))


def _same(right: str, said: str) -> bool:
    ways = {right}
    if right and right[0] in _EDGES:
        ways.add(right[1:])
    if right and right[-1] in _EDGES:
        ways.add(right[:-1])
        ways |= {right[1:-1]} if right[0] in _EDGES else set()
    return said in ways
