"""Hugging Face's parquet and arrow files to shards: LLaVA-OneVision-Data, FineVision, the_cauldron, chats, captions.

Run, on what was downloaded or where it lies (whatever fsspec opens)::

    python -m data_prep.tables FineVision/ai2d_merged --out data/ai2d --where "relevance_min>=4"
    python -m data_prep.tables "hf://datasets/lmms-lab/LLaVA-OneVision-Data/ai2d(gpt4v)/*.parquet" --out data/ai2d

A source is a file, a folder (all .parquet or .arrow below it, in order of their names) or a pattern; several are one
after another. A row is an entry in any of the forms of :mod:`data_prep.messages`, its pictures in columns of type
Image (struct of ``bytes`` and ``path``), lists of them, or binary columns (``jpg``, as img2dataset's parquet has).
``--where`` takes the rows whose column is to a value as it says, none where it is empty; those left out are counted.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.check import Entry
from data_prep.engines import engine_of
from data_prep.entries import RawEntry, SourceError
from data_prep.images import Images
from data_prep.ingest import Job, add_arguments, ingest, key_name
from data_prep.media import is_empty
from data_prep.messages import SYSTEMS, MessagesEntry, System
from data_prep.places import Finder
from data_prep.processes import program
from data_prep.rows import UNREADABLE, Condition, Table, Tables, arrow
from dslight.data.sample import BadSample

_ENDINGS = (".parquet", ".arrow")
_CONDITION = re.compile(r"\s*(\w[\w.-]*)\s*(>=|<=|!=|==|>|<|=)\s*(.*?)\s*")
_BINARY = ("jpg", "jpeg", "png", "webp", "image", "images", "img")


@dataclass(frozen=True)
class TableEntry:
    """Makes an entry of a row: the pictures of ``columns``, in this order, and the text as in any chat."""

    columns: tuple[str, ...]
    system: System = "prepend"

    def __call__(self, raw: RawEntry) -> Entry:
        """See :data:`data_prep.check.Convert`."""
        if UNREADABLE in raw:
            raise BadSample(raw[UNREADABLE], "no-text")
        images: list[Any] = []
        for name in self.columns:
            value = raw.get(name)
            images += value if isinstance(value, list) else [] if is_empty(value) else [value]
        rest = {name: value for name, value in raw.items() if name not in self.columns}
        entry = MessagesEntry(self.system)({**rest, "images": images} if images else rest)
        return entry._replace(read={*(entry.read or ()), *self.columns})


def files_of(sources: Sequence[str]) -> list[str]:
    """The files that sources name, as paths or URLs.

    Raises:
        SourceError: one names none.
    """
    found: list[str] = []
    for source in sources:
        files = _remote(source) if "://" in source else _local(source)
        if not files:
            raise SourceError(f"{source}: names no .parquet or .arrow file (seen from {Path.cwd()})")
        found += files
    return found


def _local(source: str) -> list[str]:
    path = Path(source)
    if path.is_dir():
        files = [file for ending in _ENDINGS for file in path.rglob(f"*{ending}")]
        visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return [str(file) for file in sorted(visible) if not file.name.startswith("cache-")]
    if path.is_file() or not set(source) & set("*?["):
        return [source] if path.is_file() else []
    base = Path("/" if source.startswith("/") else ".")
    return [str(file) for file in sorted(base.glob(source.lstrip("/")))]


def _remote(source: str) -> list[str]:
    import fsspec

    try:
        if not set(source) & set("*?[") and source.endswith(_ENDINGS):
            return [source]
        system, path = fsspec.core.url_to_fs(source)
        files = system.glob(path) if set(path) & set("*?[") else system.find(path)
        return sorted(system.unstrip_protocol(file) for file in files if file.endswith(_ENDINGS))
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(f"{source}: cannot be listed ({type(error).__name__}: {str(error)[:160]})") from error


def condition(text: str) -> Condition:
    """What ``--where`` says.

    Raises:
        SourceError: it is no condition.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise SourceError(f"--where: {text!r}; as in relevance_min>=4")
    column, operator, value = match.groups()
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value.strip("'\"")
    return Condition(column, "==" if operator == "=" else operator, parsed)


