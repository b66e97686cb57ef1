"""Read every byte of folders of shards and say what is wrong with them.

Run: ``python -m data_prep.verify shards/mix665k [...]``; the exit status is 1 if anything is. ``--decode`` also parses
every record and decodes every image, which shards written here have been through already; ``--index`` first indexes
plain WebDataset tars in place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data_prep.engines import Engine, add_engine_arguments, engine_of, in_order, nothing
from data_prep.img2dataset import indexed
from data_prep.journal import JOURNAL
from data_prep.processes import program
from data_prep.report import QUARANTINE, REPORT
from dslight.data.records import read_sample
from dslight.data.sample import BadSample, decode_image
from dslight.data.shards import MANIFEST, Manifest, ShardError, ShardInfo, ShardReader, verify

T = TypeVar("T")


def looked_at(root: Path, engine: Engine, look: Callable[[ShardInfo], T], shards: Sequence[ShardInfo]) -> Iterator[T]:
    """What ``look`` finds in each shard, in order; with a bar."""
    with engine.pool([root, root / MANIFEST], None, nothing) as pool:
        yield from tqdm(in_order(pool, look, shards, engine.at_once), str(root), len(shards), unit="shard")


def decode_problems(root: Path, meta: dict[str, Any], shard: ShardInfo) -> list[str]:
    """What is wrong with the records of a shard whose bytes are intact."""
    problems, reader = [], ShardReader(root, manifest=Manifest((shard,), meta))
    for row in range(len(reader)):
        try:
            for image in read_sample(reader, row).pictures:
                decode_image(image)
        except BadSample as error:
            problems.append(str(error))
    return problems


def index(root: Path, engine: Engine) -> None:
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
        indexed(root, engine)
    except ShardError as error:
        raise SystemExit(str(error)) from error


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="dslight data verify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--decode", action="store_true", help="also parse every record and decode every image")
    parser.add_argument("--index", action="store_true", help="first index plain WebDataset tars in place")
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    count, engine = 0, engine_of(args)
    for root in args.roots:
        if not root.is_dir():
            raise SystemExit(f"{root}: there is no such folder")
        if args.index:
            index(root, engine)
        problems = [f"{root}: {problem}" for problem in verify(root, partial(looked_at, root, engine))]
        if args.decode and not problems:
            manifest = Manifest.load(root)
            decoded = looked_at(root, engine, partial(decode_problems, root, manifest.meta), manifest.shards)
            problems = [problem for found in decoded for problem in found]
        whole = "indexed as it is now" if args.index else "every byte is as it was written"
        print("\n".join(problems) or f"{root}: {whole}")
        count += len(problems)
    if count:
        sys.exit(1)


if __name__ == "__main__":
    program(main)
