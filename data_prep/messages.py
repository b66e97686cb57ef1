"""Chats as most other tools write them to shards: ``messages`` (OpenAI, Qwen, LLaMA-Factory) and ShareGPT.

Run: ``python -m data_prep.messages --json chats.jsonl --images images --out data/chats``.

An entry has ``messages`` (``role``, ``content``) or ``conversations`` (``from``, ``value``; or ``role``, ``content``);
``texts`` (FineVision), Alpaca's ``instruction``, ``query`` and ``response``, and a picture's ``caption`` are read too
(:mod:`data_prep.forms`). Content is a text, or a list of parts: ``text``; ``image`` (Qwen: a path or ``file://`` URL
under ``image``, or none, which takes the next of the entry's ``images``, or that of its ``index``); ``image_url``
(OpenAI: a path or a ``data:`` URL with the bytes in it). ms-swift's ``objects`` are written into their places. Absolute
paths are found with ``--images /``. Pictures that lie on the web are not fetched: such an entry goes to the quarantine.

Videos (``video`` of LLaVA-Video, ``videos`` of Qwen, LLaMA-Factory and ms-swift, parts of type ``video``), which lie in
the folders of ``--images``, become the pictures that :mod:`data_prep.eval` makes of them (``--frames``, ``--tile``,
``--side``). These stand where ``<video>`` stood, or ``<image>`` in an entry that has videos alone. A list of frames is
taken as it is, thinned to ``--frames``.

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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.check import Entry
from data_prep.engines import engine_of
from data_prep.entries import Entries, RawEntry, SourceError
from data_prep.forms import messages_of, with_objects
from data_prep.images import Images
from data_prep.ingest import Job, add_source_arguments, ingest, key_name
from data_prep.media import UNREAD, given_images, given_videos, image_source, is_empty, unread_keys
from data_prep.processes import program
from data_prep.report import shortened
from data_prep.videos import Film, Videos
from dslight.data.sample import IMAGE_TOKEN, BadSample, Turn, weight_of
from dslight.data.video import SIDE, Sampling

_ROLES: dict[str, Literal["system", "human", "gpt"]] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("human", "user"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "gpt"),
}

VIDEO_TOKEN = "<video>"
"""Stands for a video in the text of an entry."""
_MARKS = re.compile(f"{IMAGE_TOKEN}|{VIDEO_TOKEN}")
_KINDS = ("text", "image", "image_url", "video", "video_url")
_OF_A_VIDEO = ("video_start", "video_end", "fps", "nframes", "min_frames", "max_frames")

System = Literal["prepend", "keep", "drop"]
_SETTLED = {
    "prepend": "system text put before the question",
    "keep": "system text kept as a turn",
    "drop": "system text dropped",
}
SYSTEMS = tuple(_SETTLED)
"""What may happen to a system text."""


_NOWHERE, _AS_ASKED = Videos(()), Sampling()


@dataclass(frozen=True)
class MessagesEntry:
    """Makes an entry of a chat in any of the forms above.

    Attributes:
        system: what happens to a system text.
        videos: where videos lie.
        sampling: what is made of one.
        keep_videos: they are kept as they are, and frames are taken of them in training.
    """

    system: System = "prepend"
    videos: Videos = _NOWHERE
    sampling: Sampling = _AS_ASKED
    keep_videos: bool = False

    def __call__(self, raw: RawEntry) -> Entry:
        """See :data:`data_prep.check.Convert`."""
        chat = _Chat(given_images(raw), [self._film(source) for source in given_videos(raw)], self._film)
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
        read = {"id", "system", "objects", "image", "images", "video", "videos", *keys}
        return Entry({"id": raw["id"], **record} if "id" in raw else record, chat.images, chat.changes, read)

    def _film(self, source: Any, segment: tuple[float, float] | None = None) -> list[str | bytes | Film]:
        """The pictures of a video: of its file, or the frames that a list names."""
        if isinstance(source, list):
            count = min(self.sampling.frames, len(source))
            return [image_source(source[(2 * i + 1) * len(source) // (2 * count)]) for i in range(count)]
        name = image_source(source, "video")
        if not isinstance(name, str):
            raise BadSample("video given as bytes; it must be a path", "video-name")
        return [Film(name, self.videos, self.sampling, segment, self.keep_videos)]


@dataclass
class _Chat:
    """A chat as it is read, message by message."""

    named: list[Any]
    """The entry's own images, which marks and empty image parts take in turn."""
    films: list[list[str | bytes | Film]]
    """The pictures of each of its videos, likewise."""
    film: Callable[..., list[str | bytes | Film]]
    """Makes them of what a part names."""
    turns: list[Turn] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    images: list[str | bytes | Film] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._by_index = list(self.named)

    def add(self, message: Mapping[str, Any]) -> None:
        name = message["role"] if "role" in message else message["from"]
        content = message["content"] if "content" in message else message["value"]
        role = _ROLES.get(name)
        if role is None:
            raise BadSample(f"role {shortened(repr(name), 60)} is none of {', '.join(_ROLES)}", "roles")
        if content is not None and not isinstance(content, (str, list, dict)):
            what = shortened(repr(content), 60)
            raise BadSample(f"content of a {name} message: {what}; must be text, or a list of parts", "record")
        parts = [content] if isinstance(content, (str, dict)) else content or ()
        text = "".join(self._part(part, role != "gpt") for part in parts)
        if role == "system":
            self.systems.append(text)
        else:
            text = text.rstrip("\n") if text.endswith(f"{IMAGE_TOKEN}\n") else text
            self.turns.append(Turn(role, text, 1 if role == "human" else weight_of(message)))

    def _text(self, text: str, asked: bool) -> str:
        """A text with a mark for each picture; those of the entry are taken in their order."""
        if not self.named and not self.films:
            return text
        if not asked:
            for _ in range(text.count(IMAGE_TOKEN) if self.named else 0):
                self.images.append(image_source(self.named.pop(0)) if self.named else _too_few())
            return text
        alone = bool(self.films) and not self._by_index and VIDEO_TOKEN not in text  # LLaVA-Video's videos are images

        def taken(mark: re.Match[str]) -> str:
            if mark[0] == VIDEO_TOKEN or alone:
                return self._shown(self.films.pop(0)) if self.films else _too_few("videos")
            self.images.append(image_source(self.named.pop(0)) if self.named else _too_few())
            return IMAGE_TOKEN

        return _MARKS.sub(taken, text)

    def _shown(self, pictures: list[str | bytes | Film]) -> str:
        """The marks of a video, whose pictures come next."""
        self.images += pictures
        return IMAGE_TOKEN * sum(one.pictures if isinstance(one, Film) else 1 for one in pictures)

    def _part(self, part: Mapping[str, Any] | str, asked: bool) -> str:
        if isinstance(part, str):
            return self._text(part, asked)
        kind = part.get("type") or next((name for name in _KINDS if name in part), None)
        if kind not in _KINDS:
            raise BadSample(f"a part of type {shortened(repr(kind), 60)} is neither text nor picture", "part")
        if kind in ("video", "video_url"):
            return self._video(part, kind)
        read = ("type", "text", "index") if kind == "text" else ("type", kind, "path", "url", "index")
        self.changes += unread_keys(part, read, "content[].")
        if kind == "text":
            return self._text(part.get("text") or "", asked)
        source = part.get(kind) or part.get("path") or part.get("url")
        if source is None:
            source = self._next(part.get("index"))
        self.images.append(image_source(source))
        return f"{IMAGE_TOKEN}\n"

    def _video(self, part: Mapping[str, Any], kind: str) -> str:
        """A part of Qwen's: its file, or its frames; none: the entry's next video."""
        start, end = part.get("video_start"), part.get("video_end")
        self.changes += unread_keys(part, ("type", kind, "path", "url", *_OF_A_VIDEO), "content[].")
        self.changes += [f"{UNREAD}content[].{name}" for name in _OF_A_VIDEO[2:] if part.get(name) is not None]
        source = part.get(kind) or part.get("path") or part.get("url")
        segment = None if start is None and end is None else (float(start or 0), float(1e9 if end is None else end))
        if source is None:
            return f"{self._shown(self.films.pop(0) if self.films else _too_few('videos'))}\n"
        return f"{self._shown(self.film(source, segment))}\n"

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
        if (self.named or self.films) and not self.images:
            self.images = [image_source(source) for source in self.named]
            front = f"{IMAGE_TOKEN}\n" * len(self.named)
            front += "".join(f"{self._shown(film)}\n" for film in self.films)
            self.changes.append("image marks added")
        elif self.films:
            raise _unmarked(len(self.films), "videos", VIDEO_TOKEN)
        elif self.named:
            raise _unmarked(len(self.named), "images", IMAGE_TOKEN)
        text = "\n".join(text for text in self.systems if text.strip())
        if text and system == "prepend":
            front += f"{text}\n\n"
        self.turns[0] = self.turns[0]._replace(text=front + self.turns[0].text)
        if text:
            self.changes.append(_SETTLED[system])
        if text and system == "keep":
            self.turns.insert(0, Turn("system", text))


