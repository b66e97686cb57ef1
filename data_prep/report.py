"""What a conversion made and set aside, in words; and the names of the files that hold it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dslight.texts import printable

QUARANTINE, REPORT = "quarantine.jsonl", "report.json"

_LISTED = 20


def described(out: Path, report: dict[str, Any]) -> str:
    """A report in words."""
    videos, films = report.get("videos", 0), report.get("videos_as_images", 0)
    images = [f"{report['images']:,} images"] if report["images"] or not videos else []
    shown = [*images, f"{videos:,} videos"] if videos else images
    of = f", those of {films:,} videos among them" if films else ""
    text = (
        f"{out}: {report['records']:,} records with {' and '.join(shown)}{of} ({report['text_only']:,} of text "
        f"only), {gigabytes(report['bytes'])} in {report['shards']} shards, {report['seconds']:,.0f} s"
    )
    if report["shards_of_earlier_runs"]:
        text += f" ({report['shards_of_earlier_runs']} shards were there)"
    if report.get("left_out"):
        text += f"\n  left out by --where: {report['left_out']:,}"
    if report["changed"]:
        text += f"\n  set right: {listing(report['changed'])}"
    if report.get("unread"):
        text += f"\n  keys that were not read: {listing(report['unread'])}"
    if report["bad"]:
        text += f"\n  {sum(report['bad'].values()):,} bad entries in {QUARANTINE}: {listing(report['bad'])}"
    return text


def difference(was: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> str | None:
    """The first value of ``now`` that was another one, as ``options.frames was 4, now it is 5``."""
    for name in now:
        old, new = was.get(name), now[name]
        if isinstance(old or {}, Mapping) and isinstance(new or {}, Mapping):
            if inner := difference(old or {}, {**dict.fromkeys(old or ()), **(new or {})}, f"{at}{name}."):
                return inner
        elif old != new:
            before, after = ("not set" if one is None else shortened(json.dumps(one), 100) for one in (old, new))
            return f"{at}{name} was {before}, now it is {after}"
    return None


def listing(counts: Mapping[str, int]) -> str:
    """What was counted, by name; of many, the first."""
    more = f" and {len(counts) - _LISTED:,} more" if len(counts) > _LISTED else ""
    names = {name: printable(shortened(name, 60)) for name in islice(sorted(counts), _LISTED)}
    return ", ".join(f"{shown} {counts[name]:,}" for name, shown in names.items()) + more


def shortened(text: str, most: int = 200) -> str:
    """A text that can be printed and encoded, its middle left out where it is longer than ``most`` characters."""
    if len(text) > most:
        text = f"{text[: most - 40]}... ({len(text):,} characters)"
    return text.encode("utf-8", "backslashreplace").decode()


def json_lines(lines: Iterable[Any]) -> bytes:
    """A JSON Lines file; half a surrogate pair, which UTF-8 has not, stays the escape that it was."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "backslashreplace")


def gigabytes(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
