"""What the chat template of a tokenizer does to a conversation, found out by asking it, before anything is trained.

A template is a program, and some do more than write turns: Qwen3's puts an empty thinking block before the last answer
and takes it away once a further turn follows, Phi-4-mini's ends every rendering with an end-of-text, DeepSeek's
distilled ones cut an answer's thoughts. Decided here: an answer is learnt
where the model will write it, behind exactly the prompt that it will see; a template with which that cannot be is
refused, and what is only worth knowing is said by ``dslight plan``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dslight.data.sample import BadSample
from dslight.data.templates.chat_template import DAY, Messages, on_day, render
from dslight.texts import printable

_FIRST, _SECOND = "What is on the page?", "And on the other?"
_SYSTEM = "Answer in one word."
_ANSWER = "Nothing."
_INSTEAD = "choose another template (data.template: chatml, vicuna_v1, ...)"


@dataclass(frozen=True)
class Habits:
    """What a template does.

    Attributes:
        problem: why answers cannot be learnt with it; ``""``: they can.
        end: what it writes behind an answer; ``""`` if that is not known.
        tail: what it writes at the end of every text, whatever stands there.
        rewrites: whether it changes an answer once another turn follows, so that only the last one is learnt.
        system: whether it has a place for a system text.
        dated: whether it writes the day.
    """

    problem: str = ""
    end: str = ""
    tail: str = ""
    rewrites: bool = False
    system: bool = False
    dated: bool = False

    @property
    def notes(self) -> list[str]:
        """What is worth a word."""
        notes = []
        if self.rewrites:
            notes.append(
                "note: the tokenizer's chat template changes an answer once another turn follows, so only the last "
                "answer of a conversation is learnt (data.template: chatml learns all)"
            )
        if not self.system:
            notes.append(
                "note: the tokenizer's chat template has no place for a system text; it goes before the question"
            )
        if self.dated:
            notes.append(f"note: the tokenizer's chat template writes the day, which is {DAY:%d %b %Y} here, always")
        return notes


def habits(tokenizer: Any, thinking: bool | None = None) -> Habits:
    """What the chat template of ``tokenizer`` does; ``thinking`` is ``data.thinking``."""
    return _habits(tokenizer, str(getattr(tokenizer, "chat_template", None)), thinking)


def check_habits(tokenizer: Any, thinking: bool | None = None) -> Habits:
    """As :func:`habits`.

    Raises:
        BadSample: no answer can be learnt with it; one sentence.
    """
    found = habits(tokenizer, thinking)
    if found.problem:
        raise BadSample(f"data.template: {found.problem}", "template")
    return found


@lru_cache(maxsize=8)
def _habits(tokenizer: Any, chat_template: str, thinking: bool | None) -> Habits:
    if not getattr(tokenizer, "chat_template", None):
        return Habits(f"the tokenizer has no chat template; {_INSTEAD}")
    try:
        return _asked(tokenizer, thinking)
    except BadSample as error:
        return Habits(str(error).removeprefix("data.template: "))
    except Exception as error:  # whatever a program in Jinja may raise
        what = f"{type(error).__name__}: {printable(str(error))[:120]}"
        return Habits(f"the tokenizer's fails at a question and its answer ({what}); {_INSTEAD}")


def _asked(tokenizer: Any, thinking: bool | None) -> Habits:
    def written(*texts: str, day: Any = DAY) -> str:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        return render(tokenizer, messages, len(texts) % 2 == 1, thinking, day)

    prompt, full = written(_FIRST), written(_FIRST, _ANSWER)
    if _FIRST not in prompt:
        return Habits(f"the tokenizer's leaves out the text of a message; {_INSTEAD}")
    if "strftime_now(" in on_day(tokenizer.get_chat_template()):
        return Habits(f"the tokenizer's writes the day in a form that is not written out in it; {_INSTEAD}")
    if written(_FIRST) != prompt:
        return Habits(f"the tokenizer's writes another text each time; {_INSTEAD}")
    if not full.startswith(prompt):
        what = f"the tokenizer's prompt ends in {_end(prompt, full)}, behind which it writes no answer"
        return Habits(f"{what}, so none can be learnt; {_INSTEAD}")
    before, found, after = full[len(prompt) :].partition(_ANSWER)
    if not found:
        return Habits(f"the tokenizer's does not write an answer as it is; {_INSTEAD}")
    second = written(_FIRST, _ANSWER, _SECOND)
    whole = written(_FIRST, _ANSWER, _SECOND, _ANSWER)
    rewrites = not (second.startswith(prompt + before + _ANSWER) and whole.startswith(second))
    tail = "" if rewrites else full[len(_common_tokens(tokenizer, full, second)) :]
    end = after.removesuffix(tail).strip()
    if not end:
        return Habits(f"the tokenizer's writes nothing behind an answer, so that none would end; {_INSTEAD}")
    problem = ""
    if before.strip() and thinking is None:
        problem = (
            f"the tokenizer's puts {before!r} before an answer, which would be learnt; set data.thinking: false (it is "
            f"part of the prompt then) or true (it is learnt), or {_INSTEAD}"
        )
    elif before.strip() and not thinking:
        problem = f"the tokenizer's puts {before!r} before an answer, with data.thinking: false too; {_INSTEAD}"
    elif rewrites and thinking is None:
        problem = (
            f"the tokenizer's changes an answer once another turn follows, so not all can be learnt; {_INSTEAD}, or "
            "set data.thinking: false, with which the last answer of a conversation is learnt"
        )
    return Habits(problem, end, tail, rewrites, _takes_system(tokenizer, thinking), _is_dated(written))


def _end(prompt: str, full: str) -> str:
    """Where a prompt goes on otherwise than a text with the answer in it."""
    agree = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
    return repr(prompt[agree:][-60:])


def _common_tokens(tokenizer: Any, one: str, other: str) -> str:
    """How far two texts agree, in whole tokens: ``<|end|>`` and ``<|endoftext|>`` do not in part."""
    first, second = (tokenizer.backend_tokenizer.encode(text, add_special_tokens=False) for text in (one, other))
    at = 0
    for a, b, (_, end), (_, other_end) in zip(first.ids, second.ids, first.offsets, second.offsets, strict=False):
        if a != b or end != other_end or one[:end] != other[:end]:
            break
        at = end
    return one[:at]


def _takes_system(tokenizer: Any, thinking: bool | None) -> bool:
    messages: Messages = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": _FIRST})
    try:
        text = render(tokenizer, messages, True, thinking)
    except BadSample:
        raise
    except Exception:  # Gemma's raises for the role
        return False
    return 0 <= text.find(_SYSTEM) < text.find(_FIRST)


def _is_dated(written: Any) -> bool:
    return written(_FIRST) != written(_FIRST, day=DAY.replace(year=1999, month=1, day=2))
