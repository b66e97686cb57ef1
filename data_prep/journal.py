"""What is finished of a folder of shards, so that a killed program goes on: a line of head, then a line per shard."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.report import difference, json_lines
from dslight.data.shards import ShardError, ShardInfo
from dslight.data.shards.format import load_index, size_problem
from dslight.data.shards.writer import shard_name
from dslight.files.atomic import write_atomically
from dslight.files.typed import Count, FileError, parse_json
from dslight.limits import at_most

JOURNAL = ".journal.jsonl"


class Journal:
    """The shards of ``out`` that are finished.

    Args:
        out: the folder.
        head: what they are made of; a journal with another one is refused.

    Attributes:
        lines: by number of the shard: ``info`` (:class:`~dslight.data.shards.ShardInfo`), ``counts``, ``bad``.

    Raises:
        SystemExit: naming what differs.
    """

    def __init__(self, out: Path, head: dict[str, Any]) -> None:
        self.path, self.lines = out / JOURNAL, dict[int, dict[str, Any]]()
        self.head: dict[str, Any] = json.loads(json.dumps(head))
        if self.path.is_file():
            self._load(out)
        self.save()

    def _load(self, out: Path) -> None:
        size = self.path.stat().st_size
        at_most("file_bytes", size, f"{self.path}: has {size:,} bytes", SystemExit)
        head, *lines = [_parsed(line) for line in self.path.read_text(encoding="utf-8").splitlines()] or [None]
        if head is None:
            return
        if other := difference(head, self.head):
            raise SystemExit(
                f"{out}: holds unfinished shards of another job: its {other}; run it with the same arguments, or "
                f"delete the folder"
            )
        for line in lines:  # the last one may have been cut
            if line is not None and _intact(out, line):
                self.lines[line["shard"]] = line

    def add(self, line: dict[str, Any]) -> None:
        """A shard is finished."""
        self.lines[line["shard"]] = line
        with self.path.open("ab") as file:
            file.write(json_lines([line]))
            file.flush()
            os.fsync(file.fileno())

    def save(self) -> None:
        """Write all of it anew."""
        write_atomically(self.path, json_lines([self.head, *self.ordered]))

    @property
    def ordered(self) -> list[dict[str, Any]]:
        """The lines by shard."""
        return [self.lines[number] for number in sorted(self.lines)]

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The quarantine."""
        return [entry for line in self.ordered for entry in line["bad"]]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@dataclass(frozen=True)
class _SetAside:
    """A line of the quarantine; other keys name the entry."""

    row: Count
    reason: str
    message: str


@dataclass(frozen=True)
class _Made:
    """A line of a shard."""

    shard: Count
    info: dict[str, Any]
    counts: dict[str, Count]
    bad: list[_SetAside]


def _intact(out: Path, line: dict[str, Any]) -> bool:
    """Whether a line is one, and its shard is there; else the shard is made again."""
    try:
        made = parse_json(json.dumps(line), _Made, out / JOURNAL)
        shard = ShardInfo.parse(made.info, out / JOURNAL)
        if shard.name != shard_name(made.shard):
            return False
        load_index(out, shard)
        return not size_problem(out, shard)
    except (FileError, ShardError):
        return False
