"""The forms of an entry that are no list of messages: FineVision's and the_cauldron's ``texts``, Alpaca's instructions,
queries and responses of ms-swift, questions with an answer, pictures with a caption."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data_prep.entries import RawEntry
from data_prep.report import shortened
from dslight.data.sample import BadSample

Message = dict[str, Any]
_ASKED = ("question", "query", "prompt")
_ANSWERED = ("answer", "response", "completion")
_CAPTIONS = ("caption", "text", "txt")
_RATING = re.compile(r"\w+_(ratings?|min)")
_SLOT = re.compile(r"<bbox>|<ref-object>")


class Form(NamedTuple):
    """A form of entries.

    Attributes:
        name: for people.
        fits: whether an entry is in it.
        read: the messages of an entry that is, and the keys that they were made of.
    """

    name: str
    fits: Callable[[RawEntry], bool]
    read: Callable[[RawEntry], tuple[list[Message], set[str]]]


def form_of(raw: RawEntry) -> Form | None:
    """The form that an entry is in; ``None``: none that is known."""
    return next((form for form in _FORMS if form.fits(raw)), None)


def messages_of(raw: RawEntry) -> tuple[list[Message], set[str]]:
    """The messages of an entry in any of the forms, and the keys that they were made of.

    Raises:
        BadSample: it is in none.
    """
    form = form_of(raw)
    if form is None:
        raise BadSample(
            "the entry has no list of messages or conversations, and no other form that is known", "no-text"
        )
    return form.read(raw)


def _of_texts(raw: RawEntry) -> tuple[list[Message], set[str]]:
    ratings = {name for name in raw if _RATING.fullmatch(name)}
    return [m for text in raw["texts"] for m in _pair(text["user"], text["assistant"])], {"texts", *ratings}


def _of_instructions(raw: RawEntry) -> tuple[list[Message], set[str]]:
    asked = "\n".join(text for text in (raw["instruction"], raw.get("input")) if text)
    return [*_history(raw), *_pair(asked, raw["output"])], {"instruction", "input", "output", "history"}


def _text_of(raw: RawEntry, names: Sequence[str]) -> str:
    """The first of the keys that holds a text; ``""``: none does."""
    return next((name for name in names if isinstance(raw.get(name), str)), "")


def _of_questions(raw: RawEntry) -> tuple[list[Message], set[str]]:
    asked, answered = _text_of(raw, _ASKED), _text_of(raw, _ANSWERED)
    return [*_history(raw), *_pair(raw[asked], raw[answered])], {asked, answered, "history"}


def _caption_of(raw: RawEntry) -> str:
    return next((name for name in _CAPTIONS if isinstance(raw.get(name), str) and raw[name].strip()), "")


def _is_captioned(raw: RawEntry) -> bool:
    # LLaVA's files of questions have a text too
    unasked = not _text_of(raw, _ASKED) and not _text_of(raw, _ANSWERED) and "question_id" not in raw
    return unasked and bool(_caption_of(raw)) and bool(raw.get("image") or raw.get("images"))


def _of_captions(raw: RawEntry) -> tuple[list[Message], set[str]]:
    name = _caption_of(raw)
    return _pair("", raw[name].removeprefix("\ufeff")), {name}


def _pair(asked: str, answered: str) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _history(raw: RawEntry) -> list[Message]:
    return [message for asked, answered in raw.get("history") or () for message in _pair(asked, answered)]


def with_objects(messages: Sequence[Mapping[str, Any]], objects: Any) -> list[Message]:
    """ms-swift's ``objects``: each ``<ref-object>`` and ``<bbox>`` gives way to the next of ``ref`` and ``bbox``, a box
    as ``[x1, y1, x2, y2]`` with the numbers that it has.

    Raises:
        BadSample: there are more or fewer of them than places.
    """
    given = json.loads(objects) if isinstance(objects, str) else objects
    if not isinstance(given, Mapping) or not isinstance(given.get("bbox", []), list):
        raise BadSample(f"objects: {shortened(repr(objects), 80)}; lists of ref and bbox are read", "media")
    words = {"<ref-object>": list(given.get("ref") or ()), "<bbox>": [_box(box) for box in given.get("bbox") or ()]}

    def filled(text: Any) -> Any:
        if isinstance(text, list):
            return [{**part, "text": filled(part["text"])} if _has_text(part) else part for part in text]
        return _SLOT.sub(next_word, text) if isinstance(text, str) else text

    def next_word(slot: re.Match[str]) -> str:
        if not words[slot[0]]:
            raise BadSample(f"has more {slot[0]} than there are in objects", "marks")
        return str(words[slot[0]].pop(0))

    out = [{**one, **{key: filled(one[key]) for key in ("content", "value") if key in one}} for one in messages]
    if left := next((slot for slot, rest in words.items() if rest), None):
        raise BadSample(f"objects: {len(words[left])} have no place {left} in the text", "marks")
    return out


def _has_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)


def _box(box: Any) -> str:
    numbers = box if isinstance(box, list) else []
    if len(numbers) not in (2, 4) or not all(isinstance(n, int | float) for n in numbers):
        raise BadSample(f"objects.bbox: {shortened(repr(box), 80)}; a box is [x1, y1, x2, y2]", "media")
    return f"[{', '.join(f'{n:g}' if isinstance(n, float) else str(n) for n in numbers)}]"


_FORMS = (
    Form(
        "chats (messages of role and content)",
        lambda raw: bool(raw.get("messages")),
        lambda raw: (raw["messages"], {"messages"}),
    ),
    Form(
        "LLaVA's conversations",
        lambda raw: bool(raw.get("conversations")),
        lambda raw: (raw["conversations"], {"conversations"}),
    ),
    Form(
        "texts of user and assistant (FineVision, the_cauldron)",
        lambda raw: isinstance(raw.get("texts"), list) and bool(raw["texts"]),
        _of_texts,
    ),
    Form(
        "instructions (Alpaca)",
        lambda raw: bool(raw.get("instruction")) and isinstance(raw.get("output"), str),
        _of_instructions,
    ),
    Form(
        "questions with an answer",
        lambda raw: bool(_text_of(raw, _ASKED) and _text_of(raw, _ANSWERED)),
        _of_questions,
    ),
    Form("pictures with a caption", _is_captioned, _of_captions),
)
"""In the order in which they are tried."""
