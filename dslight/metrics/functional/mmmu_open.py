"""The open (not multiple-choice) questions of MMMU (Yue et al. 2024), as its evaluation code scores them.

The answer is cut into sentences; of each, what follows the last "is", "answer", "so" and the like is a candidate, and
so is every number in it. Right if a candidate contains a reference as a substring, or equals it as a number rounded to
two decimals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = set(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),  # 1,000
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),  # 1e3
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),  # 3.14, .5, 7
)


def _normalize(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]  # a lone letter must stand at a word's edge


def _key_parts(response: str) -> list[str]:
    response = response.strip().strip(".").lower()
    # the split at a full stop asks for a capital after it and so never happens in lower case: as in the original
    sentences = re.split(r"\.\s(?=[A-Z])|\n", response)
    parts = []
    for index, sentence in enumerate(sentences):
        indicators = _INDICATORS + (("=",) if index == len(sentences) - 1 else ())
        tails = [sentence.split(indicator)[-1].strip() for indicator in indicators if indicator in sentence]
        shortest = ""
        for tail in tails:  # an empty tail is forgotten by the next one
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [response]


def parse_mmmu_open(response: str) -> set[str | float]:
    """The candidates in an answer: lower-case texts, and numbers rounded to two decimals."""
    parts = _key_parts(response)
    numbers = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    return {candidate for text in parts + numbers for candidate in _normalize(text)}


def mmmu_open_match(prediction: str, references: Sequence[str]) -> float:
    """1.0 if a candidate of the answer contains a reference or equals it as a number, else 0.0."""
    answers = [answer for reference in references for answer in _normalize(reference)]
    texts = [answer for answer in answers if isinstance(answer, str)]
    for candidate in parse_mmmu_open(prediction):
        if isinstance(candidate, str):
            if any(text in candidate for text in texts):
                return 1.0
        elif candidate in answers:
            return 1.0
    return 0.0
