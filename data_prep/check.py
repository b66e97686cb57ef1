"""An entry of a source as a record of a shard: its images read, and all of it checked as training will need it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from data_prep.entries import RawEntry
from data_prep.images import Images
from data_prep.media import check_media
from data_prep.report import shortened
from data_prep.videos import Film
from dslight.data.sample import BadSample, check_image, image_facts, parse_record
from dslight.data.shards import image_extension, record_members
from dslight.data.shards.writer import video_extension
from dslight.limits import at_most


class Entry(NamedTuple):
    """An entry in LLaVA's terms.

    Attributes:
        record: ``id`` and ``conversations`` or ``questions``.
        images: a name in the places of images, the encoded bytes, or a video, which is several of them, in the order of
            the ``<image>`` marks.
        changes: what was set right on the way, for the report.
        read: the keys of the source's entry that were read, so that no other one is lost without a word; ``None``: the
            program knows its source, and answers for that itself.
    """

    record: RawEntry
    images: Sequence[str | bytes | Film]
    changes: Sequence[str] = ()
    read: Collection[str] | None = None


Convert = Callable[[RawEntry], Entry]
"""What a program adds to the engine: its source's entry as an :class:`Entry`; raises ``BadSample``."""


class Checked(NamedTuple):
    """An entry that can be trained on or asked about.

    Attributes:
        members: of its record in a shard, by extension.
        images, questions: how many.
        videos: how many are kept as they are, and are none of the images.
        films: how many have become images.
        changes: what was set right.
    """

    members: dict[str, bytes]
    images: int
    videos: int
    films: int
    questions: int
    changes: list[str]


def check_entry(raw: RawEntry, convert: Convert, images: Images) -> Checked:
    """An entry as a record of a shard, once all of it has been checked.

    Raises:
        BadSample: with the class of what is wrong.
    """
    try:
        entry = convert(raw)
        data, facts, changes = [], [], list(entry.changes)
        for i, (source, content, name, said) in enumerate(_read(entry.images, images)):
            name = name or f"inline-{i}"
            if isinstance(source, str) and name != source:
                changes.append("another ending")
            what = f"image {shortened(name)!r}: has {len(content):,} bytes"
            at_most("member_bytes", len(content), what, partial(BadSample, reason="image-too-large"))
            if isinstance(source, Film) and source.keep:
                found = source.facts(content)
            else:
                found = image_facts(_format_checked(content, name))
            data.append(content)
            facts.append({"name": shortened(name, 1000), **found, **said})
        record = {**entry.record, "image_info": facts}
        members = record_members(data, record)
        parse_record("entry", members, {**record, "images": [name for name in members if name != "json"]})
        if entry.read is not None:
            changes += check_media(raw, record, len(data), entry.read)
            if raw.get("label") is False or raw.get("kto_tag") is False:
                raise BadSample("its answer is labelled as an unwanted one, so there is nothing to learn", "no-answer")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample(f"not an entry of this format: {type(error).__name__}: {error}", "record") from error
    for content in data:
        if video_extension(content) is None:  # of which frames were decoded with the record
            check_image(content)
    changes += ["turned by EXIF"] * any("orientation" in fact for fact in facts)
    changes += ["first frame of an animation"] * any("animated" in fact for fact in facts)
    films = [source.keep for source in entry.images if isinstance(source, Film)]
    kept = sum(films)
    questions = len(record.get("questions", ()))
    return Checked(members, len(data) - kept, kept, len(films) - kept, questions, changes)


def _read(sources: Sequence[str | bytes | Film], images: Images) -> Iterator[tuple[object, bytes, str, dict[str, Any]]]:
    """Of each picture what names it, its bytes, its name if it has one, and of which video it is a frame, and when."""
    for at, source in enumerate(sources):
        if isinstance(source, Film):
            shown, times = source.images(), source.times()
            for number, content in enumerate(shown):
                said = {"video": at, "time": times[number]} if times else {}
                yield source, content, source.name if source.keep else f"{source.name}-{number}", said
        elif isinstance(source, str):
            yield source, *images.read(source), {}
        else:
            yield source, source, "", {}


def _format_checked(data: bytes, name: str) -> bytes:
    if not data:
        raise BadSample(f"image {name!r}: has 0 bytes", "image-empty")
    try:
        image_extension(data)
    except ValueError as error:
        raise BadSample(f"image {name!r}: {error}", "image-format") from error
    return data
