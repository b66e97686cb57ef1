"""Shards that a program draws, once: records, conversations and questions of them, and the folders of its splits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dslight.data.sample import IMAGE_TOKEN
from dslight.data.shards import MANIFEST, Manifest, ShardWriter

Record = tuple[list[bytes], dict[str, Any]]
"""Images, and what is said of them: its ``id`` is the record's key."""


def conversation(asked: Iterable[tuple[str, str]], picture: bool = True) -> list[dict[str, str]]:
    """LLaVA's turns of questions and answers; a picture stands before the first question."""
    turns = []
    for i, (question, answer) in enumerate(asked):
        first = f"{IMAGE_TOKEN}\n" if picture and i == 0 else ""
        turns += [{"from": "human", "value": first + question}, {"from": "gpt", "value": answer}]
    return turns


def question(key: str, name: str, text: str, answer: str, kind: str = "") -> dict[str, Any]:
    """A question of record ``key``, with its one reference answer."""
    return {"question_id": f"{key}-{name}", "question": text, "answers": [answer], "type": kind}


def write_drawn(
    root: Path, records: Iterable[Record], count: int, meta: dict[str, Any], shard_records: int = 1000
) -> None:
    """Write a folder of shards, or see that it is there.

    Raises:
        SystemExit: it holds something else.
    """
    if (root / MANIFEST).exists():
        if Manifest.load(root).meta == meta:
            print(f"{root}: {count} records of seed {meta.get('seed')} are there already")
            return
        raise SystemExit(f"{root}: holds records made with other arguments; delete the folder or choose another --out")
    with ShardWriter(root, shard_records=shard_records, meta=meta) as writer:
        for images, record in tqdm(records, total=count, desc=root.name):
            writer.write(record["id"], images, record)


def write_splits(
    argv: Sequence[str] | None,
    about: str,
    meta: dict[str, Any],
    counts: tuple[int, int],
    records: Callable[[str, int, int], Iterable[Record]],
    shard_records: int = 1000,
) -> Path:
    """The program that writes ``train``, ``val`` and ``test``, as its command line says. Returns ``--out``.

    Args:
        argv: of the command line.
        about: what ``--help`` says of it.
        meta: the program and its version, for the manifests.
        counts: pages of train, and of val and of test, unless others are asked for.
        records: of (split, how many, seed).
        shard_records: of a shard.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train-pages", type=int, default=counts[0])
    parser.add_argument("--val-pages", type=int, default=counts[1], help="pages of val, and of test")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for split, count in (("train", args.train_pages), ("val", args.val_pages), ("test", args.val_pages)):
        drawn = records(split, count, args.seed)
        write_drawn(args.out / split, drawn, count, {**meta, "pages": count, "seed": args.seed}, shard_records)
    return args.out
