"""Relaxed accuracy (ChartQA, Masry et al. 2022): numbers may be 5 % off, everything else must match without case.

A trailing "%" divides by 100, so "50%" is not "50"; "1,000" and "$5" are no numbers; a reference of 0 is compared as
text. Years are numbers too: "2021" is right for "2019". The protocols differ in little:

``pix2struct``
    The reference implementation; nothing is stripped.
``lmms_eval``, ``vlmevalkit``
    The prediction is stripped.
``qwen_vl``
    Stripped, and called with its arguments swapped: 5 % of the prediction, so "95" is wrong for "100" and "105.2"
    right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

RelaxedProtocol = Literal["pix2struct", "lmms_eval", "vlmevalkit", "qwen_vl"]
RELAXED_PROTOCOLS: tuple[str, ...] = get_args(RelaxedProtocol)


def _to_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _relaxed_match(prediction: str, reference: str, tolerance: float) -> bool:
    value, target = _to_float(prediction), _to_float(reference)
    if value is not None and target:
        return abs(value - target) / abs(target) <= tolerance
    return prediction.lower() == reference.lower()


def relaxed_match(
    prediction: str, references: Sequence[str], protocol: RelaxedProtocol = "pix2struct", tolerance: float = 0.05
) -> float:
    """1.0 if the answer is within ``tolerance`` (relative) of one of the references, or equal to it, else 0.0."""
    if protocol != "pix2struct":
        prediction = prediction.strip()
    if protocol == "qwen_vl":
        return float(any(_relaxed_match(reference, prediction, tolerance) for reference in references))
    return float(any(_relaxed_match(prediction, reference, tolerance) for reference in references))
