"""The files of an evaluation set, found by their official names, and read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dslight.limits import at_most


@dataclass(frozen=True)
class Role:
    """One file of a set.

    Attributes:
        name: what it is.
        pattern: of its official name (case does not count), or several, with ``|`` between them.
        optional: it may be missing.
        many: there may be several.
        beside: it also goes with parquet files of the Hub.
    """

    name: str
    pattern: str
    optional: bool = False
    many: bool = False
    beside: bool = False


@dataclass(frozen=True)
class Files:
    """What was found.

    Attributes:
        found: files by role.
        split: as asked for, or the set's usual one.
        ocr: of TextVQA, ``None`` for none.
        public: beginnings of splits whose answers the authors of this set give away, though they are called tests.
        folders: of pictures.
    """

    found: dict[str, list[Path]]
    split: str = ""
    ocr: Path | None = None
    public: Sequence[str] = ()
    folders: tuple[Path, ...] = ()

    def path(self, role: str) -> Path:
        """The only file of a role."""
        return self.found[role][0]

    def json(self, role: str) -> Any:
        """The content of the only file of a role."""
        return load(self.path(role))

    def has(self, role: str) -> bool:
        """Whether an optional file is there."""
        return bool(self.found[role])

    @property
    def hides(self) -> bool:
        """Whether the answers of the split are kept by its authors."""
        return self.split.startswith(("test", "challenge", "submission")) and not self.split.startswith(
            tuple(self.public)
        )


def load(path: Path) -> Any:
    """The content of a json file.

    Raises:
        SystemExit: it is none.
    """
    try:
        return json.loads(text(path))
    except (ValueError, RecursionError) as error:
        raise SystemExit(f"{path}: not JSON: {error}") from error


def text(path: Path) -> str:
    """The content of a text file, if it is not too large to be read as a whole.

    Raises:
        SystemExit: it is; or it is not UTF-8.
    """
    size = path.stat().st_size
    at_most("file_bytes", size, f"{path}: has {size:,} bytes", SystemExit)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SystemExit(f"{path}: not UTF-8 ({error})") from error


def find(given: Sequence[Path], roles: Sequence[Role], split: str) -> dict[str, list[Path]]:
    """Files by role out of the given files and folders (searched with their folders, for names of ``split``).

    Raises:
        SystemExit: one is missing, or several fit.
    """
    for path in given:
        if not path.exists():
            raise SystemExit(f"--annotations: {str(path)!r} is not there (seen from {Path.cwd()})")
    if len(given) == 1 == len([role for role in roles if not role.optional]) and given[0].is_file():
        return {role.name: [] if role.optional else [given[0]] for role in roles}  # under any name
    files = [path for path in given if path.is_file()]
    files += sorted(path for root in given if root.is_dir() for path in root.rglob("*") if path.is_file())
    return {role.name: _of_role(role, files, split) for role in roles}


def find_beside(given: Sequence[Path], roles: Sequence[Role]) -> dict[str, list[Path]]:
    """The files that also go with parquet files."""
    beside = [role for role in roles if role.beside]
    return find(given, beside, "") if beside else {}


def find_parquet(given: Sequence[Path], split: str | None, usual: Sequence[str]) -> tuple[list[Path], str] | None:
    """The parquet files of one split among the given files and folders, and its name; ``None`` if there are none.

    A split is what stands before ``-00000-of-00001`` in their names, the folder above them included.

    Args:
        given: as for :func:`find`.
        split: as asked for.
        usual: those that are taken, the first that is there, where none is asked for.

    Raises:
        SystemExit: the split is not there, or none of the usual ones is and there are several.
    """
    files = [path for path in given if path.suffix == ".parquet"]
    files += sorted(path for root in given if root.is_dir() for path in root.rglob("*.parquet"))
    if not files:
        return None
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(path.stem.split("-0")[0], []).append(path)
    if split is not None:
        found = splits.get(split) or [path for path in files if _names(f"{path.parent.name}/{path.name}", split)]
        if not found:
            raise SystemExit(f"--split: {split!r} is none of {', '.join(splits)} (by the names of the parquet files)")
        return found, split
    for name in usual:
        if there := [name] if name in splits else [one for one in splits if one.lower().startswith(name)]:
            return [path for one in there for path in splits[one]], name
    if len(splits) > 1:
        raise SystemExit(f"--annotations: parquet files of several splits: {', '.join(splits)}; name one with --split")
    return files, next(iter(splits))


def _of_role(role: Role, files: Sequence[Path], split: str) -> list[Path]:
    patterns = role.pattern.lower().split("|")
    found = [path for path in files if any(fnmatch(path.name.lower(), x) for x in patterns)]
    if len(found) > 1 and split:
        found = [p for p in found if _names(p.name, split)] or [p for p in found if split.lower() in p.name.lower()]
    if not found and not role.optional:
        of = f" of split {split!r}" if split else ""
        raise SystemExit(f"--annotations: no file {role.pattern}{of} (the {role.name}) among {len(files)} files given")
    if len(found) > 1 and not role.many:
        names = ", ".join(path.name for path in found[:4])
        raise SystemExit(f"--annotations: several files are the {role.name}: {names}; name one, or a --split")
    return found


def _names(path: str, split: str) -> bool:
    """Whether a path has the words of a split's name in it, one behind the other: ``test`` is not in ``testdev``."""
    words, wanted = (re.findall(r"[a-z]+|\d+", one.lower().replace("validation", "val")) for one in (path, split))
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))
