"""What an entry says of pictures, videos, sounds and boxes, and whether all of it is taken along.

Decided here: an entry is never trimmed to its text. A mark in it that stands for something (``<video>``, ``<bbox>``,
``<img>a.jpg</img>``, ``<|vision_start|>``, or ``<image>`` where there is no picture), or a key with media in it that
the program does not read, sends the entry to the quarantine. Tag names that an answer writes (``<video>`` of HTML) are
words, and counted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from data_prep.entries import RawEntry
from data_prep.report import shortened
from dslight.data.sample import IMAGE_TOKEN, WEIGHT_KEYS, BadSample

_MARK = re.compile(
    r"<img>[^<]*</img>|<(?:image|img|picture|video|audio|speech|sound|bbox|ref-object)s?(?:[ _-]?\d+)?>"
    r"|<\|(?:vision|image|img|video|audio|speech)\w*\|>|<start_of_(?:image|audio)>"
    r"|<(?:image|img|video|audio|speech)[ _-]?(?:here|pad|placeholder|context|token|soft_token)>"
    r"|<(?:im_patch|im_start|im_end|ph_image_\d+|patch)>|<(?:image|img|video|audio)\b[^<>\s]*/>"
    r"|(?-i:\[(?:IMG|IMAGE|VIDEO|AUDIO)(?:[ _]?\d+)?\])",
    re.IGNORECASE,
)
_LINK = re.compile(r"!\[[^\]]{0,999}\]\([^)\s]+\)|<(?:img|video|audio|source)\s[^>]{0,999}\bsrc\s*=", re.IGNORECASE)
"""A picture as Markdown and HTML have it: of a question it is meant to be seen, of an answer it is text."""
_FILE = re.compile(
    r"data:(?:image|video|audio)/.*|(?:\S.{0,400})?\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic|jxl|mp4|mkv|avi|mov|webm|m4v|wav|mp3"
    r"|flac|ogg|m4a|npy)",
    re.IGNORECASE | re.DOTALL,
)
_TAGS = ("<image>", "<img>", "<picture>", "<video>", "<audio>", "<sound>", "<speech>")
_MEDIA = re.compile(r"(image|img|picture|pic|photo|video|clip|audio|sound|wav|frame|b?box|mask)(s|es)?|speech|objects")
_ABOUT = re.compile(
    r"(id|size|count|caption|url)s?|index|width|height|shape|source|info|type|num|n|fps|duration|format|mode|hash|md|sha"
    r"|license|correspondence|rating(s)?|scores?|min|max|mean"
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk)[A-Za-z0-9+/\s]{53,}[=\s]*")
_OF_A_TURN = frozenset(("from", "value", "role", "content", *WEIGHT_KEYS))


def given_images(raw: RawEntry) -> list[Any]:
    """What an entry has under ``image`` or ``images``: one, a list, or nothing (``null``, ``""``, ``[]``).

    Raises:
        BadSample: both are there, and differ.
    """
    one, several = _listed(raw.get("image")), _listed(raw.get("images"))
    if one and several and one != several:
        raise BadSample("has both image and images, and they differ; keep the one that the marks stand for", "media")
    return one or several


def given_videos(raw: RawEntry) -> list[Any]:
    """What an entry has under ``video`` or ``videos``, as :func:`given_images`; some may be lists of frames.

    Raises:
        BadSample: both are there, and differ.
    """
    one, several = _listed(raw.get("video")), _listed(raw.get("videos"))
    if one and several and one != several:
        raise BadSample("has both video and videos, and they differ; keep the one that the marks stand for", "media")
    return one or several


def image_source(source: Any, what: str = "image") -> str | bytes:
    """An image, or another file (``what``), as an entry gives it: a path, ``file:`` or ``data:`` URL, base64, bytes, or
    ``{"bytes", "path", "url"}``; the name in the places of images (an absolute one as below ``--images /``), or
    the bytes.

    Raises:
        BadSample: it is none of these, or lies on the web.
    """
    given = source
    if isinstance(source, Mapping):
        content = source.get("bytes")
        if isinstance(content, bytes) and content:
            return content
        if isinstance(content, str) and content:
            return _decoded(content)
        source = source.get("url") or source.get("path")
    if isinstance(source, bytes) and source:
        return source
    if not isinstance(source, str) or not source:
        said = f"{what} given as {shortened(repr(given), 80)}"
        also = ", a data: URL or base64 text" if what == "image" else ""
        raise BadSample(f"{said}; it must be a path{also}", f"{what}-name")
    if source.startswith("data:"):
        return _decoded(source.partition(",")[2])
    if _BASE64.fullmatch(source):
        return _decoded(source)
    if source.startswith("file://"):
        source = unquote(source.removeprefix("file://"))
    if source.startswith(("http://", "https://")):
        raise BadSample(f"{what} {shortened(source)!r} lies on the web; download it first", f"{what}-remote")
    return str(PurePosixPath(source)).lstrip("/")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        what = f"an image is given as text of {len(text):,} characters that is not base64"
        raise BadSample(f"{what}: {error}", "image-damaged") from error


def check_media(raw: RawEntry, record: RawEntry, images: int, read: Collection[str]) -> list[str]:
    """What an entry holds that is not taken along and is no medium: keys that are not read, tags in answers.

    Args:
        raw: the entry.
        record: what becomes of it.
        images: how many pictures go with it.
        read: the keys that the program reads.

    Raises:
        BadSample: a medium would be lost.
    """
    names = {str(fact["name"]) for fact in record.get("image_info", ())}
    notes = unread_keys(raw, read, "", names)
    for name in ("conversations", "messages"):
        for turn in raw[name] if name in read and isinstance(raw.get(name), list) else ():
            if isinstance(turn, Mapping) and not turn.keys() <= _OF_A_TURN:
                notes += unread_keys(turn, _OF_A_TURN, f"{name}[].")
    for where, text, asked in _texts(record):
        if "<" not in text and "[" not in text:
            continue
        for mark in (match.group() for match in _MARK.finditer(text)):
            if mark == IMAGE_TOKEN and asked and images:
                continue  # as many as pictures, or it is no record
            if not asked and mark.lower() in _TAGS:
                notes.append("media tag kept as a word of an answer")
                continue
            raise _lost(where, mark)
        for link in _LINK.finditer(text):
            if asked:
                raise _lost(where, link.group())
            notes.append("link to a picture kept as text of an answer")
    return notes


def _lost(where: str, mark: str) -> BadSample:
    what, key, token = ("video", "videos", "<video>") if "video" in mark.lower() else ("picture", "images", IMAGE_TOKEN)
    said = f"{where} holds {shortened(mark, 60)!r}, for which no {what} is taken along"
    return BadSample(f"{said}: give the {what} under {key} and mark it {token}, or edit the text", "marks")


def unread_keys(raw: Mapping[str, Any], read: Collection[str], at: str, taken: Collection[str] = ()) -> list[str]:
    """The keys with something in them that are not read, as notes for the report.

    Args:
        raw: what has keys.
        read: those that are read.
        at: where it stands in the entry.
        taken: names of the pictures that are taken along. Where there are some, what only tells something about them
            (``image_id``), or names one of them once more, is no medium.

    Raises:
        BadSample: one names media, or holds them.
    """
    names = [name for name, value in raw.items() if name not in read and not is_empty(value)]
    for name in names:
        if _is_medium(name, raw[name], taken):
            what = f"key {at}{shortened(name, 60)}: {shortened(repr(raw[name]), 80)} is not read by this program"
            raise BadSample(f"{what} and would be lost; put pictures under images, or remove the key", "media")
    return [f"{UNREAD}{at}{shortened(name, 60)}" for name in names]


def _is_medium(name: str, value: Any, taken: Collection[str]) -> bool:
    if _has_bytes(value):
        return True
    if taken and isinstance(value, str) and any(value == one or PurePosixPath(value).name == one for one in taken):
        return False
    words = [word.lower() for word in _WORD.findall(name)]
    if taken and any(map(_ABOUT.fullmatch, words)):
        return False
    if any(map(_MEDIA.fullmatch, words)):
        return True
    if isinstance(value, Mapping):
        return any(_is_medium(str(inner), value[inner], taken) for inner in value if not is_empty(value[inner]))
    if isinstance(value, list):
        return any(_is_medium("", item, taken) for item in value)
    return isinstance(value, str) and (bool(_FILE.fullmatch(value)) or bool(_BASE64.fullmatch(value)))


UNREAD = "key not read: "
"""Begins the notes of :func:`unread_keys`."""


def _texts(record: RawEntry) -> Iterator[tuple[str, str, bool]]:
    """Where, what, and whether it is asked (or answered)."""
    for i, turn in enumerate(record.get("conversations", ())):
        yield f"turn {i}", turn["value"], turn["from"] not in ("gpt", "assistant")
    for i, question in enumerate(record.get("questions", ())):
        yield f"question {i}", str(question["question"]), True


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list):
        return list(value)
    return [] if value is None or value == "" or (isinstance(value, dict) and is_empty(value)) else [value]


def _has_bytes(value: Any) -> bool:
    if isinstance(value, list | dict):
        return any(_has_bytes(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, bytes)


def is_empty(value: Any) -> bool:
    """Whether nothing is in it, as in what a table fills up with nulls."""
    if isinstance(value, list | dict):
        return all(is_empty(item) for item in (value.values() if isinstance(value, dict) else value))
    return not value
