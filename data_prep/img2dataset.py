"""The tars of img2dataset (LAION, CC3M, COYO, ...) as shards, indexed where they lie: nothing is copied or rewritten.

Run: ``python -m data_prep.img2dataset laion/00000-00999``; then ``data.train: [laion/00000-00999]`` in a recipe.

img2dataset writes a tar under its final name from the start, and ``NNNNN_stats.json`` when it is whole: a tar without
one is unfinished, and refused. So is one whose records are not as many as the stats (and the parquet, where pyarrow
is installed) say. Then every record is decoded once, unless ``--no-decode``: what has no caption (``txt``, or
``caption`` in the ``json``) or no whole image is left out of the index and named in ``quarantine.jsonl``. The index
of a tar is what a reader sees, so that is as good as removing it. The manifest comes last: without it, run the
program again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from data_prep.engines import Engine, add_engine_arguments, engine_of, in_order, nothing
from data_prep.ingest import MAX_BAD
from data_prep.processes import check_numbers, program
from data_prep.report import QUARANTINE, REPORT, json_lines, shortened
from data_prep.rows import Condition, Table
from dslight.data.sample import BadSample, check_image, image_members, is_beside, parse_sample
from dslight.data.shards import MANIFEST, Index, Manifest, ShardError, ShardInfo, index_tars
from dslight.data.shards.format import Member, Record, load_index
from dslight.files.atomic import write_atomically
from dslight.files.digest import sha256
from dslight.files.typed import Count, FileError, read_json

T = TypeVar("T")

_LISTED = 5


@dataclass(frozen=True)
class _Stats:
    """What img2dataset writes beside a tar, as far as it counts here."""

    successes: Count


def unfinished(root: Path) -> Iterator[str]:
    """What says that a tar is not as img2dataset finished it, by its stats; one sentence each."""
    tars = sorted(root.glob("*.tar"))
    if not tars:
        yield f"{root}: holds no .tar file"
    elif not any(root.glob("*_stats.json")):
        other = f"index those of another tool with dslight data convert {root} (or python -m data_prep.verify --index)"
        yield f"{root}: no {tars[0].stem}_stats.json and none of any tar, so they are not img2dataset's; {other}"
        return
    for tar in tars:
        path = root / f"{tar.stem}_stats.json"
        if not path.exists():
            hint = "so img2dataset did not finish it; download it again, or move it away"
            yield f"{tar.name}: no {path.name} beside it, {hint}"
            continue
        try:
            good = read_json(path, _Stats).successes
        except FileError as error:
            yield f"{error}; so it is not img2dataset's"
            continue
        parquet = tar.with_suffix(".parquet")
        if parquet.exists() and find_spec("pyarrow") is not None:
            listed = _successes(parquet)
            if listed != good:
                counts = f"{path.name} says {good} images, {parquet.name} {listed}"
                yield f"{tar.name}: {counts}; one of them is of another run"
    for path in sorted(root.glob("*_stats.json")):
        if not (root / f"{path.name.removesuffix('_stats.json')}.tar").exists():
            yield f"{path.name}: its tar is missing"


def partial_records(root: Path, manifest: Manifest) -> Iterator[str]:
    """Records without a ``json`` or ``txt`` that others of their tar have: img2dataset writes them for all or none."""
    for shard in manifest.shards:
        index = load_index(root, shard)
        found = [{index.extension(m) for m in index.members(row)} for row in range(len(index))]
        everywhere = set().union(*found) & {"json", "txt"}
        for row, extensions in enumerate(found):
            for extension in sorted(everywhere - extensions):
                where = f"{shard.name}: {index.key(row)}"
                yield f"{where}: has no {extension}, as others have; the tar was cut or edited there"


def _successes(path: Path) -> int:
    table = Table.open(str(path))
    return sum(row is not None for row in table.read(0, table.rows, [Condition("status", "==", "success")]))


def several_images(root: Path, manifest: Manifest) -> Counter[str]:
    """Records by the names of their images, where they have several; in the order in which they are taken."""
    counts: Counter[str] = Counter()
    for index in (load_index(root, shard) for shard in manifest.shards):
        for row in range(len(index)):
            names = image_members(index.extension(m) for m in index.members(row))
            counts.update([" + ".join(names)] if len(names) > 1 else [])
    return counts


def left_alone(root: Path, manifest: Manifest) -> Counter[str]:
    """Members that are called what stands beside a picture, and are no picture of their record, by extension."""
    counts: Counter[str] = Counter()
    for index in (load_index(root, shard) for shard in manifest.shards):
        counts.update(
            name for name in (extension.decode() for extension in index.extensions.tolist()) if is_beside(name)
        )
    return counts


def indexed(
    root: Path,
    engine: Engine,
    meta: dict[str, Any] | None = None,
    leave_out: Sequence[str] = (),
    take: Sequence[str] = (),
) -> Manifest:
    """:func:`~dslight.data.shards.index_tars` by an engine, a tar at a time in each process, and with a bar."""

    def each(index: Callable[[Path], T], tars: Sequence[Path]) -> Iterator[T]:
        with engine.pool([root], root, nothing) as pool:
            found = in_order(pool, index, tars, engine.at_once)
            yield from tqdm(found, f"{root.name}: indexing", len(tars), unit="tar", leave=False)

    return index_tars(root, meta, each, leave_out, take)


def bad_records(root: Path, shard: ShardInfo) -> list[tuple[int, str, str, str]]:
    """(row, key, class of the fault, message) of the records of a shard that cannot be trained on."""
    index, bad = load_index(root, shard), []
    with (root / shard.name).open("rb") as file:
        for row in range(len(index)):
            members = {}
            for m in index.members(row):
                members[index.extension(m)] = os.pread(file.fileno(), int(index.sizes[m]), int(index.offsets[m]))
            try:
                sample = parse_sample(index.key(row), members)
                if not sample.images:
                    raise BadSample("has no image", "image-missing")
                for image in sample.pictures:
                    check_image(image)
            except BadSample as error:
                bad.append((row, index.key(row), error.reason, shortened(str(error), 400)))
    return bad


def without(index: Index, rows: set[int]) -> Index:
    """An index that leaves out some of its records."""
    records = [
        Record(
            index.key(row),
            tuple(
                Member(index.extension(m), int(index.offsets[m]), int(index.sizes[m]), index.hashes[m].tobytes())
                for m in index.members(row)
            ),
            int(index.questions[row]),
        )
        for row in range(len(index))
        if row not in rows
    ]
    return Index.build(records)


def check_records(root: Path, manifest: Manifest, engine: Engine, max_bad: float) -> dict[str, Any]:
    """Decode everything, leave out what is bad, and write manifest, quarantine and report.

    Raises:
        SystemExit: more than ``max_bad`` of the records are bad; there is no manifest then.
    """
    total = sum(shard.records for shard in manifest.shards)
    lines: list[dict[str, Any]] = []
    shards = []
    with (
        engine.pool([root], root, nothing) as pool,
        tqdm(total=total, desc=root.name, unit="record") as bar,
    ):
        found = in_order(pool, partial(bad_records, root), manifest.shards, engine.at_once)
        for shard, bad in zip(manifest.shards, found, strict=True):
            bar.update(shard.records)
            lines += [
                {"shard": shard.name, "key": key, "reason": reason, "message": message}
                for _, key, reason, message in bad
            ]
            shards.append((shard, {row for row, *_ in bad}))
    write_atomically(root / QUARANTINE, json_lines(lines))
    report: dict[str, Any] = {
        "entries": total,
        "records": total - len(lines),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(shards),
        "bad": dict(sorted(Counter(line["reason"] for line in lines).items())),
    }
    write_atomically(root / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    if len(lines) > int(max_bad * total):
        raise SystemExit(
            f"{root}: {len(lines)} of {total} records are bad {report['bad']}, --max-bad {max_bad} allows "
            f"{int(max_bad * total)}; all are in {root / QUARANTINE}"
        )
    kept = []
    for shard, rows in shards:
        info = shard
        if rows:
            index = without(load_index(root, shard), rows)
            data = index.to_bytes()
            write_atomically(root / shard.index_name, data)
            info = replace(shard, records=len(index), questions=int(index.questions.sum()), index_sha256=sha256(data))
        kept.append(info)
    Manifest(tuple(kept), {**manifest.meta, "checked": True, "quarantined": len(lines)}).save(root)
    return report


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("root", type=Path, help="a folder that img2dataset wrote (output_format=webdataset)")
    parser.add_argument("--no-decode", action="store_true", help="trust the images and captions")
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="EXT", help="members that are not read, as a mask's png"
    )
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="EXT",
        help="members that are pictures though called a mask: seg.png",
    )
    parser.add_argument("--max-bad", type=float, default=MAX_BAD, help="share of records that may be left out")
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    index_folder(args.root, engine_of(args), args.leave_out, args.take, not args.no_decode, args.max_bad)


def index_folder(
    root: Path,
    engine: Engine,
    leave_out: Sequence[str] = (),
    take: Sequence[str] = (),
    decode: bool = True,
    max_bad: float = MAX_BAD,
    finished_by_img2dataset: bool = True,
) -> None:
    """Index the tars of a folder where they lie, look at all of their records, and say what there is.

    Args:
        root: the folder.
        engine: what looks at them.
        leave_out: extensions of members that are not read.
        take: extensions that are pictures though they are called what stands beside one.
        decode: whether every picture is decoded, and what is bad left out of the index.
        max_bad: share of the records that may be.
        finished_by_img2dataset: whether its ``_stats.json`` has to be there, and to fit.

    Raises:
        SystemExit: with what is wrong.
    """
    check_numbers(max_bad)
    if finished_by_img2dataset:
        _refuse(list(unfinished(root)))
        if any(root.glob("*.parquet")) and find_spec("pyarrow") is None:
            print(f"{root}: its .parquet files are not compared, for which pyarrow would be needed")
    try:
        name = "data_prep.img2dataset" if finished_by_img2dataset else "dslight data convert"
        meta: dict[str, Any] = {"program": name, "checked": False}
        chosen = {"leave_out": leave_out, "take": take}
        chosen = {name: [one.lower().lstrip(".") for one in given] for name, given in chosen.items()}
        meta |= {name: given for name, given in chosen.items() if given}
        manifest = indexed(root, engine, meta, **chosen)
    except ShardError as error:
        raise SystemExit(str(error)) from error
    (root / MANIFEST).unlink()  # it is written again, last
    if finished_by_img2dataset:
        _refuse(list(partial_records(root, manifest)))
    total = sum(shard.records for shard in manifest.shards)
    print(f"{root}: {total:,} records in {len(manifest.shards)} tars, indexed in place")
    for name, count in left_alone(root, manifest).most_common(_LISTED):
        print(
            f"{root}: {count:,} records have .{name}, which is left alone; if it is a picture, --take {name} takes it"
        )
    for names, count in several_images(root, manifest).most_common(_LISTED):
        print(
            f"{root}: {count:,} records have the images {shortened(names)}, and all of them are taken, in this "
            "order; what is no picture (a mask, a preview) is left out with --leave-out EXT"
        )
    if not decode:
        manifest.save(root)
    else:
        report = check_records(root, manifest, engine, max_bad)
        left_out = f"; left out: {report['bad']}, named in {QUARANTINE}" if report["bad"] else ""
        print(f"{root}: {report['records']:,} of them can be trained on{left_out}")


def _refuse(problems: list[str]) -> None:
    if problems:
        more = f"\n... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise SystemExit("\n".join(problems[:_LISTED]) + more)


if __name__ == "__main__":
    program(main)
