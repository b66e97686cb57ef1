"""``dslight chat --text``: ask a trained model in a terminal, about pictures, and switch its stacks off and on.

The model is loaded once. A line is a question about the pictures that were named last; each is asked by itself, as the
validation loop asks. What begins with ``/`` is a command.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dslight.diagnostics.groups import Groups
from dslight.nn.intervention import intervene
from dslight.recipe.errors import RecipeError
from dslight.texts import printable

HELP = """/image FILE ...   ask about these pictures (none: about nothing)
/stacks           which stacks there are, and which are on
/off N ...        answer without these stacks (/off alone: without any)
/on N ...         with them again (/on alone: with all)
/quit"""


def chat(path: str | Path, ckpt_recipe: Path | None = None, max_new_tokens: int = 64) -> None:
    """Talk in this terminal with what was trained.

    Args:
        path: as :func:`dslight.load` takes it: a run, an export, a checkpoint.
        ckpt_recipe: of a checkpoint that brings none.
        max_new_tokens: of an answer.

    Raises:
        RecipeError: it cannot be opened.
    """
    from dslight.run.evaluate import check_length

    check_length(max_new_tokens)
    talk(opened(path, ckpt_recipe), iter(_lines, None), print, max_new_tokens)


def opened(path: str | Path, ckpt_recipe: Path | None = None) -> Any:
    """A model to talk with; arguments as of :func:`chat`.

    Raises:
        RecipeError: it cannot be opened, or answers nothing.
    """
    from dslight.run.python import load
    from dslight.vlm import VLM

    try:
        model = load(path, recipe=ckpt_recipe)
    except (FileNotFoundError, ValueError) as error:
        raise RecipeError(str(error)) from error
    if not isinstance(model, VLM):
        raise RecipeError(f"{path}: a part that was fitted alone, which answers nothing")
    return model


def talk(model: Any, lines: Iterable[str], say: Callable[[str], Any], max_new_tokens: int = 64) -> None:
    """Answer ``lines`` until they end, or one of them is ``/quit``."""
    conversation = _Conversation(model, max_new_tokens)
    say("a question, or /help")
    for line in lines:
        if line.strip() == "/quit":
            return
        try:
            said = conversation.answer(line.strip())
        except (ValueError, OSError) as error:  # a picture that is none, a question that is too long
            said = str(error)
        if said:
            say(printable(said))


class _Conversation:
    def __init__(self, model: Any, max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.groups, self.off = Groups(model), set[int]()
        self.images: list[str] = []

    def answer(self, line: str) -> str:
        if not line:
            return ""
        if not line.startswith("/"):
            left_out = intervene(self.groups.without(self.off)) if self.off else nullcontext()
            with left_out:
                said = self.model.answer(line, self.images or None, max_new_tokens=self.max_new_tokens)
            return said if said.strip() else "(nothing)"
        name, *arguments = shlex.split(line)
        command = {"/image": self.show, "/stacks": self.stacks, "/off": self.without, "/on": self.with_}.get(name)
        return HELP if command is None else command(arguments)

    def show(self, files: list[str]) -> str:
        for file in files:
            if not Path(file).is_file():
                raise ValueError(f"there is no file {file}")
        self.images = files
        return f"about {', '.join(files)}" if files else "about no picture"

    def stacks(self, arguments: list[str]) -> str:
        lines = [
            f"{group.number}  {group.part.replace('_', ' ')} layer {group.layer}  {group.what}"
            + ("  (off)" if group.number in self.off else "")
            for group in self.groups
        ]
        return "\n".join(lines) or "this model has no stacks"

    def without(self, numbers: list[str]) -> str:
        self.off |= self._numbers(numbers)
        return self.stacks([])

    def with_(self, numbers: list[str]) -> str:
        self.off -= self._numbers(numbers)
        return self.stacks([])

    def _numbers(self, texts: list[str]) -> set[int]:
        there = {group.number for group in self.groups}
        for text in texts:
            if not text.isdecimal() or int(text) not in there:
                raise ValueError(f"there is no stack {text}; there are {', '.join(map(str, sorted(there))) or 'none'}")
        return {int(text) for text in texts} or there


def _lines() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None
