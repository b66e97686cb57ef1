"""MMLongBench-Doc (Ma et al. 2024): the score of an answer, by the format of the right one.

Its authors let GPT-4o pull a short answer out of the model's and apply these rules to that; here they are applied to
what the model said, so it is asked to be short.

``official``
    ``Int``: equal as whole numbers; what is no number is wrong. ``Float``: within 1 %, or equal once rounded, also as a
    percentage of the other. ``Str`` and ``None``: the similarity (1 - edit distance / length) if above 0.5; web
    addresses, file names, numbers, pages, dates and times must be equal. ``List``: as many items, sorted; the least of
    their similarities, or equality where the first is a number or one of those. Case, text in brackets, a quote at
    either end, "$" in front and "%" behind do not count.
``lmms_eval``
    The same with other readers: a number is the first one anywhere; units of length and "million" behind a text are cut
    off; ``None`` must be "not answerable".
"""

from __future__ import annotations

import ast
import re
from math import isclose
from typing import Literal, get_args

from rapidfuzz.distance import Levenshtein

MMLongBenchProtocol = Literal["official", "lmms_eval"]
MMLONGBENCH_PROTOCOLS: tuple[str, ...] = get_args(MMLongBenchProtocol)
NOT_ANSWERABLE = "not answerable"

_WHOLE = re.compile(
    r"\b\d+(?:-\d+|\s\d+)?\b|\b\d{4}[-\s]\d{2}(?:[-\s]\d{2})?\b"
    r"|[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}"
)
"""Numbers (of telephones, ranges), dates, addresses of mail."""
_NUMBER = re.compile(r"[-+]?\d*\.?\d+")


def mmlongbench_score(
    prediction: str, reference: str, answer_format: str = "Str", protocol: MMLongBenchProtocol = "official"
) -> float:
    """The score of one answer, in 0..1.

    Args:
        prediction: what the model said.
        reference: the right answer, as the file has it.
        answer_format: Str, Int, Float, List or None.
        protocol: whose rules; see the module.

    Example:
        >>> mmlongbench_score("8", "8", "Int"), mmlongbench_score("['b', 'a']", "['a', 'b']", "List")
        (1.0, 1.0)
    """
    loose = protocol == "lmms_eval"
    if answer_format == "Int":
        number = _first_number if loose else _number
        right, said = number(reference), number(prediction)
        return float(right is not None and said is not None and int(right) == int(said))
    if answer_format == "Float":
        read = _first_number if loose else lambda text: _number(cleaned(text))
        right, said = read(reference), read(prediction)
        return float(right is not None and said is not None and _close(right, said))
    if answer_format in ("Str", "None"):
        right, said = cleaned(reference, loose), cleaned(prediction, loose)
        if loose and answer_format == "None":
            return float(said == NOT_ANSWERABLE)
        return float(right == said) if _must_equal(right, loose) else _similarity(right, said, loose)
    rights, saids = (sorted(cleaned(one, loose) for one in _items(text)) for text in (reference, prediction))
    if len(rights) != len(saids):
        return 0.0
    number = _first_number if loose else _number
    if not rights or number(rights[0]) is not None or _must_equal(rights[0], loose):
        return float(rights == saids)
    return min(_similarity(right, said, loose) for right, said in zip(rights, saids, strict=True))


def cleaned(text: str, loose: bool = False) -> str:
    """A text as it is compared; ``loose`` as lmms-eval does it."""
    text = re.sub(r"\s*\([^)]*\)", "", text.lower().strip()).strip()
    text = re.sub(r"^['\"]|['\"]$", "", text).strip().lstrip("$").strip().rstrip("%").strip()
    if not loose:
        return text
    for unit in (" miles", " mile", " million"):
        text = text.removesuffix(unit).strip()
    return " ".join(text.split())


def _must_equal(text: str, loose: bool) -> bool:
    return (
        "https://" in text
        or (loose and "http://" in text)
        or text.endswith((".py", ".ipynb" if loose else "ipynb"))
        or text.startswith("page")
        or "a.m." in text
        or "p.m." in text
        or _WHOLE.fullmatch(text) is not None
    )


def _similarity(right: str, said: str, loose: bool) -> float:
    if not right or not said:
        return float(right == said)
    length = max(len(right), len(said)) if loose else max(len(right.upper()), len(said.upper()))
    found = 1.0 - Levenshtein.distance(right, said) / length
    return found if found > 0.5 else 0.0


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if isclose(found, found) and abs(found) != float("inf") else None


def _first_number(text: str) -> float | None:
    match = _NUMBER.search(text.replace(",", ""))
    return None if match is None else float(match[0])


def _close(right: float, said: float) -> bool:
    def digits(number: float) -> int:
        return len(str(number).split(".")[-1]) if "." in str(number) else 3

    for one in (right / 100, right, right * 100):
        exact = max(min(digits(said), digits(one)), 2)
        if isclose(one, said, rel_tol=0.01) or round(said, exact) == round(one, exact):
            return True
    return False


def _items(text: str) -> list[str]:
    try:
        found = ast.literal_eval(text) if text.startswith("[") else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    return [str(one) for one in found] if isinstance(found, list) else [text]