def _too_few(what: str = "images") -> Any:
    raise BadSample(f"has fewer {what} than places for them", "marks")


def _unmarked(left: int, what: str, mark: str) -> BadSample:
    """Of an entry in which others of its pictures have their places."""
    said = f"{left} {what} have" if left > 1 else f"one of its {what} has"
    return BadSample(f"{said} no {mark} mark; give each one its mark, or leave all marks out", "marks")


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of what becomes of a video: those of :mod:`data_prep.eval`."""
    parser.add_argument("--frames", type=int, help="of each video (default: 6)")
    parser.add_argument(
        "--tile", metavar="ROWSxCOLUMNS", help="of the frames in a square (default: rows of 3); none: each is an image"
    )
    parser.add_argument(
        "--keep-videos",
        action="store_true",
        help="keep the files in the shards; training takes the frames",
    )
    parser.add_argument("--side", type=int, help=f"of that square, in pixels (default: {SIDE})")


def messages_job(args: argparse.Namespace, source: Path, images: Sequence[str], **settings: Any) -> Job:
    """The job that arguments describe.

    Raises:
        SourceError: ``--frames``, ``--tile`` or ``--side`` mean nothing.
    """
    try:
        sampling = Sampling.of(args.frames, args.tile, SIDE if args.side is None else args.side)
    except ValueError as error:
        raise SourceError(str(error)) from error
    options: dict[str, Any] = {"system": args.system}
    if args.keep_videos and (said := [name for name in ("frames", "tile", "side") if getattr(args, name) is not None]):
        raise SourceError(f"--{said[0]}: is of videos that become frames here; with --keep-videos, data.video says it")
    options |= {"keep_videos": True} if args.keep_videos else {}
    if sampling != Sampling():
        options["videos"] = vars(sampling)
    folders = [Path(spec.rpartition("=")[2]) for spec in images]
    videos = Videos(tuple(folder for folder in folders if folder.is_dir()))
    return Job(
        program="data_prep.messages",
        entries=Entries(source),
        images=Images.open(images),
        convert=MessagesEntry(args.system, videos, sampling, bool(args.keep_videos)),
        options=options,
        **settings,
    )


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_source_arguments(parser)
    parser.add_argument("--system", choices=SYSTEMS, default="prepend", help="what happens to system texts")
    add_video_arguments(parser)
    args = parser.parse_args(argv)
    settings = {"out": args.out, "shard_entries": args.shard_entries, "max_bad": args.max_bad}
    settings["engine"] = engine_of(args)
    ingest(messages_job(args, args.json, args.images, name=args.name or key_name(args.out), **settings))


if __name__ == "__main__":
    program(main)
