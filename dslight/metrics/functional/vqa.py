"""VQA accuracy: answer normalisation and the leave-one-out soft score of ten human answers.

Five widely used evaluators give five different numbers for the same answers, so the protocol is part of the metric:

``official``
    The VQA challenge's evaluator (Antol et al. 2015, Goyal et al. 2017). Prediction and references are normalised only
    where the references are not all alike: against ten times "yes" the answers "Yes" and "yes." score 0.
``m4c``
    TextVQA's (mmf, also LLaVA's and DeepStack's): splits off "'s", deletes "," and "?", and always normalises.
``lmms_eval``
    lmms-eval's VQAv2 task: the official steps, always applied.
``deepstack_fork``
    The lmms-eval copy that DeepStack's released script runs: m4c on the prediction only, then the official path.
``vlmevalkit``
    VLMEvalKit: always normalises; a period stays after a digit ("5." is not "5").

Known slips of these evaluators (the misspelt lookbehind, the flag passed as a count) are kept, because they move
scores.

Rule for n references, n other than ten: each reference is left out in turn and the answer earns
``min(1, matches among the others / min(3, n - 1))``; the score is the mean. For n >= 4 this is the published formula;
below, it asks for as many matches as there are others, so unanimous references always give 1. One reference is exact
match after the protocol's normalisation (leaving it out would leave nothing to match).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, get_args

VQAProtocol = Literal["official", "m4c", "lmms_eval", "deepstack_fork", "vlmevalkit"]
VQA_PROTOCOLS: tuple[str, ...] = get_args(VQAProtocol)

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"  # nothing above ten
_NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS.split())} | {"none": "0"}
# Restored where exactly one apostrophe is missing: "dont", "couldnt've", but not "couldntve". Words of which the bare
# form means something else (we'll, I'm, it's, she's, let's) are not in the evaluators' table either.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_RESTORED = {
    word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS.split() for at, char in enumerate(word) if char == "'"
} | {"somebody'd": "somebodyd"}  # reversed in the evaluators' table

_PERIODS_REMOVED = 32  # the evaluators pass re.UNICODE (= 32) where re.sub takes a count
_OFFICIAL_COMMA, _OFFICIAL_PERIOD = re.compile("[0-9],[0-9]"), re.compile(r"\.(?![0-9])")  # Python 2's \d is ASCII
_M4C_COMMA, _M4C_PERIOD = re.compile(r"\d,+\d"), re.compile(r"\.(?!\d)")
_VLMEVALKIT_COMMA, _VLMEVALKIT_PERIOD = re.compile(r"\d,\d"), re.compile(r"(?<!\d)\.(?!\d)")


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _strip_marks(text: str, comma: re.Pattern[str], period: re.Pattern[str]) -> str:
    result = text
    thousands = comma.search(text) is not None  # one "1,000" deletes every mark of the string
    for mark in _MARKS:
        delete = thousands or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if delete else " ")
    return period.sub("", result, count=_PERIODS_REMOVED)


def strip_marks_official(text: str) -> str:
    """The punctuation step of the official evaluator alone."""
    return _strip_marks(text, _OFFICIAL_COMMA, _OFFICIAL_PERIOD)


def strip_marks_python3(text: str) -> str:
    """The same as Python 3 runs it, where the digits of any script are digits (a multiple-choice reader uses it)."""
    return _strip_marks(text, _VLMEVALKIT_COMMA, _M4C_PERIOD)


def strip_marks_vlmevalkit(text: str) -> str:
    """The punctuation step of VLMEvalKit alone (its yes/no reader uses it too)."""
    return _strip_marks(text, _VLMEVALKIT_COMMA, _VLMEVALKIT_PERIOD)


def _words(text: str) -> str:
    numbers = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in numbers if word not in _ARTICLES)


def normalize_vqa_official(text: str) -> str:
    """The challenge evaluator's normalisation: marks, periods, number words, articles, contractions."""
    return _words(strip_marks_official(_clean(text)))


def normalize_vqa_m4c(text: str) -> str:
    """TextVQA's normalisation: the word step (lower case, no "," and "?", "'s" split off), then the official steps."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _normalize_lmms_eval(text)


def normalize_vqa_vlmevalkit(text: str) -> str:
    """VLMEvalKit's normalisation: the official steps, but a period after a digit stays."""
    return _words(strip_marks_vlmevalkit(_clean(text)))


def _normalize_lmms_eval(text: str) -> str:
    return _words(_strip_marks(_clean(text), _M4C_COMMA, _M4C_PERIOD))


_ALWAYS: dict[str, Callable[[str], str]] = {
    "m4c": normalize_vqa_m4c,
    "lmms_eval": _normalize_lmms_eval,
    "vlmevalkit": normalize_vqa_vlmevalkit,
}


def normalize_vqa(prediction: str, references: Sequence[str], protocol: VQAProtocol) -> tuple[str, list[str]]:
    """The prediction and the references as ``protocol`` compares them."""
    if normalize := _ALWAYS.get(protocol):
        return normalize(prediction), [normalize(reference) for reference in references]
    if protocol == "official":
        normalize, prediction = normalize_vqa_official, _clean(prediction)
    elif protocol == "deepstack_fork":
        normalize, prediction = _normalize_lmms_eval, normalize_vqa_m4c(prediction)
    else:
        raise ValueError(f"protocol: {protocol!r} is not one of {', '.join(VQA_PROTOCOLS)}")
    references = [_clean(reference) for reference in references]
    if len(references) > 1 and len(set(references)) == 1:  # unanimous: compared as they are
        return prediction, references
    return normalize(prediction), [normalize(reference) for reference in references]


def vqa_soft_score(prediction: str, references: Sequence[str], protocol: VQAProtocol = "official") -> float:
    """VQA accuracy of one answer, in 0..1.

    Args:
        prediction: the model's answer.
        references: the human answers, one or more; repeated answers count as often as they were given.
        protocol: whose rules; see the module.

    Raises:
        ValueError: no references, or an unknown protocol.
    """
    if not references:
        raise ValueError("references: a question needs at least one reference answer, got none")
    answer, others = normalize_vqa(prediction, references, protocol)
    matches, n = others.count(answer), len(others)
    if n == 1:
        return float(matches)
    needed = min(3, n - 1)
    # leaving out one of the matching references leaves matches - 1, leaving out any other leaves all of them
    return (matches * min(1.0, (matches - 1) / needed) + (n - matches) * min(1.0, matches / needed)) / n
