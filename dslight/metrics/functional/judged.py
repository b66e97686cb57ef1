"""What a judging language model is asked about an answer, and what its verdict says.

Four kinds of verdicts, as the numbers in papers are made of them: ``grade``, 0 to 1 in steps of 0.1 (MM-Vet);
``match``, whether an answer is right and how good from 0 to 5 (MSVD-QA and ActivityNet-QA, after Video-ChatGPT);
``right``, whether it is (CharXiv); and ``compare``, what it and a reference are worth from 1 to 10 each, of which the
number is the ratio of the means (LLaVA-Bench). The prompts here are our own words: a number that is to be compared with
a paper needs the paper's prompt, which a file may bring (``{question}``, ``{reference}``, ``{prediction}`` and
``{context}`` are replaced in it), and its judge.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Kind = Literal["grade", "match", "right", "compare"]

KINDS: dict[str, Kind] = {
    "mmvet": "grade",
    "msvdqa": "match",
    "activitynetqa": "match",
    "charxiv": "right",
    "llava_bench": "compare",
}
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
    "right": """Decide whether the answer to a question about a chart is right. Find what the answer finally says, and
compare it with the reference. Texts and labels must be the same ones, all of them where there are several; case,
notation (LaTeX or not) and the order of words that does not change the meaning are free. Numbers must have the same
value, as exactly as the reference gives it. 'Not Applicable' is right only where the reference says so.
Reply with one line of JSON, {"score": 1} or {"score": 0}, and with nothing else.

Question: {question}
Reference: {reference}
Answer: {prediction}""",
    "compare": """Two assistants have answered a question about a picture. You cannot see the picture; a description
of it is below. Rate how helpful, relevant, accurate and detailed each answer is, with a number from 1 (poor) to 10
(excellent). Do not let the order of the answers or their length decide.
Reply with the two numbers, of the first and of the second answer, with a blank between, and with nothing else.

Description: {context}
Question: {question}
First answer: {reference}
Second answer: {prediction}""",
}

_GRADE = re.compile(r"(?<![\d.])(?:1(?:\.0+)?|0?\.\d+|0)(?![\d.])")
_PRED = re.compile(r"""['"]?pred['"]?\s*:\s*['"]?(yes|no)\b""", re.IGNORECASE)
_RIGHT = re.compile(r"""['"]?score['"]?\s*:\s*['"]?([01])(?![\d.])""")
_RATED = re.compile(r"-?\d+(?:\.\d+)?")
_SCORE = re.compile(r"""['"]?score['"]?\s*:\s*['"]?(\d+(?:\.\d+)?)""")


class Judgement(NamedTuple):
    """A verdict.

    Attributes:
        score: in 0..1: the grade, whether the answer is right, or a tenth of what it is worth.
        quality: of ``match``, 0 to 5.
        against: of ``compare``, a tenth of what the reference is worth.
    """

    score: float
    quality: float | None = None
    against: float | None = None


def filled(prompt: str, question: str, reference: str, prediction: str, context: str = "") -> str:
    """A prompt with its parts; in one pass, so that braces in the parts stay."""
    parts = {"question": question, "reference": reference, "prediction": prediction, "context": context}
    return re.sub(r"\{(question|reference|prediction|context)\}", lambda match: parts[match[1]], prompt)


def parse_judgement(kind: Kind, reply: str) -> Judgement | None:
    """What a reply says; ``None`` if it says nothing of the kind.

    Example:
        >>> parse_judgement("grade", "0.7"), parse_judgement("match", "{'pred': 'yes', 'score': 4}")
        (Judgement(score=0.7, quality=None, against=None), Judgement(score=1.0, quality=4.0, against=None))
    """
    if kind == "right":
        found = _RIGHT.findall(reply)
        return Judgement(float(found[-1])) if found else None
    if kind == "compare":
        rated = [float(one) for one in _RATED.findall(reply.strip().split("\n")[0])[:2]]
        if len(rated) < 2 or not all(0 <= one <= 10 for one in rated) or rated[0] == 0:
            return None
        return Judgement(rated[1] / 10, against=rated[0] / 10)
    if kind == "grade":
        found = _GRADE.findall(reply)
        return Judgement(float(found[-1])) if found else None
    pred, score = _PRED.search(reply), _SCORE.search(reply)
    if pred is None or score is None or float(score[1]) > 5:
        return None
    return Judgement(float(pred[1].lower() == "yes"), float(score[1]))
