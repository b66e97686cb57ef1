"""Substring accuracy (OCRBench, Liu et al. 2023): right if a reference occurs anywhere in the answer.

Everything is compared without case, but handwritten formulas (HME100k) with case and without spaces. An empty reference
occurs in every answer.

``deepstack_fork``
    The lmms-eval copy that DeepStack's released script runs. It lower-cases the answer before it knows the data set, so
    a formula with a capital letter is never right.
``official``
    OCRBench's rule, without that slip.
``lmms_eval``
    lmms-eval's present code: ``official``, after full-width characters are folded on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

SubstringProtocol = Literal["deepstack_fork", "official", "lmms_eval"]
SUBSTRING_PROTOCOLS: tuple[str, ...] = get_args(SubstringProtocol)

_FOLD_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def substring_match(
    prediction: str,
    references: Sequence[str],
    protocol: SubstringProtocol = "deepstack_fork",
    ignore_spaces: bool = False,
) -> float:
    """1.0 if one of the references occurs in the answer, else 0.0; ``ignore_spaces`` is the rule for HME100k."""

    def normalize(text: str) -> str:
        if protocol == "lmms_eval":
            text = text.translate(_FOLD_FULL_WIDTH)
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if ignore_spaces else text.lower()

    answer = normalize(prediction.lower() if protocol == "deepstack_fork" else prediction)
    return float(any(normalize(reference) in answer for reference in references))
