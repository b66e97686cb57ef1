"""LLaVA's files (a json or jsonl of conversations, and a folder of images) to shards.

Run: ``python -m data_prep.llava --json llava_v1_5_mix665k.json --images images --out shards/mix665k``.

An entry has ``conversations`` (or ``questions``, for evaluation) and ``image``: a path, a list of paths, or nothing.
Each is read, checked and fully decoded once here, so that training meets no bad sample: what does not pass (image
missing, empty, cut, no image at all, another number of ``<image>`` marks than images, roles out of turn) goes to
``quarantine.jsonl`` with the reason. Image bytes are kept as they are; the extension comes from the bytes, since file
names lie (GIFs called .jpg). More than ``--max-bad`` of all entries stops the program without a manifest, because then
a folder is missing rather than a file.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dslight.data.sample import BadSample, decode_image, parse_sample
from dslight.data.shards import MANIFEST, Manifest, ShardWriter, record_members

QUARANTINE = "quarantine.jsonl"


class Checked(NamedTuple):
    """An entry after checking: its images and record, or the reason why it was refused."""

    images: list[bytes]
    record: dict[str, Any]
    reason: str = ""


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a ``.json`` (one list) or ``.jsonl`` (one object per line) file."""
    text = path.read_text(encoding="utf-8")
    entries = (
        [json.loads(line) for line in text.splitlines() if line.strip()]
        if path.suffix == ".jsonl"
        else json.loads(text)
    )
    if not isinstance(entries, list):
        raise SystemExit(f"{path}: must hold a list of entries, holds a {type(entries).__name__}")
    return entries


def check_entry(entry: dict[str, Any], images: Path) -> Checked:
    """Read an entry's images and check all of it."""
    try:
        names = entry.get("image") or []
        names = [names] if isinstance(names, str) else list(names)
        data = [(images / name).read_bytes() for name in names]
        record = {key: entry[key] for key in ("id", "conversations", "questions") if key in entry}
        record["sources"] = names
        sample = parse_sample(str(entry.get("id", "")), record_members(data, record))
        for image in sample.images:
            decode_image(image)
        return Checked(data, record)
    except (BadSample, ValueError, TypeError, AttributeError, OSError) as error:
        return Checked([], {}, f"{type(error).__name__}: {error}")


def check_all(entries: Iterable[dict[str, Any]], images: Path, workers: int) -> Iterator[Checked]:
    """Check entries in order, a few ahead in threads (reading and decoding release the interpreter)."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Checked]] = deque()
        for entry in entries:
            ahead.append(pool.submit(check_entry, entry, images))
            if len(ahead) > 4 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def convert(
    entries: list[dict[str, Any]], images: Path, out: Path, name: str, max_bad: float, workers: int, shard_bytes: int
) -> tuple[int, int]:
    """Write the good entries as shards and the others into the quarantine; the numbers of both.

    Raises:
        SystemExit: if more than ``max_bad`` of the entries are bad; no manifest is written then.
    """
    allowed = int(max_bad * len(entries))
    bad = 0
    meta: dict[str, Any] = {"program": "data_prep.llava", "version": 1, "entries": len(entries)}
    out.mkdir(parents=True, exist_ok=True)
    with (
        ShardWriter(out, shard_bytes, meta=meta) as writer,
        (out / QUARANTINE).open("w", encoding="utf-8") as quarantine,
    ):
        checked = check_all(entries, images, workers)
        for row, (data, record, reason) in enumerate(tqdm(checked, total=len(entries), unit="entry", desc=name)):
            if not reason:
                writer.write(f"{name}-{row:09d}", data, record)
                continue
            bad += 1
            line = {"row": row, "id": entries[row].get("id"), "image": entries[row].get("image"), "reason": reason}
            quarantine.write(json.dumps(line, ensure_ascii=False) + "\n")
            if bad > allowed:
                quarantine.flush()
                raise SystemExit(
                    f"{bad} bad entries among the first {row + 1}, --max-bad {max_bad} allows {allowed} of "
                    f"{len(entries)}; the reasons are in {out / QUARANTINE}. The last: row {row}: {reason}"
                )
        meta["quarantined"] = bad
    return len(entries) - bad, bad


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="the .json or .jsonl of entries")
    parser.add_argument("--images", type=Path, required=True, help="folder that the entries' image paths start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="first part of every key: a-z, 0-9, _ and - (default: from the name of --out)")
    parser.add_argument("--max-bad", type=float, default=0.001, help="share of entries that may be quarantined")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard-mb", type=int, default=256)
    args = parser.parse_args(argv)
    if (args.out / MANIFEST).exists():
        meta = Manifest.load(args.out).meta
        print(f"{args.out}: finished already, from {meta.get('entries')} entries; delete the folder to make it again")
        return
    name = args.name or args.out.resolve().name.lower().replace(".", "-")
    good, bad = convert(
        read_entries(args.json), args.images, args.out, name, args.max_bad, args.workers, args.shard_mb << 20
    )
    print(f"{args.out}: {good} records; {bad} entries in {QUARANTINE}")


if __name__ == "__main__":
    main()
