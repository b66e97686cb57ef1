"""Chat templates that tokenizers bring along: programs in Jinja, run within bounds of time and memory.

transformers keeps such a program in a sandbox, so it reads and runs nothing else; but loops within loops, or a text
that is doubled again and again, end late or never. Decided here: a template is first tried out in a process of its own,
whose time and memory the kernel bounds, and what it writes for a conversation is bounded in time and length.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

from dslight.data.sample import BadSample
from dslight.limits import LIMITS, at_most, limit, setting

Messages = Sequence[dict[str, str]]

_TRIED: Messages = (
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "A page."},
    {"role": "user", "content": "And that?"},
)
_NO_MEMORY = 3

DAY = datetime(2024, 7, 26)
"""What a template that writes the date of today (Llama 3's, Mistral's) is told: the same ids on every day, in training
and in prompts. Llama 3's own default."""


_TODAY = re.compile(r"""\bstrftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)""")


def render(tokenizer: Any, messages: Messages, prompt: bool, thinking: bool | None = None, day: datetime = DAY) -> str:
    """What the tokenizer's chat template writes for ``messages``.

    Args:
        tokenizer: whose template it is.
        messages: ``role`` and ``content``.
        prompt: whether to write up to where an answer begins.
        thinking: ``enable_thinking`` of those templates that ask for it; ``None``: as they do where nobody says.
        day: which one is today.

    Raises:
        BadSample: it takes longer, or writes more, than the limits allow.
    """
    _try_out(tokenizer)
    with _bounded():
        options = _options(tokenizer, prompt, thinking, day)
        given = _in_parts(messages) if _wants_parts(tokenizer) else list(messages)
        text = cast(str, tokenizer.apply_chat_template(given, **options))
    at_most("template_bytes", len(text), f"data.template: the tokenizer's writes {len(text):,} characters", BadSample)
    return text


def image_marks(tokenizer: Any, image: str) -> tuple[str, str] | None:
    """What the tokenizer's chat template writes before and behind an image.

    Args:
        tokenizer: whose template it is.
        image: the token that it writes for an image.

    Returns:
        ``None`` where it writes none, or not once.

    Raises:
        BadSample: as :func:`render`.
    """
    asked = _TRIED[0]["content"]
    alone = render(tokenizer, _TRIED[:1], True)
    first, found, last = alone.partition(asked)
    shown: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    try:
        with _bounded():
            text = cast(str, tokenizer.apply_chat_template(shown, **_options(tokenizer, True, None, DAY)))
    except BadSample:
        raise
    except Exception:  # it takes no lists
        return None
    if not found or not text.startswith(first) or not text.endswith(asked + last) or text.count(image) != 1:
        return None
    before, _, after = text[len(first) : -len(asked + last)].partition(image)
    return before, after


def _in_parts(messages: Messages) -> list[dict[str, Any]]:
    """The messages with each text as the only part of a list."""
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


@lru_cache(maxsize=8)
def _wants_parts(tokenizer: Any) -> bool:
    """Whether a template writes a text as a part of a list alone: those of multimodal models may."""
    asked, options = list(_TRIED[:1]), _options(tokenizer, True, None, DAY)
    for given, wants in ((asked, False), (_in_parts(asked), True)):
        try:
            if asked[0]["content"] in cast(str, tokenizer.apply_chat_template(given, **options)):
                return wants
        except BadSample:
            raise
        except Exception:  # what Jinja, or the template itself, raises
            continue
    return False


def _options(tokenizer: Any, prompt: bool, thinking: bool | None, day: datetime) -> dict[str, Any]:
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompt}
    if thinking is not None:
        options["enable_thinking"] = thinking
    if tokenizer.chat_template and "strftime_now" in (text := tokenizer.get_chat_template()):
        options["chat_template"] = on_day(text, day)
    return options


def on_day(chat_template: str, day: datetime = DAY) -> str:
    """A chat template that is told which day it is, wherever it asks for it in a form that is written out."""
    return _TODAY.sub(lambda call: repr(day.strftime(call[2])), chat_template)


@lru_cache(maxsize=8)
def _try_out(tokenizer: Any) -> None:
    """Let a process that may be killed run it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads that the child, which starts none, does not have
        child = os.fork()
    if not child:
        _run_and_leave(tokenizer)
    seconds = limit("template_seconds")
    end = time.monotonic() + 20 * seconds + 60  # the kernel counts what it computes, and not what it waits for
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                raise _too_long()
            if os.WEXITSTATUS(status) == _NO_MEMORY:
                at_most("template_memory", float("inf"), "data.template: the tokenizer's runs out of memory", BadSample)
            return
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise _too_long()


def _run_and_leave(tokenizer: Any) -> None:
    code = 0
    try:
        for number, handler in ((signal.SIGXCPU, signal.SIG_DFL), (signal.SIGINT, signal.SIG_IGN)):
            signal.signal(number, handler)
        seconds = int(time.process_time()) + limit("template_seconds") + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        memory = _memory() + limit("template_memory")
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        for prompt in (True, False):
            for given in (list(_TRIED), _in_parts(_TRIED)):
                try:
                    tokenizer.apply_chat_template(given, **_options(tokenizer, prompt, None, DAY))
                except MemoryError:
                    raise
                except Exception:  # what is wrong with it shows once more when it is used
                    continue
    except MemoryError:
        code = _NO_MEMORY
    except BaseException:  # what is wrong with it shows once more when it is used
        code = 1
    finally:
        os._exit(code)


def _memory() -> int:
    """Bytes of address space of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux, where the limit is not kept either
        return 1 << 40


@contextmanager
def _bounded() -> Iterator[None]:
    """End what computes for too long; outside of the main thread, which gets no signals, nothing is ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit("template_seconds"))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: Any) -> None:
    raise _too_long()


def _too_long() -> BadSample:
    most = f"{limit('template_seconds'):,} ({setting('template_seconds')}: {LIMITS['template_seconds'].bounds})"
    return BadSample(f"data.template: the tokenizer's takes longer than it may; at most {most}", "template")
