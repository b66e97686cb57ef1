"""The first entries of a job as they will be, before hours of work."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from data_prep.check import check_entry
from data_prep.ingest import Job
from data_prep.media import UNREAD
from data_prep.report import shortened
from data_prep.videos import Film
from dslight.data.sample import BadSample, Sample, decode_image, parse_sample
from dslight.data.shards.foreign import known_extension, tar_records

SHOWN = 10
_TEXT = 60


def preview(job: Job) -> tuple[list[str], int]:
    """A line for each of the first entries, and how many of them are good."""
    lines, good = [], 0
    for row, raw in enumerate(islice(iter(job.entries), SHOWN)):
        try:
            checked = check_entry(raw, job.convert, job.images)
            sample = parse_sample(str(raw.get("id", row)), checked.members)
            lines.append(_line(row, sample, checked.changes, checked.videos))
            good += 1
        except BadSample as error:
            lines.append(f"  {row}: would be set aside, {error.reason}: {shortened(str(error), 160)}")
    return lines, good


def preview_tar(path: Path, leave_out: Sequence[str] = (), take: Sequence[str] = ()) -> tuple[list[str], int]:
    """As :func:`preview`, of a tar."""
    lines, good = [], 0
    for row, (key, found) in enumerate(islice(tar_records(path, leave_out), SHOWN)):
        members = {known_extension(extension, data, take): data for extension, (_, data) in found.items()}
        try:
            sample = parse_sample(key, members)
            if not sample.images:
                raise BadSample("has no image", "image-missing")
            for image in sample.pictures:
                decode_image(image)
            lines.append(_line(row, sample, []))
            good += 1
        except BadSample as error:
            lines.append(f"  {row}: would be left out, {error.reason}: {shortened(str(error), 160)}")
    return lines, good


def _line(row: int, sample: Sample, changes: list[str], videos: int = 0) -> str:
    sizes = ["x".join(map(str, decode_image(image).shape[1::-1])) for image in sample.pictures]
    shown = f"{len(sizes)} image{'s' * (len(sizes) != 1)}" + (f" ({', '.join(sizes[:4])})" if sizes else "")
    if videos:
        shown = f"{videos} video{'s' * (videos != 1)}, read as {shown} unless data.video says otherwise"
    texts = [turn.text for turn in sample.turns] or [f"{len(sample.questions)} questions"]
    said = " | ".join(
        repr(shortened(text, _TEXT)) if len(text) <= _TEXT else repr(text[:_TEXT]) + "..." for text in texts[:2]
    )
    more = f" and {len(texts) - 2} more turns" if len(texts) > 2 else ""
    unread = [note.removeprefix(UNREAD) for note in changes if note.startswith(UNREAD)]
    changed = [note for note in changes if not note.startswith(UNREAD)]
    more += f"; set right: {', '.join(changed)}" if changed else ""
    more += f"; not read: {', '.join(unread)}" if unread else ""
    return f"  {row}: {shown}; {said}{more}"


def images_found(job: Job) -> tuple[int, int]:
    """Of the first entries that name pictures or videos, how many, and of how many those are there."""
    named = found = 0
    for raw in islice(iter(job.entries), SHOWN):
        try:
            names = [image for image in job.convert(raw).images if isinstance(image, str | Film)]
        except (BadSample, LookupError, TypeError, ValueError, AttributeError, RecursionError):
            continue
        named += bool(names)
        found += bool(names) and all(n.is_there if isinstance(n, Film) else job.images.size(n) for n in names)
    return named, found
