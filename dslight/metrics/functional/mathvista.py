"""MathVista (Lu et al. 2024): what an answer says, by the rules of its evaluator, and whether that is right.

The evaluator takes an answer that is an option's text, an integer or a float as it is, and one that says
``The answer is "..."`` by its quoted part. For all others it asks GPT-4 to extract the value; here, where no language
model is asked, the option's letter, or the number that comes last in the answer, is taken, and an answer without either
says nothing. What was extracted is then normalised as there: a letter becomes its option's text and a text the nearest
option (edit distance), a number is rounded to the question's precision; and compared as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

_QUOTED = re.compile(r'The answer is "(.*)"\.')
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*|-?\.\d+")
_LETTER = re.compile(r"\(([A-Za-z])\)|\b([A-Z])\b(?=[.):]|\s*$)")
_LIST = re.compile(r"\[[^\[\]]*\]")


def extract_mathvista(answer: str, choices: Sequence[str], answer_type: str) -> str | None:
    """The value in an answer; ``None`` if there is none.

    Args:
        answer: the model's.
        choices: the options' texts; empty for a question without.
        answer_type: ``integer``, ``float``, ``list`` or ``text``.
    """
    answer = answer.strip()
    if not answer or answer in choices:
        return answer or None
    if answer_type in ("integer", "float") and _float(answer) is not None:
        return answer
    if quoted := _QUOTED.search(answer):
        return quoted[1]
    if choices:
        named = [one[0] or one[1] for one in _LETTER.findall(answer)]
        letters = [one.upper() for one in named if ord(one.upper()) - ord("A") < len(choices)]
        texts = [one for one in choices if one.lower() in answer.lower()]
        return letters[-1] if letters else max(texts, key=len) if texts else None
    if answer_type == "list":
        found = _LIST.findall(answer)
        return found[-1] if found else None
    numbers = _NUMBER.findall(answer)
    return numbers[-1].replace(",", "").rstrip(".") if numbers else None


def normalize_mathvista(value: str, choices: Sequence[str], answer_type: str, precision: int | None) -> str | None:
    """An extracted value as it is compared; ``None`` if it is none of its kind."""
    if choices:
        value = value.strip()
        if bracketed := re.findall(r"\(([a-zA-Z])\)", value):
            value = bracketed[0].upper()
        if len(value) == 1 and 0 <= ord(value) - ord("A") < len(choices):
            return choices[ord(value) - ord("A")]
        return min(choices, key=lambda choice: Levenshtein.distance(value, choice))
    if answer_type in ("integer", "float"):
        number = _float(value)
        if number is None:
            return None
        return str(int(number)) if answer_type == "integer" else str(round(number, precision))
    return value


def mathvista_match(
    answer: str,
    references: Sequence[str],
    choices: Sequence[str] = (),
    answer_type: str = "text",
    precision: int | None = None,
) -> float | None:
    """1.0 or 0.0; ``None`` where nothing could be extracted."""
    value = extract_mathvista(answer, choices, answer_type)
    found = None if value is None else normalize_mathvista(value, choices, answer_type, precision)
    return None if found is None else float(found.strip() in [one.strip() for one in references])


def _float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
