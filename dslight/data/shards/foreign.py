"""Plain WebDataset tars of other tools (img2dataset, OpenCLIP), indexed where they lie."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from dslight.data.shards.format import (
    BLOCK,
    Index,
    Manifest,
    Member,
    Record,
    ShardError,
    ShardInfo,
    file_sha256,
    index_name,
    member_hash,
    padded,
    sha256,
    write_atomically,
)


def index_tars(root: str | Path, meta: dict[str, Any] | None = None) -> Manifest:
    """Index plain WebDataset tars where they lie (img2dataset's, OpenCLIP's): an ``.idx.npz`` beside each, and the
    manifest.

    Reads every byte once. A record is, as WebDataset says, the run of members whose names agree up to the first dot of
    the file name. Nothing is skipped: a cut tar, a repeated key or a count that differs from img2dataset's
    ``_stats.json`` is an error.

    Raises:
        ShardError: naming tar and key.
    """
    root = Path(root)
    paths = sorted(root.glob("*.tar"))
    if not paths:
        raise ShardError(f"{root}: holds no .tar file")
    seen: set[str] = set()
    shards = []
    for path in paths:
        records = _scan_tar(path)
        for record in records:
            if record.key in seen:
                raise ShardError(f"{path}: {record.key}: the key occurs twice, and WebDataset would merge or drop one")
            seen.add(record.key)
        stats = root / f"{path.stem}_stats.json"
        if stats.exists() and json.loads(stats.read_text()).get("successes", len(records)) != len(records):
            raise ShardError(f"{path}: has {len(records)} records, {stats.name} says another number; the tar was cut")
        index = Index.build(records)
        data = index.to_bytes()
        write_atomically(root / index_name(path.name), data)
        shards.append(
            ShardInfo(
                name=path.name,
                bytes=path.stat().st_size,
                sha256=file_sha256(path),
                records=len(index),
                questions=int(index.questions.sum()),
                index_sha256=sha256(data),
            )
        )
    manifest = Manifest(tuple(shards), {"indexed_in_place": True, **(meta or {})})
    manifest.save(root)
    return manifest


def _scan_tar(path: Path) -> list[Record]:
    records: list[Record] = []
    key, members, questions = "", [], 0
    end = 0
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for header in tar:
                end = header.offset_data + padded(header.size)
                if not header.isfile():
                    continue
                folder, _, name = header.name.rpartition("/")
                stem, _, extension = name.partition(".")
                full = f"{folder}/{stem}" if folder else stem
                if full != key and members:
                    records.append(Record(key, tuple(members), questions))
                    members, questions = [], 0
                key, extension = full, extension.lower()
                if any(extension == member.extension for member in members):
                    raise ShardError(f"{path}: {key}: has .{extension} twice; two records of one key would be merged")
                file.seek(header.offset_data)
                data = file.read(header.size)
                if len(data) != header.size:
                    raise ShardError(f"{path}: {header.name}: the tar was cut inside this member")
                members.append(Member(extension, header.offset_data, header.size, member_hash(data)))
                if extension == "json":
                    questions = _count_questions(data)
            file.seek(end)
            rest = file.read()
    except (tarfile.TarError, OSError) as error:
        raise ShardError(f"{path}: after {key or 'the start'}: {error}") from error
    if len(rest) < 2 * BLOCK or rest.strip(b"\0"):
        raise ShardError(f"{path}: does not end as a tar after {key or 'the start'}; it was cut or damaged there")
    if members:
        records.append(Record(key, tuple(members), questions))
    return records


def _count_questions(data: bytes) -> int:
    try:
        record = json.loads(data)
    except ValueError:
        return 0
    return len(record.get("questions", ())) if isinstance(record, dict) else 0
