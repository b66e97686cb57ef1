"""``dslight data convert``: what people have, in whatever form, to shards that dslight trains on.

The format is guessed from endings, first bytes and first entries, and said; the first ten entries are shown as they
will be. ``--format`` says it instead, ``--preview`` stops there. The work is that of the programs of ``data_prep``, to
the same bytes. Tars of other tools are indexed where they lie or, with ``--out``, linked into another folder first.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

from data_prep.engines import engine_of
from data_prep.entries import Entries, SourceError
from data_prep.files import Captioned, CaptionedEntry
from data_prep.guess import FORMATS, Guess, guess
from data_prep.images import Images
from data_prep.img2dataset import index_folder
from data_prep.ingest import SHARD_ENTRIES, Job, add_arguments, ingest, key_name
from data_prep.llava import llava_entry
from data_prep.messages import SYSTEMS, MessagesEntry, add_video_arguments, messages_job
from data_prep.preview import images_found, preview, preview_tar
from data_prep.tables import add_table_arguments, table_job
from data_prep.videos import Videos
from dslight.data.shards import MANIFEST

_BESIDE = (".", "images", "image", "data", "videos", "video")


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a file or folder; of tables also several, or URLs"
    )
    parser.add_argument("--out", type=Path, help="the folder to write; tars need none, and are indexed where they lie")
    parser.add_argument(
        "--format", choices=FORMATS, help="; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    )
    parser.add_argument("--preview", action="store_true", help="show the first entries as they will be, and stop")
    parser.add_argument(
        "--images",
        action="append",
        default=[],
        metavar="[PREFIX=]PATH",
        help="where the pictures of a json lie: a folder, .zip or .tar; default: beside it",
    )
    parser.add_argument("--name", help="first part of every key: a-z, 0-9, _ and - (default: from the name of --out)")
    parser.add_argument("--system", choices=SYSTEMS, help="what happens to system texts (default: prepend)")
    parser.add_argument("--any-ending", action="append", default=[], metavar="PREFIX", help="as of data_prep.llava")
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="EXT", help="members of tars that are not read: a mask"
    )
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="EXT",
        help="members of tars that are pictures all the same: seg.png",
    )
    add_table_arguments(parser)
    add_video_arguments(parser)
    add_arguments(parser)
    parser.set_defaults(**dict.fromkeys(_DEFAULTS))  # so that what was said is known


def convert(args: argparse.Namespace) -> None:
    """Guess, say, show and convert.

    Raises:
        SourceError, SystemExit: with what is wrong, in a sentence.
    """
    found = guess(args.sources) if args.format is None else Guess(args.format, "", tuple(args.sources))
    why = f", since {found.why}" if found.why else ""
    told = "" if args.format else "; --format says otherwise"
    print(f"{args.sources[0]}: {FORMATS[found.format]} (--format {found.format}){why}{told}")
    _check_options(args, found.format)
    if found.format in ("tars", "img2dataset"):
        _index(args, found)
        return
    if args.out is None and not args.preview:
        raise SourceError("--out: name the folder to write")
    job = _job(args, found)
    if args.preview or not (job.out / MANIFEST).exists():
        lines, good = preview(job)
        print("\n".join(["the first entries:", *lines]))
        _refuse_if_bad(found.sources[0], lines, good, args.max_bad)
    if not args.preview:
        ingest(job)


_SEVERAL = ("tables", "tars", "img2dataset")
_SHARDS = ("llava", "messages", "tables", "files")
_DEFAULTS = {"system": "prepend", "shard_entries": SHARD_ENTRIES}
_OF = {
    "system": ("messages", "tables"),
    "name": _SHARDS,
    "shard_entries": _SHARDS,
    "where": ("tables",),
    "image_column": ("tables",),
    "in_place": ("tables",),
    "images": ("llava", "messages", "tables"),
    "any_ending": ("llava",),
    "frames": ("messages",),
    "tile": ("messages",),
    "side": ("messages",),
    "keep_videos": ("messages",),
    "leave_out": ("tars", "img2dataset"),
    "take": ("tars", "img2dataset"),
}


def _check_options(args: argparse.Namespace, form: str) -> None:
    """Refuse what the format would pass over, and set what was not said."""
    if len(args.sources) > 1 and form not in _SEVERAL:
        raise SourceError(
            f"{args.sources[1]}: --format {form} takes one source at a time, and this is another one; several go into "
            "one folder by data_prep.mix, or are listed under data.train"
        )
    for name, forms in _OF.items():
        if getattr(args, name) not in (None, [], False) and form not in forms:
            raise SourceError(f"--{name.replace('_', '-')}: is for --format {' or '.join(forms)}, and this is {form}")
    for name, default in _DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)


def _refuse_if_bad(source: object, lines: list[str], good: int, max_bad: float) -> None:
    if lines and not good and max_bad < 1:
        what = f"not one of its first {len(lines)} entries is good"
        raise SourceError(f"{source}: {what}, so none was converted (--max-bad 1 goes on all the same)")


def _job(args: argparse.Namespace, found: Guess) -> Job:
    args.out = args.out or Path("preview")  # which is not made
    if found.format == "tables":
        return table_job(args, found.sources)
    source = Path(found.sources[0])
    settings = {"out": args.out, "name": args.name or key_name(args.out)}
    settings |= {"shard_entries": args.shard_entries, "max_bad": args.max_bad, "engine": engine_of(args)}
    if found.format == "files":
        images = Images.open([str(source)])
        return Job(
            program="dslight data convert", entries=Captioned(source), images=images, convert=CaptionedEntry(source),
            **settings,
        )  # fmt: skip
    if found.format == "llava":
        endings = args.any_ending or ["ocr_vqa"]
        job = Job(
            program="data_prep.llava", entries=Entries(source), images=Images.open(args.images, endings),
            convert=llava_entry, options={"any_ending": endings}, **settings,
        )  # fmt: skip
    else:
        job = messages_job(args, source, args.images, **settings)
    return job if args.images else _with_images_beside(job, source)


def _with_images_beside(job: Job, source: Path) -> Job:
    """The job with the first folder beside its file in which pictures of its first entries are."""
    named, best = images_found(job)[0], (0, Path())
    if not named:
        return job
    for name in _BESIDE:
        folder = source.parent / name
        if folder.is_dir():
            tried = replace(job, images=Images.open([str(folder)], [p.rstrip("/") for p in job.images.any_ending]))
            if isinstance(job.convert, MessagesEntry):
                tried = replace(tried, convert=replace(job.convert, videos=Videos((folder,))))
            if (found := images_found(tried)[1]) > best[0]:
                best, job = (found, folder), tried
    if not best[0]:
        raise SourceError(
            f"{source}: its entries name pictures or videos, which are not in its folder or in images/ there; say "
            "where they are: --images PATH"
        )
    print(f"{source}: its pictures and videos are taken from {best[1]} (--images says otherwise)")
    return job


def _index(args: argparse.Namespace, found: Guess) -> None:
    tars: list[Path] = []
    for source in map(Path, found.sources):
        of_it = sorted(source.glob("*.tar")) if source.is_dir() else [source]
        if not of_it or not all(tar.is_file() for tar in of_it):
            raise SourceError(f"{source}: {'holds no .tar file' if source.is_dir() else 'there is no such file'}")
        tars += of_it
    leave_out, take = ([one.lower().lstrip(".") for one in given] for given in (args.leave_out, args.take))
    lines, good = preview_tar(tars[0], leave_out, take)
    print("\n".join(["the first records:", *lines]))
    _refuse_if_bad(tars[0], lines, good, args.max_bad)
    if args.preview:
        return
    folders = {tar.parent for tar in tars}
    root = args.out or tars[0].parent
    if args.out is None and (len(folders) > 1 or sorted(root.glob("*.tar")) != sorted(tars)):
        raise SourceError("--out: name the folder into which these tars are to be linked")
    if args.out is not None and folders != {args.out}:
        if (args.out / MANIFEST).exists():
            raise SourceError(f"{args.out}: finished already; delete the folder to make it again")
        _link(tars, args.out)
    index_folder(root, engine_of(args), leave_out, take, True, args.max_bad, found.format == "img2dataset")


def _link(tars: list[Path], out: Path) -> None:
    """The tars, and what img2dataset says of them, in another folder; they take no space again on the same disk."""
    out.mkdir(parents=True, exist_ok=True)
    for tar in tars:
        for file in (tar, tar.with_name(f"{tar.stem}_stats.json"), tar.with_suffix(".parquet")):
            if not file.exists():
                continue
            target = out / file.name
            if target.exists():
                if not target.samefile(file) and _changed(target) != _changed(file):
                    raise SourceError(f"{target}: lies there already, and is not {file}; write to another folder")
                continue
            try:
                os.link(file.resolve(), target)
            except OSError:  # another disk, or one without links
                shutil.copy2(file, target.with_name(f"{target.name}.part"))
                os.replace(target.with_name(f"{target.name}.part"), target)


def _changed(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns
