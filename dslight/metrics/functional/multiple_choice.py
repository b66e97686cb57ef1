"""Multiple choice: which option letter an answer names, as the evaluators of the benchmarks read it.

Every reader is pure: (answer, options) -> letter, or ``None`` where it finds none. Where the original then guesses at
random (MMMU) or asks a language model (MMBench), the answer stays unresolved here.

``letter``
    The answer is the letter (LLaVA's SEED-Bench script).
``first_char``, ``first_char_cased``
    Its first character is (lmms-eval's SEED-Bench; the copy that DeepStack's script runs minds the case). "Answer: B"
    is A.
``mmmu``, ``mmmu_lmms_eval``
    "(B)", else " B ", else, in answers of more than five words, the text of an option; of several the one that is last.
    lmms-eval also takes "B." and does not ask for a blank before the letter ("DNA " is A).
``mmbench``, ``mmbench_lmms_eval``
    VLMEvalKit's rules: exactly one letter stands alone, among the last four words; else "answer is B"; else exactly one
    option's text occurs. lmms-eval's older copy knows A to E whatever the options, and takes "A" among more words for
    an article.
``scienceqa``, ``scienceqa_lmms_eval``
    LLaVA's: the letter, or "B. ...", or exactly one "The answer is B."; lmms-eval's: the letter without case, or
    "B....".
``ai2d``
    lmms-eval's: "B....", or the letter without case and punctuation.
``mvbench``
    lmms-eval's: "B. ..." or the first letter A to E that stands alone once punctuation is gone ("a cat" is A).
``videomme``
    Video-MME's: the first capital A to D anywhere, after "The answer is" and the like are deleted.
``longvideobench``
    Its authors', as in lmms-eval: as ``videomme`` with all of the phrases, and A to E.
``mlvu``
    MLVU's own: the character before the first ")", else the whole answer.
``lmms_eval``
    The reader that lmms-eval's tasks share since 2026 (see ``dslight.metrics.functional.choice_phrases``).
``egoschema``
    lmms-eval's: the letter forms of ``mmmu_lmms_eval`` at once, each where it stands last, and of those the first.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from dslight.metrics.functional.choice_phrases import read_letter
from dslight.metrics.functional.vqa import strip_marks_python3

ChoiceProtocol = Literal[
    "letter",
    "first_char",
    "first_char_cased",
    "mmmu",
    "mmmu_lmms_eval",
    "mmbench",
    "mmbench_lmms_eval",
    "scienceqa",
    "scienceqa_lmms_eval",
    "ai2d",
    "mvbench",
    "egoschema",
    "videomme",
    "longvideobench",
    "mlvu",
    "lmms_eval",
]
CHOICE_PROTOCOLS: tuple[str, ...] = get_args(ChoiceProtocol)
READS_OPTION_TEXTS = ("mmmu", "mmmu_lmms_eval", "mmbench", "mmbench_lmms_eval", "egoschema")
"""Protocols that look for the options' texts in the answer and so cannot do without them."""

Options = Mapping[str, str]
"""Letter -> text."""


def _letter(answer: str, options: Options) -> str | None:
    return answer


def _first_char(answer: str, options: Options) -> str | None:
    return answer.strip()[:1].upper()


def _first_char_cased(answer: str, options: Options) -> str | None:
    return answer.strip()[:1]


def _strip_mmmu(answer: str) -> str:
    for mark in ",.!?;:'":  # once each, in this order
        answer = answer.strip(mark)
    return f" {answer} "


def _last(candidates: list[str], answer: str, form: Callable[[str], str]) -> str | None:
    """The candidate of which ``form`` occurs last, the first of them where none does."""
    return max(candidates, key=lambda letter: answer.rfind(form(letter)), default=None)


def _by_text(answer: str, options: Options) -> str | None:
    if len(answer.split()) <= 5:
        return None
    answer = answer.lower()
    named = [letter for letter, text in options.items() if text.lower() in answer]
    return _last(named, answer, lambda letter: options[letter].lower())


def _mmmu(answer: str, options: Options) -> str | None:
    answer = _strip_mmmu(answer)
    for form in ("({})", " {} "):
        if found := [letter for letter in options if form.format(letter) in answer]:
            return _last(found, answer, form.format)
    return _by_text(answer, options)


def _mmmu_lmms_eval(answer: str, options: Options) -> str | None:
    answer = _strip_mmmu(answer.strip())
    # found in one form, ranked by another: "B." has no " B " to be ranked by, so the first option wins
    for form, rank in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in options if form.format(letter) in answer]:
            return _last(found, answer, rank.format)
    return _by_text(answer, options)


def _egoschema(answer: str, options: Options) -> str | None:
    answer = _strip_mmmu(answer.strip())
    forms = ("({})", "{} ", "{}.")
    found = [(answer.rfind(form), letter) for letter in options for f in forms if (form := f.format(letter)) in answer]
    if not found and len(answer.split()) > 5:
        answer = answer.lower()
        found = [(answer.rfind(text.lower()), letter) for letter, text in options.items() if text.lower() in answer]
    return min(found)[1] if found else None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([A-D])", re.IGNORECASE)
