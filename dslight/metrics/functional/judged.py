"""What a judging language model is asked about an answer, and what its verdict says.

Two kinds of verdicts, as the numbers in papers are made of them: ``grade``, 0 to 1 in steps of 0.1 (MM-Vet), and
``match``, whether an answer is right and how good from 0 to 5 (MSVD-QA and ActivityNet-QA, after Video-ChatGPT). The
prompts here are our own words: a number that is to be compared with a paper needs the paper's prompt, which a file may
bring (``{question}``, ``{reference}`` and ``{prediction}`` are replaced in it), and its judge.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["grade", "match"]

KINDS: dict[str, Kind] = {"mmvet": "grade", "msvdqa": "match", "activitynetqa": "match"}
"""By benchmark."""

PROMPTS: dict[Kind, str] = {
    "grade": """Grade the answer to a question about a picture that you cannot see, by comparing it with the reference.
Where the reference has parts that are joined by <AND>, each part counts; of parts joined by <OR>, one is enough.
Reply with one number from 0.0 (all wrong) to 1.0 (all right), in steps of 0.1, and with nothing else.

Question: {question}
Reference: {reference}
Answer: {prediction}
Grade:""",
    "match": """Decide whether the answer to a question about a video means the same as the reference. Another wording,
or more detail, is fine; another meaning is not.
Reply with one line of JSON, {"pred": "yes" or "no", "score": a whole number from 0 (wrong) to 5 (perfect)}, and with
nothing else.

Question: {question}
Reference: {reference}
Answer: {prediction}""",
}

_GRADE = re.compile(r"(?<![\d.])(?:1(?:\.0+)?|0?\.\d+|0)(?![\d.])")
_PRED = re.compile(r"""['"]?pred['"]?\s*:\s*['"]?(yes|no)\b""", re.IGNORECASE)
_SCORE = re.compile(r"""['"]?score['"]?\s*:\s*['"]?(\d+(?:\.\d+)?)""")


class Judgement(NamedTuple):
    """A verdict.

    Attributes:
        score: in 0..1: the grade, or whether the answer is right.
        quality: of ``match``, 0 to 5.
    """

    score: float
    quality: float | None = None


def filled(prompt: str, question: str, reference: str, prediction: str) -> str:
    """A prompt with its three parts; in one pass, so that braces in the parts stay."""
    parts = {"question": question, "reference": reference, "prediction": prediction}
    return re.sub(r"\{(question|reference|prediction)\}", lambda match: parts[match[1]], prompt)


def parse_judgement(kind: Kind, reply: str) -> Judgement | None:
    """What a reply says; ``None`` if it says nothing of the kind.

    Example:
        >>> parse_judgement("grade", "0.7"), parse_judgement("match", "{'pred': 'yes', 'score': 4}")
        (Judgement(score=0.7, quality=None), Judgement(score=1.0, quality=4.0))
    """
    if kind == "grade":
        found = _GRADE.findall(reply)
        return Judgement(float(found[-1])) if found else None
    pred, score = _PRED.search(reply), _SCORE.search(reply)
    if pred is None or score is None or float(score[1]) > 5:
        return None
    return Judgement(float(pred[1].lower() == "yes"), float(score[1]))
