"""Chats as most other tools write them to shards: ``messages`` (OpenAI, Qwen, LLaMA-Factory) and ShareGPT.

Run: ``python -m data_prep.messages --json chats.jsonl --images images --out data/chats``.

An entry has ``messages`` (``role``, ``content``) or ``conversations`` (``from``, ``value``; or ``role``, ``content``);
``texts`` (FineVision), Alpaca's ``instruction``, ``query`` and ``response``, and a picture's ``caption`` are read too
(:mod:`data_prep.forms`). Content is a text, or a list of parts: ``text``; ``image`` (Qwen: a path or ``file://`` URL
under ``image``, or none, which takes the next of the entry's ``images``, or that of its ``index``); ``image_url``
(OpenAI: a path or a ``data:`` URL with the bytes in it). ms-swift's ``objects`` are written into their places. Absolute
paths are found with ``--images /``. Pictures that lie on the web are not fetched: such an entry goes to the quarantine.

Decided here: an image part becomes an ``<image>`` mark and a newline, as in LLaVA's files. What has a meaning is set
right and counted: a system text (a message, or the entry's own ``system``) goes in front of the first question
(``--system keep`` leaves it a turn of its own, for the place that templates have for it; ``drop`` leaves it out), an
answer before any question and a question after the last answer are left out, and images without a mark get theirs at
the front of the first question. Two turns of one role in a row have none: such an entry goes to the quarantine. An
answer with ``weight: 0`` (OpenAI) or ``loss: false`` (ms-swift) is not learnt; with any other ``weight`` from 0 on its
loss counts so many times.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from data_prep.check import Entry
from data_prep.entries import Entries, RawEntry
from data_prep.forms import messages_of, with_objects
from data_prep.images import Images
from data_prep.ingest import Job, add_source_arguments, ingest, key_name
from data_prep.media import given_images, image_source, is_empty, unread_keys
from data_prep.processes import program
from data_prep.report import shortened
from dslight.data.sample import IMAGE_TOKEN, BadSample, Turn, weight_of

_ROLES: dict[str, Literal["system", "human", "gpt"]] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "gpt"),
}

System = Literal["prepend", "keep", "drop"]
_SETTLED = {
    "prepend": "system text put before the question",
    "keep": "system text kept as a turn",
    "drop": "system text dropped",
}
SYSTEMS = tuple(_SETTLED)
"""What may happen to a system text."""


@dataclass(frozen=True)
class MessagesEntry:
    """Makes an entry of a chat in any of the forms above; ``system`` is what happens to a system text."""

    system: System = "prepend"

    def __call__(self, raw: RawEntry) -> Entry:
        """See :data:`data_prep.check.Convert`."""
        chat = _Chat(given_images(raw))
        messages, keys = messages_of(raw)
        if not isinstance(messages, list):
            raise BadSample("the entry has no list of messages or conversations", "no-text")
        if not is_empty(raw.get("objects")):
            messages = with_objects(messages, raw["objects"])
        if system := raw.get("system"):
            chat.add({"role": "system", "content": system})
        for message in messages:
            chat.add(message)
        chat.settle(self.system)
        turns = [
            {"from": turn.role, "value": turn.text, **({} if turn.weight == 1 else {"weight": turn.weight or 0})}
            for turn in chat.turns
        ]
        record = {"conversations": turns}
        read = {"id", "system", "objects", "image", "images", *keys}
        return Entry({"id": raw["id"], **record} if "id" in raw else record, chat.images, chat.changes, read)


@dataclass
class _Chat:
    """A chat as it is read, message by message."""

    named: list[Any]
    """The entry's own images, which marks and empty image parts take in turn."""
    turns: list[Turn] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    images: list[str | bytes] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_index = list(self.named)

    def add(self, message: Mapping[str, Any]) -> None:
        name = message["role"] if "role" in message else message["from"]
        content = message["content"] if "content" in message else message["value"]
        role = _ROLES.get(name)
        if role is None:
            raise BadSample(f"role {shortened(repr(name), 60)} is none of {', '.join(_ROLES)}", "roles")
        text = self._text(content) if isinstance(content, str) else "".join(self._part(part) for part in content or ())
        if role == "system":
            self.systems.append(text)
        else:
            text = text.rstrip("\n") if text.endswith(f"{IMAGE_TOKEN}\n") else text
            self.turns.append(Turn(role, text, 1 if role == "human" else weight_of(message)))

    def _text(self, text: str) -> str:
        for _ in range(text.count(IMAGE_TOKEN) if self.named else 0):
            self.images.append(image_source(self.named.pop(0)) if self.named else _too_few())
        return text

    def _part(self, part: Mapping[str, Any] | str) -> str:
        if isinstance(part, str):
            return self._text(part)
        kind = part.get("type") or next((name for name in ("text", "image", "image_url") if name in part), None)
        if kind not in ("text", "image", "image_url"):
            raise BadSample(f"a part of type {shortened(repr(kind), 60)} is neither text nor image", "part")
        read = ("type", "text", "index") if kind == "text" else ("type", kind, "path", "url", "index")
        self.changes += unread_keys(part, read, "content[].")
        if kind == "text":
            return self._text(part.get("text") or "")
        source = part.get(kind) or part.get("path") or part.get("url")
        if source is None:
            source = self._next(part.get("index"))
        self.images.append(image_source(source))
        return f"{IMAGE_TOKEN}\n"

    def _next(self, index: Any) -> Any:
        """The next of the entry's own images, or (parquet of chats) the one of this number."""
        if index is None or not isinstance(index, int) or not 0 <= index < len(self._by_index):
            return self.named.pop(0) if self.named and index is None else _too_few()
        source = self._by_index[index]
        self.named = [image for image in self.named if image is not source]
        return source

    def settle(self, system: System) -> None:
        """Set right what has a meaning."""
        if self.turns and self.turns[0].role == "gpt":
            self.turns.pop(0)
            self.changes.append("first answer left out")
        if self.turns and self.turns[-1].role == "human" and IMAGE_TOKEN not in self.turns[-1].text:
            self.turns.pop()
            self.changes.append("last question left out")
        if not self.turns:
            raise BadSample("no answer, so nothing to learn", "no-answer")
        front = ""
        if self.named and not self.images:
            self.images = [image_source(source) for source in self.named]
            front = f"{IMAGE_TOKEN}\n" * len(self.named)
            self.changes.append("image marks added")
        elif self.named:
            raise BadSample(f"{len(self.named)} images have no {IMAGE_TOKEN} mark, others have", "marks")
        text = "\n".join(text for text in self.systems if text.strip())
        if text and system == "prepend":
            front += f"{text}\n\n"
        self.turns[0] = self.turns[0]._replace(text=front + self.turns[0].text)
        if text:
            self.changes.append(_SETTLED[system])
        if text and system == "keep":
            self.turns.insert(0, Turn("system", text))


def _too_few() -> Any:
    raise BadSample("has fewer images than places for them", "marks")


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_source_arguments(parser)
    parser.add_argument("--system", choices=SYSTEMS, default="prepend", help="what happens to system texts")
    args = parser.parse_args(argv)
    ingest(
        Job(
            program="data_prep.messages",
            out=args.out,
            name=args.name or key_name(args.out),
            entries=Entries(args.json),
            images=Images.open(args.images),
            convert=MessagesEntry(args.system),
            options={"system": args.system},
            shard_entries=args.shard_entries,
            max_bad=args.max_bad,
            workers=args.workers,
        )
    )


if __name__ == "__main__":
    program(main)