_MMBENCH_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def _only_text(answer: str, options: Options) -> str | None:
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None


def _mmbench(answer: str, options: Options) -> str | None:
    if any(refusal in answer for refusal in _REFUSALS):
        return None
    words = answer.translate(_MMBENCH_MARKS).split()
    alone = [letter for letter in options if letter in words]
    if len(alone) == 1 and words.index(alone[0]) > len(words) - 5:
        return alone[0]
    if not alone and "Z" in words:  # the letter by which its judge says "none of these"
        return None
    if (match := _ANSWER_IS.search(answer)) and match[1].upper() in options:
        return match[1].upper()
    if len(answer.lower()) > 2 * sum(len(text) for text in options.values()):
        return None
    return _only_text(answer, options)


_MMBENCH_OLD_FORMS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")


def _mmbench_lmms_eval(answer: str, options: Options) -> str | None:
    words = answer.split()
    alone = [letter for letter in "ABCDE" if letter in words]
    if len(alone) == 1 and not ("A" in words and len(words) > 3):
        return alone[0]
    for form in _MMBENCH_OLD_FORMS:
        found = [letter for letter in "ABCDE" if form.format(letter) in words]
        if len(found) == 1:
            return found[0]
    return _only_text(answer, options)


def _scienceqa(answer: str, options: Options) -> str | None:
    if answer in list("ABCDE"):
        return answer
    if re.match(r"[A-E]\. ", answer):
        return answer[0]
    named = re.findall(r"The answer is ([A-Z]).", answer)
    return named[0] if len(named) == 1 else None


def _scienceqa_lmms_eval(answer: str, options: Options) -> str | None:
    answer = answer.strip()
    return answer[0] if answer[1:2] == "." and answer[0].isupper() else answer.upper()


def _ai2d(answer: str, options: Options) -> str | None:
    match = re.match(r"\s*([A-Z])\.", answer)
    return match[1] if match else answer.translate(str.maketrans("", "", string.punctuation)).upper()


def _mvbench(answer: str, options: Options) -> str | None:
    if match := re.match(r"([A-E])\.\s*(.+)$", answer.strip(), re.IGNORECASE):
        return match[1].upper()
    answer = strip_marks_python3(answer.replace("\n", " ").replace("\t", " ").strip()).lower()
    match = re.search(r"\b([A-E])\b", answer, re.IGNORECASE)
    return match[1].upper() if match else None


_VIDEOMME_WORDS = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option isThe correct option is", "Best answer:Best option:",  # two commas are missing there
)  # fmt: skip


def _videomme(answer: str, options: Options) -> str | None:
    for words in _VIDEOMME_WORDS:
        answer = answer.replace(words, "")
    match = re.search("[A-D]", answer)
    return match[0] if match else None


_LONGVIDEOBENCH_WORDS = (
    "The best answer is", "The correct answer is", "The answer is", "The answer",
    "The best option is", "The correct option is", "Best answer:", "Best option:",
)  # fmt: skip


def _longvideobench(answer: str, options: Options) -> str | None:
    for words in _LONGVIDEOBENCH_WORDS:
        answer = answer.replace(words, "")
    match = re.search("[A-E]", answer)
    return match[0] if match else None


def _mlvu(answer: str, options: Options) -> str | None:
    at = answer.find(")")
    return answer if at < 0 else answer[at - 1 : at]


_READERS: dict[str, Callable[[str, Options], str | None]] = {
    "letter": _letter,
    "first_char": _first_char,
    "first_char_cased": _first_char_cased,
    "mmmu": _mmmu,
    "mmmu_lmms_eval": _mmmu_lmms_eval,
    "mmbench": _mmbench,
    "mmbench_lmms_eval": _mmbench_lmms_eval,
    "scienceqa": _scienceqa,
    "scienceqa_lmms_eval": _scienceqa_lmms_eval,
    "ai2d": _ai2d,
    "mvbench": _mvbench,
    "videomme": _videomme,
    "longvideobench": _longvideobench,
    "mlvu": _mlvu,
    "lmms_eval": read_letter,
    "egoschema": _egoschema,
}


def parse_choice(answer: str, options: Options, protocol: ChoiceProtocol = "letter") -> str | None:
    """The option letter that ``answer`` names, ``None`` where it names none of ``options``.

    Args:
        answer: the model's answer.
        options: letter -> text, all the options of the question, in their order.
        protocol: whose rules; see the module.
    """
    letter = _READERS[protocol](answer, options)
    return letter if letter in options else None


def parse_options(question: str) -> dict[str, str]:
    """The options that a question's text lists, line by line, as "A. text" or "(A) text"; empty if it lists none."""
    found = re.findall(r"^\s*\(?([A-Z])[.)]\s*(.*?)\s*$", question, re.MULTILINE)
    options: dict[str, str] = {}
    for letter, text in found:
        if letter == chr(ord("A") + len(options)):  # skips a sentence that looks like an option
            options[letter] = text
    return options
