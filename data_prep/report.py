"""What a conversion made and set aside, in words; and the names of the files that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

QUARANTINE, REPORT = "quarantine.jsonl", "report.json"


def described(out: Path, report: dict[str, Any]) -> str:
    """A report in words."""
    text = (
        f"{out}: {report['records']:,} records with {report['images']:,} images ({report['text_only']:,} of text "
        f"only), {gigabytes(report['bytes'])} in {report['shards']} shards, {report['seconds']:,.0f} s"
    )
    if report["shards_of_earlier_runs"]:
        text += f" ({report['shards_of_earlier_runs']} shards were there)"
    if report["changed"]:
        text += f"\n  set right: {listing(report['changed'])}"
    if report["bad"]:
        text += f"\n  {sum(report['bad'].values()):,} bad entries in {QUARANTINE}: {listing(report['bad'])}"
    return text


def listing(counts: Mapping[str, int]) -> str:
    """What was counted, by name."""
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def gigabytes(size: int) -> str:
    """Bytes, for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
