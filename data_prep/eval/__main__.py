"""The official files of an evaluation set to question shards.

Run, with the files as they were downloaded; zips of images need not be unpacked, videos must be::

    python -m data_prep.eval vqav2 --annotations vqav2/ --images val2014.zip --out data/eval/vqav2
    python -m data_prep.eval textvqa --annotations TextVQA_0.5.1_val.json --images train_val_images.zip \\
        --ocr TextVQA_Rosetta_OCR_v0.2_val.json --out data/eval/textvqa_ocr
    python -m data_prep.eval nextqa --annotations dataset/nextqa --images NExTVideo --frames 6 --tile 2x3 \\
        --out data/eval/nextqa

The checks, the quarantine, the report and the resuming are those of :mod:`data_prep.ingest`. Here ``--max-bad`` is 0
unless it is said otherwise: a score over fewer questions is not the benchmark's.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.engines import engine_of
from data_prep.eval.asked import Asked, Converter, Questions, grouped
from data_prep.eval.files import Files, find, find_beside, find_parquet
from data_prep.eval.general import rotated
from data_prep.eval.sets import BLIND, SETS
from data_prep.images import Images
from data_prep.ingest import Job, add_arguments, ingest, key_name
from data_prep.processes import program
from data_prep.report import REPORT
from data_prep.videos import Videos
from dslight.data.shards import Manifest
from dslight.data.video import SIDE, Sampling
from dslight.files.atomic import write_atomically
from dslight.files.digest import file_sha256
from dslight.metrics.benchmarks import BENCHMARKS
from dslight.metrics.submission import OFFICIAL_IDS, WHOLE


def main(argv: list[str] | None = None) -> None:
    """The program."""
    args = _parser().parse_args(argv)
    row = SETS[args.set]
    read, files = _found(args)
    used = [path for paths in files.found.values() for path in paths] + ([args.ocr] if args.ocr else [])
    if not used:
        patterns = ", ".join(role.pattern for role in row.files)
        raise SystemExit(f"--annotations: none of the files of {args.set} is there: {patterns}")
    if args.ocr and args.set != "textvqa":
        raise SystemExit(f"--ocr: OCR tokens belong to textvqa, not to {args.set}")
    try:
        sampling = Sampling.of(args.frames, args.tile, args.side)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    try:
        questions = list(rotated(read(files)) if args.circular else read(files))
        if args.circular and not any(asked.options for asked in questions):
            raise SystemExit(f"--circular: the questions of {args.set} have no options to rotate")
        rows = grouped(questions, args.limit)
        ids = _whole(questions, files)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, csv.Error) as error:
        names = ", ".join(path.name for path in used)
        raise SystemExit(f"{names}: not in the layout of {args.set}: {type(error).__name__}: {error}") from error
    entries = Questions(used[0], rows=rows)
    convert = Converter(
        Images.open(args.images),
        Videos([Path(spec) for spec in args.images if Path(spec).is_dir()]),
        sampling,
        blind=args.set in BLIND,
    )
    if any(convert.decodes_video(raw) for raw in rows):
        try:
            import av  # noqa: F401
        except ImportError:
            raise SystemExit("--images: reading videos needs PyAV; pip install 'dslight[video]'") from None
    options: dict[str, Any] = {"set": args.set, "split": files.split, "limit": args.limit}
    options |= {"circular": True} if args.circular else {}
    options["files"] = {path.name: file_sha256(path) for path in used}
    if any("video" in raw for raw in rows):
        options |= vars(sampling)
    job = Job(
        program="data_prep.eval",
        out=args.out,
        name=args.name or key_name(args.out),
        entries=entries,
        images=convert.images,
        convert=convert,
        options=options,
        shard_entries=args.shard_entries,
        max_bad=args.max_bad,
        engine=engine_of(args),
    )
    report = ingest(job)
    if BENCHMARKS[row.benchmark].submission in WHOLE:
        write_atomically(args.out / OFFICIAL_IDS, json.dumps(ids))
    _say(args.out, "circular" if args.circular else row.benchmark, entries, report)


def _found(args: argparse.Namespace) -> tuple[Callable[[Files], Iterator[Asked]], Files]:
    """The files of a set, and who reads them: parquet files of the Hub have a reader of their own."""
    row = SETS[args.set]
    folders = tuple(path for spec in args.images if (path := Path(spec)).is_dir())
    if row.hub is not None and (found := find_parquet(args.annotations, args.split, row.splits)):
        paths, split = found
        variants = sorted({path.parent.name for path in paths})
        if row.apart and len(variants) > 1:
            raise SystemExit(f"--annotations: several variants of {args.set}: {', '.join(variants)}; name one folder")
        beside = find_beside(args.annotations, row.files)
        return row.hub, Files({"questions": paths, **beside}, split, args.ocr, row.public, folders)
    split = args.split or row.split
    return row.read, Files(find(args.annotations, row.files, split), split, args.ocr, row.public, folders)


def _whole(questions: Sequence[Asked], files: Files) -> list[Any]:
    """The official ids of the split; VQAv2's server wants those of the whole test set with an answer to test-dev."""
    if files.split.startswith("test-dev") and files.found.get("whole"):
        return [item["question_id"] for item in files.json("whole")["questions"]]
    return [one.question_id if one.official_id is None else one.official_id for one in questions]


def _say(out: Path, benchmark: str, entries: Questions, report: dict[str, Any]) -> None:
    """How many of the questions are there, in words and in the report, and how to validate with them."""
    there = sum(shard.questions for shard in Manifest.load(out).shards)
    report |= {"asked": entries.asked, "questions": there}
    write_atomically(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    print(f"  {there:,} of {entries.asked:,} questions; validate with: {{root: {out}, benchmark: {benchmark}}}")
    if there < entries.asked:
        print(f"  {entries.asked - there:,} questions are missing: a score on these shards is not the benchmark's")
    changed = report.get("changed")
    if isinstance(changed, dict) and changed.get("answers hidden"):
        print("  answers are hidden: dslight validate writes the model's own for the benchmark's server, and no score")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data_prep.eval", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument(
        "--annotations", type=Path, nargs="+", required=True, help="the files of the set, or folders that hold them"
    )
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="[PREFIX=]PATH",
        help="a folder, .zip or .tar of images, or a folder of videos. May be repeated",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--split", help="where the files hold or name several (default: the one that is reported)")
    parser.add_argument("--limit", type=int, help="only the first questions")
    parser.add_argument(
        "--circular", action="store_true", help="ask multiple choice with all rotations of the options, as MMBench does"
    )
    parser.add_argument("--ocr", type=Path, help="TextVQA's Rosetta file: put its tokens behind the questions")
    parser.add_argument("--frames", type=int, help="of each video (default: 6)")
    parser.add_argument(
        "--tile", metavar="ROWSxCOLUMNS", help="of the frames in a square (default: rows of 3); none: each is an image"
    )
    parser.add_argument("--side", type=int, default=SIDE, help="of that square, in pixels")
    parser.add_argument("--name", help="first part of every key: a-z, 0-9, _ and - (default: from the name of --out)")
    add_arguments(parser)
    parser.set_defaults(max_bad=0.0)
    return parser


if __name__ == "__main__":
    program(main)
