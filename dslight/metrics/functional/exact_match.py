"""Exact match of short answers (GQA), in the normalisations in use.

``strict``
    GQA's own script: equal or not, upper and lower case and full stops included.
``llava``
    LLaVA's conversion before that script: trailing full stops cut and lower case, blanks kept.
``lmms_eval``
    Stripped, lower case, all ASCII punctuation deleted on both sides ("t-shirt" = "tshirt").
``vlmevalkit``
    Stripped and lower case (also Qwen-VL).
``number``
    The first number of each, a word up to twenty or digits (CountBench).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from typing import Literal, get_args

ExactMatchProtocol = Literal["strict", "llava", "lmms_eval", "vlmevalkit", "number"]
EXACT_MATCH_PROTOCOLS: tuple[str, ...] = get_args(ExactMatchProtocol)

_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _unchanged(text: str) -> str:
    return text


def _llava(text: str) -> str:
    return text.rstrip(".").lower()


def _lmms_eval(text: str) -> str:
    return text.strip().lower().translate(_DELETE_PUNCTUATION)


def _vlmevalkit(text: str) -> str:
    return text.strip().lower()


_NUMBER_WORDS: Sequence[str] = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
""".split()  # noqa: SIM905


def _number(text: str) -> str:
    match = re.search(rf"\d+|\b(?:{'|'.join(_NUMBER_WORDS)})\b", text.lower())
    if match is None:
        return text.strip().lower()
    return str(_NUMBER_WORDS.index(match[0])) if match[0] in _NUMBER_WORDS else str(int(match[0]))


_NORMALIZE: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "strict": (_unchanged, _unchanged),
    "llava": (_llava, _unchanged),
    "lmms_eval": (_lmms_eval, _lmms_eval),
    "vlmevalkit": (_vlmevalkit, _vlmevalkit),
    "number": (_number, _number),
}


def exact_match(prediction: str, references: Sequence[str], protocol: ExactMatchProtocol = "strict") -> float:
    """1.0 if the answer equals one of the references under ``protocol``, else 0.0."""
    of_prediction, of_reference = _NORMALIZE[protocol]
    return float(of_prediction(prediction) in [of_reference(reference) for reference in references])
