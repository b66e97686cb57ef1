"""LLaVA's files (a json or jsonl of conversations, and its images) to shards: Pretrain 558K, the 665K mix, and alike.

Run, for the two stages of LLaVA-1.5; zips are read as they were downloaded, and a folder does as well::

    python -m data_prep.llava --json blip_laion_cc_sbu_558k.json --images images.zip --out data/llava_pretrain_558k
    python -m data_prep.llava --json llava_v1_5_mix665k.json --out data/llava_mix_665k \\
        --images coco=train2017.zip --images gqa=images.zip --images textvqa=train_val_images.zip \\
        --images vg=VG_100K.zip --images vg=VG_100K_2.zip --images ocr_vqa=ocr_vqa

An entry has ``conversations`` (or ``questions``, for evaluation) and ``image`` or ``images``: a path, a list of paths,
or nothing; absolute paths are found with ``--images /``. Its text is kept verbatim; an answer with ``weight: 0`` or
``loss: false`` is not learnt. The checks, the quarantine and the report are those of :mod:`data_prep.ingest`. OCR-VQA's
images are named .jpg in the json and .gif or .png on many disks: below ``--any-ending`` (``ocr_vqa``), where the named
file is missing, the one of another ending is taken, and counted.
"""

from __future__ import annotations

import argparse

from data_prep.check import Entry
from data_prep.engines import engine_of
from data_prep.entries import Entries, RawEntry
from data_prep.images import Images
from data_prep.ingest import Job, add_source_arguments, ingest, key_name
from data_prep.media import given_images, image_source
from data_prep.processes import program
from dslight.data.sample import BadSample

_RECORD = ("id", "conversations", "questions")


def llava_entry(raw: RawEntry) -> Entry:
    """An entry of LLaVA's files; see :data:`data_prep.check.Convert`."""
    images = [image_source(source) for source in given_images(raw)]
    if raw.get("video") or raw.get("videos"):
        raise BadSample("has a video, which --format llava does not know; --format messages does", "media")
    if raw.get("system"):
        what = "has a system text beside its conversations, which --format llava does not know"
        raise BadSample(f"{what}; --format messages does (--system keep)", "system")
    record = {key: raw[key] for key in _RECORD if raw.get(key) is not None}
    return Entry(record, images, read={*_RECORD, "image", "images", "system", "video", "videos"})


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_source_arguments(parser)
    parser.add_argument("--any-ending", action="append", metavar="PREFIX", help="see above (default: ocr_vqa)")
    args = parser.parse_args(argv)
    endings = args.any_ending or ["ocr_vqa"]
    ingest(
        Job(
            program="data_prep.llava",
            out=args.out,
            name=args.name or key_name(args.out),
            entries=Entries(args.json),
            images=Images.open(args.images, endings),
            convert=llava_entry,
            options={"any_ending": endings},
            shard_entries=args.shard_entries,
            max_bad=args.max_bad,
            engine=engine_of(args),
        )
    )


if __name__ == "__main__":
    program(main)