def open_tables(sources: Sequence[str], where: Sequence[str] = ()) -> tuple[Tables, Any]:
    """The tables of ``sources``, and their schema, which all have.

    Raises:
        SourceError: there are none, they have other columns than the first, or a condition names none of them.
    """
    tables = tuple(Table.open(file) for file in files_of(sources))
    schema = tables[0].schema
    for table in tables[1:]:
        if (names := table.schema.names) != schema.names:
            other = sorted(set(names) ^ set(schema.names)) or ["the order"]
            raise SourceError(f"{table.url}: its columns are not those of {tables[0].url}: {', '.join(other)}")
    conditions = tuple(condition(text) for text in where)
    for one in conditions:
        if one.column not in schema.names:
            raise SourceError(f"--where: there is no column {one.column}, but {', '.join(schema.names)}")
        for table in tables:
            one.check(table.schema.field(one.column).type)
    return Tables(tables, conditions), schema


def image_columns(schema: Any, named: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns of pictures: those that are named; else the only one, or ``image`` and ``images``.

    Raises:
        SourceError: there are several, and none is named; or a name is none.
    """
    found = [field.name for field in schema if _is_image(field.type, field.name)]
    if missing := [name for name in named if name not in schema.names]:
        raise SourceError(f"--image-column: there is no column {missing[0]}, but {', '.join(schema.names)}")
    if named:
        return tuple(named)
    usual = [name for name in found if name in ("image", "images")]
    if len(found) > 1 and len(usual) != len(found):
        raise SourceError(
            f"there are several columns of pictures ({', '.join(found)}); name those to take, in their order, with "
            "--image-column"
        )
    return tuple(found)


def _is_image(kind: Any, name: str) -> bool:
    types = arrow().types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _is_image(kind.value_type, name)
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and set(names) <= {"bytes", "path"}
    return name in _BINARY and (types.is_binary(kind) or types.is_large_binary(kind))


def table_job(args: argparse.Namespace, sources: Sequence[str]) -> Job:
    """The job that arguments describe."""
    tables, schema = open_tables(sources, args.where)
    columns = image_columns(schema, args.image_column)
    in_place: dict[str, Any] = {}
    if args.in_place:
        if urls := [table.url for table in tables.tables if "://" in table.url]:
            raise SourceError(
                f"--in-place: {urls[0]} is no local file, and pictures are read in training from those alone"
            )
        numbers = {table.url: number for number, table in enumerate(tables.tables)}
        in_place["places"] = partial(Finder, columns=columns, numbers=numbers)
        in_place["files"] = [
            {"file": _seen_from(args.out, table.url), "bytes": table.bytes, "end_sha256": table.digest}
            for table in tables.tables
        ]
    return Job(
        **in_place,
        program="data_prep.tables",
        out=args.out,
        name=args.name or key_name(args.out),
        entries=tables,
        images=Images.open(args.images),
        convert=TableEntry(columns, args.system),
        options={"system": args.system, "image_columns": list(columns)},
        shard_entries=args.shard_entries,
        max_bad=args.max_bad,
        engine=engine_of(args),
    )


def _seen_from(out: Path, file: str) -> str:
    """A file by its name below a folder, or by its whole path where it lies elsewhere."""
    path, folder = Path(file).resolve(), out.resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of tables alone."""
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN>=VALUE", help="rows to take; repeatable"
    )
    parser.add_argument(
        "--image-column", action="append", default=[], metavar="COLUMN", help="of pictures, where there are several"
    )
    parser.add_argument(
        "--in-place", action="store_true", help="leave the pictures in the tables, and read them there in training"
    )


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file, a folder, a pattern, or a URL of these")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="first part of every key: a-z, 0-9, _ and - (default: from the name of --out)")
    parser.add_argument(
        "--images", action="append", default=[], metavar="[PREFIX=]PATH", help="of rows that hold paths of pictures"
    )
    parser.add_argument("--system", choices=SYSTEMS, default="prepend", help="what happens to system texts")
    add_table_arguments(parser)
    add_arguments(parser)
    args = parser.parse_args(argv)
    ingest(table_job(args, args.sources))


if __name__ == "__main__":
    program(main)
