"""The training text of a recipe as token ids, kept beside its shards, before a run with ``data.keep_tokens`` asks.

Run: ``dslight data tokenize my_arm.yaml [key=value ...]``. No weight is read. A run tokenizes by itself what is not
there yet, with the cores of one machine: this is for data that take hours, on a cluster (``--engine ray``), or on a
machine without the GPUs that would wait. The file is the same. Lengths that ``data.order`` needs are counted too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.engines import Engine, add_engine_arguments, engine_of, in_order, nothing
from data_prep.processes import program
from dslight.data.datamodule import ShardData
from dslight.data.shards import MANIFEST, Manifest, ShardError, ShardReader
from dslight.recipe.build import check, connect, ready
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import parse

RECORDS = 2048
"""Of one shard, that are tokenized as one piece of work."""

OfRecord = Callable[[ShardReader, int], Any]


def through(engine: Engine, reader: ShardReader, of: OfRecord, title: str) -> Iterator[list[Any]]:
    """What ``of`` finds in the records of a folder, by an engine; see :data:`dslight.data.caches.lengths.Through`.

    Args:
        engine: does the work.
        reader: of them.
        of: called for each record.
        title: of the bar.
    """
    root, pieces = reader.root, list(_pieces(reader))
    with engine.pool([root, root / MANIFEST], None, nothing) as pool:
        work = partial(piece, root, reader.check, reader.manifest.meta, of)
        yield from tqdm(in_order(pool, work, pieces, engine.at_once), title, len(pieces), unit="piece")


Piece = tuple[Any, int, int]
"""A shard, and the first and the end of some of its records."""


def _pieces(reader: ShardReader) -> Iterator[Piece]:
    for shard in reader.manifest.shards:
        ends = [*range(0, shard.records, RECORDS), shard.records]
        yield from ((shard, start, stop) for start, stop in pairwise(ends) if start < stop)


def piece(root: Path, check: Any, meta: dict[str, Any], of: OfRecord, some: Piece) -> list[Any]:
    """What ``of`` finds in some records of a shard."""
    shard, start, stop = some
    reader = ShardReader(root, check, manifest=Manifest((shard,), meta))
    return [of(reader, row) for row in range(start, stop)]


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="dslight data tokenize", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path, metavar="RECIPE")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe")
    add_engine_arguments(parser)
    args = parser.parse_intermixed_args(argv)
    engine = engine_of(args)
    try:
        recipe = {**compose(args.recipe, args.overrides), "weights": {}}  # not needed, so they need not be there yet
        parsed = parse(recipe)
        experiment = check(parsed)
        data = experiment.data
        if not isinstance(data, ShardData) or not data.sources:
            raise RecipeError("data: has no shards of text to train on")
        if remote := [source.root for source in data.sources if "://" in source.root]:
            raise RecipeError(
                f"data.train: {remote[0]}: is pulled shard by shard while it is trained on; tokenize it where it lies"
            )
        connect(experiment, ready(parsed, None))
        for path in data.keep_text(partial(through, engine)):
            print(f"{path}: {path.stat().st_size:,} bytes")
    except (ShardError, FileNotFoundError) as error:  # which say what is missing
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    program(main)
