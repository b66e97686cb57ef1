"""Convert data in any form to shards, and look at them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.processes import program
from data_prep.report import REPORT, described, gigabytes
from dslight.data.shards import Manifest
from dslight.files.typed import read_json_if_there
from dslight.verbs import parse_verb


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser, and that of each verb."""
    from data_prep.convert import add_convert_arguments

    parser = argparse.ArgumentParser(prog="dslight data", description=__doc__, allow_abbrev=False)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    convert = "convert data in any form to shards; says which form it found, and shows the first entries"
    add_convert_arguments(verbs.add_parser("convert", help=convert, description=convert, allow_abbrev=False))
    info = verbs.add_parser("info", help="what folders of shards hold, and where it came from", allow_abbrev=False)
    info.add_argument("roots", nargs="+", type=Path, metavar="FOLDER")
    info.add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser("tokenize", help="keep the tokens of a recipe's training text: data_prep.tokenize", add_help=False)
    verbs.add_parser("verify", help="read every byte and name what is damaged: data_prep.verify", add_help=False)
    verbs.add_parser("inspect", help="some records as a page: data_prep.inspect", add_help=False)
    return parser, verbs.choices


def main(argv: Sequence[str]) -> None:
    """Run one verb.

    Raises:
        SystemExit: with what is wrong, in a sentence.
    """
    arguments = list(argv)
    if arguments[:1] == ["verify"]:
        from data_prep.verify import main as verify

        program(partial(verify, arguments[1:]))
    elif arguments[:1] == ["tokenize"]:
        from data_prep.tokenize import main as tokenize

        program(partial(tokenize, arguments[1:]))
    elif arguments[:1] == ["inspect"]:
        from data_prep.inspect import main as inspect

        program(partial(inspect, arguments[1:]))
    else:
        args = parse_verb(*_parser(), arguments)
        program(partial(_run, args))


def _run(args: argparse.Namespace) -> None:
    if args.verb == "convert":
        from data_prep.convert import convert

        convert(args)
        return
    found = [_info(root) for root in args.roots]
    print(json.dumps(found, indent=2) if args.json else "\n".join(map(_said, found)))


def _info(root: Path) -> dict[str, Any]:
    """What a folder holds.

    Raises:
        ShardError: it holds no finished shards.
    """
    manifest = Manifest.load(root)
    return {
        "root": str(root),
        "records": sum(shard.records for shard in manifest.shards),
        "questions": sum(shard.questions for shard in manifest.shards),
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "digest": manifest.digest,
        "made_by": manifest.meta,
        "report": read_json_if_there(root / REPORT, dict[str, Any]) or {},
    }


def _said(info: dict[str, Any]) -> str:
    meta, report = info["made_by"], info["report"]
    questions = f" with {info['questions']:,} questions" if info["questions"] else ""
    lines = [
        f"{info['root']}: {info['records']:,} records{questions}, {gigabytes(info['bytes'])} in {info['shards']} shards"
    ]
    if meta.get("program"):
        source = f" of {meta['file']}" if meta.get("file") else ""
        entries = f", {meta['entries']:,} entries" if isinstance(meta.get("entries"), int) else ""
        lines.append(f"  made by {meta['program']}{source}{entries}; {meta.get('quarantined', 0)} set aside")
    if {"records", "images", "text_only", "bytes", "shards", "seconds", "shards_of_earlier_runs"} <= report.keys():
        lines += [f"  {line}" for line in described(Path(info["root"]), report).splitlines()]
    return "\n".join(lines)
