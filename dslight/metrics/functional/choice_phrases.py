"""lmms-eval's shared reader of letters (``mcq_extract``, Aug 2026): many forms, the most telling one wins.

In this order: the letter begins the answer, ends it, follows a phrase such as "the answer is", stands as "(B)", "B.",
"B:", "B)", "B ". Of one form, the letter that stands last; what is nowhere in such a form is the last letter anywhere.
The letter behind a phrase is the one that is farthest from it, as each letter is looked for on its own.
"""

from __future__ import annotations

from collections.abc import Mapping

_IS = ("answer is", "correct answer is", "best answer is", "correct option is", "best option is", "choice is")
_PHRASES = (
    *(f"{the}{one}" for one in (*_IS, "correct choice is") for the in ("the ", "")),
    "i choose", "i select", "i pick", "my answer is", "my choice is",
    "옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは",
)  # fmt: skip
_FORMS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
_START, _END, _PHRASE = 10, 9, 7


def read_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that the answer names; ``None`` if it has none of them."""
    text = answer.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    bare, text = text.strip(), f" {text} "
    found = [
        (rank, text.rfind(form.format(letter)), letter)
        for form, rank in _FORMS
        for letter in options
        if form.format(letter) in text
    ]
    lower = text.lower()
    ends = [at + len(phrase) for phrase in _PHRASES if (at := lower.find(phrase)) >= 0]
    found += [(_PHRASE, at, letter) for end in ends for letter in options if (at := text.find(letter, end)) >= 0]
    found += [(_START, 0, letter) for letter in options if bare.startswith(letter) and not bare[1:2].isalpha()]
    found += [
        (_END, len(text) - 1, letter) for letter in options if bare.endswith(letter) and not bare[:-1][-1:].isalpha()
    ]
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in options if letter in text]
    return max(found, key=lambda one: one[:2])[2] if found else None
