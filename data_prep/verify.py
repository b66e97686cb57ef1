"""Read every byte of folders of shards and say what is wrong with them.

Run: ``python -m data_prep.verify shards/mix665k [...]``; the exit status is 1 if anything is. ``--decode`` also parses
every record and decodes every image, which shards written here have been through already; ``--index`` first indexes
plain WebDataset tars in place.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tqdm import tqdm

from data_prep.img2dataset import indexed
from data_prep.journal import JOURNAL
from data_prep.processes import program
from data_prep.report import QUARANTINE, REPORT
from dslight.data.records import read_sample
from dslight.data.sample import BadSample, decode_image
from dslight.data.shards import MANIFEST, Manifest, ShardError, ShardReader, verify


def decode_problems(root: Path) -> Iterator[str]:
    """What is wrong with the records of a folder whose bytes are intact."""
    reader = ShardReader(root)
    for row in tqdm(range(len(reader)), desc=f"{root} records", unit="record"):
        try:
            for image in read_sample(reader, row).images:
                decode_image(image)
        except BadSample as error:
            yield str(error)


def index(root: Path, workers: int) -> None:
    """Index tars that others have written.

    Raises:
        SystemExit: they are not others', so that what is wrong with them would be taken for right; or one is damaged.
    """
    made = [name for name in (JOURNAL, QUARANTINE, REPORT) if (root / name).exists()]
    if (root / MANIFEST).exists():
        try:
            meta = Manifest.load(root).meta
        except ShardError as error:
            raise SystemExit(f"{error}; delete {MANIFEST} only if these are plain WebDataset tars") from error
        made = [] if meta.get("indexed_in_place") else [MANIFEST]
    if made:
        raise SystemExit(
            f"{root}: --index is for plain WebDataset tars, and these were converted ({made[0]}): what is damaged "
            "would be indexed as it is. Verify without --index, or convert again"
        )
    try:
        indexed(root, workers)
    except ShardError as error:
        raise SystemExit(str(error)) from error


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--decode", action="store_true", help="also parse every record and decode every image")
    parser.add_argument("--index", action="store_true", help="first index plain WebDataset tars in place")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that index")
    args = parser.parse_args(argv)
    count = 0
    for root in args.roots:
        if not root.is_dir():
            raise SystemExit(f"{root}: there is no such folder")
        if args.index:
            index(root, args.workers)
        problems = [f"{root}: {problem}" for problem in verify(root, partial(tqdm, desc=str(root), unit="shard"))]
        if args.decode and not problems:
            problems = list(decode_problems(root))
        whole = "indexed as it is now" if args.index else "every byte is as it was written"
        print("\n".join(problems) or f"{root}: {whole}")
        count += len(problems)
    if count:
        sys.exit(1)


if __name__ == "__main__":
    program(main)
