"""The forms of an entry that are no list of messages: FineVision's and the_cauldron's ``texts``, Alpaca's instructions,
queries and responses of ms-swift, questions with an answer, pictures with a caption."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from data_prep.entries import RawEntry
from data_prep.report import shortened
from dslight.data.sample import BadSample

Message = dict[str, Any]
_ASKED = ("question", "query", "prompt")
_ANSWERED = ("answer", "response", "completion")
_CAPTIONS = ("caption", "text", "txt")
_RATING = re.compile(r"\w+_(ratings?|min)")
_SLOT = re.compile(r"<bbox>|<ref-object>")


def messages_of(raw: RawEntry) -> tuple[list[Message], set[str]]:
    """The messages of an entry in any of the forms, and the keys that they were made of.

    Raises:
        BadSample: it is in none.
    """
    for key in ("messages", "conversations"):
        if raw.get(key):
            return raw[key], {key}
    if isinstance(texts := raw.get("texts"), list) and texts:
        ratings = {name for name in raw if _RATING.fullmatch(name)}
        return [message for text in texts for message in _pair(text["user"], text["assistant"])], {"texts", *ratings}
    if raw.get("instruction") and isinstance(raw.get("output"), str):
        asked = "\n".join(text for text in (raw["instruction"], raw.get("input")) if text)
        return [*_history(raw), *_pair(asked, raw["output"])], {"instruction", "input", "output", "history"}
    asked = next((name for name in _ASKED if isinstance(raw.get(name), str)), None)
    answered = next((name for name in _ANSWERED if isinstance(raw.get(name), str)), None)
    if asked and answered:
        return [*_history(raw), *_pair(raw[asked], raw[answered])], {asked, answered, "history"}
    caption = next((name for name in _CAPTIONS if isinstance(raw.get(name), str) and raw[name].strip()), None)
    to_learn = not asked and not answered and "question_id" not in raw  # LLaVA's files of questions have a text too
    if caption and to_learn and (raw.get("image") or raw.get("images")):
        return _pair("", raw[caption].removeprefix("\ufeff")), {caption}
    raise BadSample("the entry has no list of messages or conversations, and no other form that is known", "no-text")


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


def known_form(keys: Collection[str]) -> str:
    """Which form entries with these keys are in, for people; ``""``: none that is known."""
    names = set(keys)
    for needed, form in (
        ({"messages"}, "chats (messages of role and content)"),
        ({"conversations"}, "LLaVA's conversations"),
        ({"texts"}, "texts of user and assistant (FineVision, the_cauldron)"),
        ({"instruction", "output"}, "instructions (Alpaca)"),
    ):
        if needed <= names:
            return form
    if names & set(_ASKED) and names & set(_ANSWERED):
        return "questions with an answer"
    captioned = names & set(_CAPTIONS) and names & {"image", "images"} and "question_id" not in names
    return "pictures with a caption" if captioned else ""
