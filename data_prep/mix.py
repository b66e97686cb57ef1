"""A mix of sources, described in a YAML file, to a folder of shards per source and what a recipe needs to train on it.

Run: ``python -m data_prep.mix data_prep/mixes/deepstack_748k.yaml --raw downloads --out data/deepstack_mix_748k``;
``--fraction 0.001`` makes a thousandth of every source, to see whether all is there.

A source is entries of a file of LLaVA's format (``format: messages``: see :mod:`data_prep.messages`)::

    sources:
      vqav2:                      # folder, and first part of the keys
        json: mix.json            # below --raw, as are the images
        images: [coco=train2017.zip]
        where: {image: coco/, contains: ..., lacks: ...}   # which entries: begin of the image's name (null: no image),
                                  # texts of which the conversation holds one, texts of which it holds none
        count: 83000              # how many of them, drawn with `seed`; fewer there are a fault, but see `rounding`
        weight: 1.0               # an epoch shows each of them so often
        prompt: Answer briefly.   # put behind the first question, where no question has it;
                                  # of a list, every entry must have one

``OUT/train.yaml`` is a base for recipes that trains on all sources with their weights. Where all weights are 1, ``OUT``
is also a folder of shards itself, which is all of them: ``data.train: [OUT]``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Gt, Lt

from data_prep.check import Convert, Entry
from data_prep.engines import engine_of
from data_prep.entries import Entries, RawEntry
from data_prep.images import Images
from data_prep.ingest import Job, add_arguments, ingest
from data_prep.llava import llava_entry
from data_prep.messages import MessagesEntry
from data_prep.processes import program
from data_prep.report import REPORT
from dslight.data.sample import BadSample
from dslight.data.shards import MANIFEST, Manifest
from dslight.files.atomic import write_atomically
from dslight.files.typed import Count, FileError, parse_json, understood
from dslight.names import UnsafeNameError, below
from dslight.recipe.expansion import check_aliases, read

FORMATS: dict[str, Convert] = {"llava": llava_entry, "messages": MessagesEntry()}


@dataclass(frozen=True)
class Where:
    """Which entries of a file; see the module."""

    image: str | None = ""
    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def __call__(self, raw: RawEntry) -> bool:
        """Whether an entry is one of them."""
        image = raw.get("image") or raw.get("images")
        name = str((image or [""])[0] if isinstance(image, list) else image or "")
        if image if self.image is None else not name.startswith(self.image):
            return False
        if not self.contains and not self.lacks:
            return True
        text = json.dumps(raw.get("conversations") or raw.get("messages"), ensure_ascii=False)
        return (not self.contains or _has(text, self.contains)) and not _has(text, self.lacks)


@dataclass(frozen=True)
class Prompted:
    """Puts ``prompt`` behind the first question of an entry, or (several) asks that it has one of them."""

    convert: Convert
    prompt: tuple[str, ...]
    appends: bool

    def __call__(self, raw: RawEntry) -> Entry:
        """See :data:`data_prep.check.Convert`."""
        entry = self.convert(raw)
        turns = entry.record["conversations"]
        asked = [turn for turn in turns if turn["from"] in ("human", "user")]
        if any(_has(turn["value"], self.prompt) for turn in asked):
            return entry
        if not self.appends or not asked:
            raise BadSample(f"no question has one of the prompts {list(self.prompt)}", "prompt")
        first = next(i for i, turn in enumerate(turns) if turn is asked[0])
        text = f"{turns[first]['value']}\n{self.prompt[0]}"
        turns = [*turns[:first], {**turns[first], "value": text}, *turns[first + 1 :]]
        return entry._replace(record={**entry.record, "conversations": turns}, changes=[*entry.changes, "prompt added"])


def _has(text: str, parts: tuple[str, ...]) -> bool:
    return any(part.casefold() in text.casefold() for part in parts)


@dataclass(frozen=True)
class Source:
    """A source of a mix; see the module."""

    json: str
    images: tuple[str, ...] = ()
    format: Literal["llava", "messages"] = "llava"
    where: Where = Where()
    count: Annotated[int, Gt(0), Lt(2**63)] | None = None
    weight: Annotated[float, Gt(0), Lt(math.inf)] = 1.0
    prompt: tuple[str, ...] = ()
    appends: bool = False


@dataclass(frozen=True)
class Mix:
    """A file that describes a mix.

    Attributes:
        sources: by name.
        seed: of what is drawn.
        rounding: counts are rounded to this many, so half as many may be missing from a file.
    """

    sources: Mapping[str, Source]
    seed: int = 0
    rounding: Count = 1

    @classmethod
    def load(cls, path: Path) -> Mix:
        """Read a file.

        Raises:
            SystemExit: naming the key that is wrong.
        """
        try:
            text = read(path)
            check_aliases(text, str(path))
            content = yaml.safe_load(text)
        except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
            said = str(error)
            raise SystemExit(said if said.startswith(str(path)) else f"{path}: {said}") from error
        _known(f"{path}", content, {field.name for field in fields(cls)})
        if not isinstance(content.get("sources"), dict) or not content["sources"]:
            raise SystemExit(f"{path}: sources: names no source")
        if "" in content["sources"]:
            raise SystemExit(f"{path}: sources: '' is no name; its shards lie in a folder of that name")
        try:
            with understood(path):
                sources = {name: _source(f"{path}: sources.{name}", body) for name, body in content["sources"].items()}
                made = asdict(cls(**{**content, "sources": sources}))
            return parse_json(json.dumps(made, default=str), cls, path)
        except FileError as error:
            raise SystemExit(str(error)) from error


def _source(at: str, body: Any) -> Source:
    _known(at, body, {field.name for field in fields(Source)} - {"appends"})
    where = body.get("where") or {}
    _known(f"{at}.where", where, {field.name for field in fields(Where)})
    if not isinstance(body.get("json"), str):
        raise SystemExit(f"{at}.json: missing; the file of its entries, below --raw")
    if body.get("format", "llava") not in FORMATS:
        raise SystemExit(f"{at}.format: {body['format']!r} is none of {', '.join(FORMATS)}")
    lists = {name: _texts(where[name]) for name in ("contains", "lacks") if name in where}
    return Source(
        **{**body, "images": _texts(body.get("images")), "prompt": _texts(body.get("prompt"))}
        | {"where": Where(**{**where, **lists}), "appends": isinstance(body.get("prompt"), str)}
    )


def _known(at: str, body: Any, names: set[str]) -> None:
    if not isinstance(body, dict):
        raise SystemExit(f"{at}: must be a mapping, is {body!r}")
    for name in body:
        if name not in names:
            raise SystemExit(f"{at}.{name}: there is no such key; there are {', '.join(sorted(names))}")


def _texts(value: Any) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def job_of(name: str, source: Source, mix: Mix, raw: Path, out: Path, fraction: float = 1.0) -> Job:
    """The job that makes the shards of a source, with the engine's default settings."""
    convert, at = FORMATS[source.format], f"sources.{name}"
    chosen = source.where != Where()
    return Job(
        program="data_prep.mix",
        out=out / name,
        name=name,
        entries=Entries(
            _below(raw, source.json, f"{at}.json"),
            keep=source.where if chosen else None,
            count=source.count,
            fraction=fraction,
            seed=mix.seed,
            at_least=1 if source.count is None else max(1, source.count - mix.rounding // 2),
        ),
        images=Images.open([_place(raw, spec, f"{at}.images") for spec in source.images], ["ocr_vqa"], f"{at}.images"),
        convert=Prompted(convert, source.prompt, source.appends) if source.prompt else convert,
        options={"format": source.format, "where": vars(source.where), "prompt": source.prompt},
    )


def _place(raw: Path, spec: str, at: str) -> str:
    prefix, equals, path = spec.rpartition("=")
    return f"{prefix}{equals}{_below(raw, path, at)}"


def _below(raw: Path, name: str, at: str) -> Path:
    try:
        return raw if name == "." else below(raw, name, at)
    except UnsafeNameError as error:
        raise SystemExit(str(error)) from error


def train_yaml(mix: Mix, out: Path, title: str) -> str:
    """A base for recipes: ``data.train`` with all sources."""
    lines = [
        f"# {title}: a base for recipes, made by data_prep.mix. Paths start where dslight is run.",
        "data:",
        "  train:",
    ]
    for name, source in mix.sources.items():
        lines.append(f"  - {{root: {json.dumps(str(out / name))}, weight: {source.weight}}}")
    return "\n".join(lines) + "\n"


def join(mix: Mix, out: Path) -> bool:
    """Write the manifest of ``out`` that names the shards of all sources, if there is one weight; says whether."""
    if (out / MANIFEST).exists() and Manifest.load(out).meta.get("program") != "data_prep.mix":
        raise SystemExit(f"{out / MANIFEST}: is the manifest of other shards; write to another folder")
    if any(source.weight != 1 for source in mix.sources.values()):
        (out / MANIFEST).unlink(missing_ok=True)  # it would leave the weights out
        return False
    parts = {name: Manifest.load(out / name) for name in mix.sources}
    shards = [replace(shard, name=f"{name}/{shard.name}") for name, part in parts.items() for shard in part.shards]
    Manifest(tuple(shards), {"program": "data_prep.mix", "sources": list(parts)}).save(out)
    return True


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("mix", type=Path, help="the YAML file, see data_prep/mixes")
    parser.add_argument("--raw", type=Path, required=True, help="folder that its paths start from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="SOURCE", help="make these sources now, others another time")
    parser.add_argument("--fraction", type=float, default=1.0, help="of each source, to try a mix out")
    add_arguments(parser)
    args = parser.parse_args(argv)
    mix = Mix.load(args.mix)
    if not 0 < args.fraction <= 1:
        raise SystemExit(f"--fraction: {args.fraction}; above 0, up to 1")
    unknown = sorted(set(args.only or ()) - set(mix.sources))
    if unknown:
        raise SystemExit(f"--only: {args.mix} has no {unknown[0]}; it has {', '.join(mix.sources)}")
    jobs = {  # all of them are set up before the first starts, so that what is missing is said at once
        name: job_of(name, source, mix, args.raw, args.out, args.fraction)
        for name, source in mix.sources.items()
        if args.only is None or name in args.only
    }
    for job in jobs.values():
        if not job.entries.there:
            raise SystemExit(f"{args.mix}: sources.{job.name}.json: there is no {job.entries.named}")
    engine = engine_of(args)
    for job in jobs.values():
        ingest(replace(job, engine=engine, max_bad=args.max_bad, shard_entries=args.shard_entries))
    missing = [name for name in mix.sources if not (args.out / name / MANIFEST).exists()]
    if missing:
        print(f"{args.out}: still to be made: {', '.join(missing)}")
        return
    _write_report(mix, args.out)
    write_atomically(args.out / "train.yaml", train_yaml(mix, args.out, args.mix.stem).encode())
    print(f"{args.out}: in a recipe, bases: [{args.out / 'train.yaml'}]" + " (from the recipe's folder)")
    if join(mix, args.out):
        print(f"{args.out}: or data.train: [{args.out}]")


def _write_report(mix: Mix, out: Path) -> None:
    rows = {name: json.loads((out / name / REPORT).read_text()) for name in mix.sources}
    for name, row in rows.items():
        row["wanted"] = mix.sources[name].count
        print(f"  {name:20} {row['records']:>9,} of {row['wanted'] or row['entries']:>9,}")
    print(f"  {'all':20} {sum(row['records'] for row in rows.values()):>9,}")
    write_atomically(out / REPORT, (json.dumps(rows, indent=1) + "\n").encode())


if __name__ == "__main__":
    program(main)
