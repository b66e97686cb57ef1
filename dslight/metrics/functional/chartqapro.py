"""ChartQAPro's relaxed accuracy (Masry et al. 2025): numbers within 5 %, texts by ANLS, lists item by item.

A "%" at an end does not count (in ChartQA it divides by 100). An item whose year flag is set must be equal without
case, and, by the protocol that says so, an answer to a fact-checking or multiple-choice question. A list that is longer
than the other loses the items that have no partner. An answer that is a list needs quotes around its words; in a
reference they are added.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from dslight.metrics.functional.anls import anls_score

EXACT = ("Fact Checking", "Multi Choice")
"""Types of questions whose answers must be equal."""


def chartqapro_match(
    prediction: str, reference: str, years: Sequence[str] = (), exact: bool = False, tolerance: float = 0.05
) -> float:
    """The score of one answer, in 0..1.

    Args:
        prediction: the model's answer, a text or a Python list.
        reference: the right one, the same.
        years: per item "YES" where it is a year; a single one stands for all.
        exact: whether all must be equal.
        tolerance: the allowed relative error of numbers.
    """
    prediction, reference = (text.strip().strip(".").strip("\n") for text in (prediction, reference))
    wanted, given = _items(_quoted(reference)) or [reference], _items(prediction) or [prediction]
    flags = list(years) * len(wanted) if len(years) < len(wanted) else list(years)
    total = 0.0
    for i, (right, said) in enumerate(zip(wanted, given, strict=False)):
        if exact or (i < len(flags) and str(flags[i]).upper() == "YES"):
            total += right.strip().lower() == said.strip().lower()
        else:
            total += _item(right, said, tolerance)
    return total / max(len(wanted), len(given))


def _quoted(text: str) -> str:
    """A list whose words have no quotes, with them."""
    match = re.match(r"^\[(.*)\]$", text)
    return text if match is None else "[" + re.sub(r"(?<!['\w])(\w[^,]*?)(?!['\w])", r"'\1'", match[1]) + "]"


def _items(text: str) -> list[str] | None:
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(one).strip(" '") for one in found] if isinstance(found, list) else None


def _item(right: str, said: str, tolerance: float) -> float:
    right, said = (text.strip().strip("%").strip() for text in (right, said))
    target, value = _float(right), _float(said)
    if target is None or value is None:
        said, right = (" ".join(text.lower().split()) for text in (said, right))
        found = anls_score(said, [right], "pix2struct")  # half of it alike is not enough
        return 1.0 if found is None else found
    return float(value == 0 if target == 0 else abs(value - target) / abs(target) <= tolerance)


def _float(text: str) -> float | None:
    try:
        return float(text.strip().strip("%"))
    except ValueError:
        return None
