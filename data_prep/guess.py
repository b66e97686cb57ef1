"""Which format a source is in, and why that is thought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data_prep.entries import RawEntry, SourceError, read_entries
from data_prep.forms import form_of
from data_prep.report import shortened
from dslight.data.shards import MANIFEST, Manifest, ShardError
from dslight.data.shards.foreign import IMAGE_ENDING

FORMATS = {
    "llava": "LLaVA's json or jsonl, its text kept verbatim",
    "messages": "json or jsonl of chats in any other form",
    "tables": "parquet or arrow of Hugging Face",
    "img2dataset": "tars that img2dataset finished",
    "tars": "WebDataset tars of any other tool",
    "files": "a folder of pictures, each with its caption as .txt",
}
_JSON = (".json", ".jsonl", ".ndjson")
_TABLES = (".parquet", ".arrow")
_LOOKED_AT = 50


@dataclass(frozen=True)
class Guess:
    """A format, why, and the files or folders that are meant."""

    format: str
    why: str
    sources: tuple[str, ...]


def guess(sources: Sequence[str]) -> Guess:
    """The format of sources, by their endings, their first bytes and their first entries.

    Raises:
        SourceError: it cannot be told; or they are shards already.
    """
    first = sources[0]
    if "://" in first or any(character in first for character in "*?["):
        return _by_ending(sources, first)
    path = Path(first)
    if not path.exists():
        raise SourceError(f"{first}: there is no such file or folder (seen from {Path.cwd()})")
    if path.is_dir():
        return _folder(path, sources)
    return _by_ending(sources, first)


def _by_ending(sources: Sequence[str], first: str) -> Guess:
    name = first.lower()
    if name.endswith(_TABLES):
        return Guess("tables", f"it ends in {Path(name).suffix}", tuple(sources))
    if name.endswith(".tar"):
        return Guess("tars", "it ends in .tar", tuple(sources))
    if "://" in first:
        return Guess("tables", "of what lies behind a URL, only tables are read where they are", tuple(sources))
    if name.removesuffix(".gz").removesuffix(".zst").endswith(_JSON):
        return _entries(first)
    with open(first, "rb") as file:
        start = file.read(6)
    if start.startswith((b"PAR1", b"ARROW1")):
        return Guess("tables", f"its first bytes are {start!r}", tuple(sources))
    raise SourceError(f"{first}: its ending tells no format; name it: --format {'|'.join(FORMATS)}")


def _folder(path: Path, sources: Sequence[str]) -> Guess:
    if (path / MANIFEST).exists():
        try:
            if not Manifest.load(path).meta.get("indexed_in_place"):
                raise SourceError(f"{path}: these are shards of dslight already: data.train: [{path}]")
        except ShardError:  # the manifest.json of somebody else
            pass
    if any(path.glob("*.tar")):
        if any(path.glob("*_stats.json")):
            return Guess("img2dataset", "it holds tars and a _stats.json of each", tuple(sources))
        return Guess("tars", "it holds tars", tuple(sources))
    tables = next((file for ending in _TABLES for file in path.rglob(f"*{ending}")), None)
    if tables is not None:
        return Guess("tables", f"it holds {tables.relative_to(path)}", tuple(sources))
    files = sorted(file for file in path.iterdir() if _is_json(file) and file.name != "dataset_info.json")
    if len(files) == 1:
        found = _entries(str(files[0]))
        return Guess(found.format, f"it holds {files[0].name}, and {found.why}", found.sources)
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise SourceError(f"{path}: holds {len(files)} files of entries ({names}); name one of them")
    pictures = islice((file for file in path.rglob("*") if IMAGE_ENDING.fullmatch(file.suffix[1:].lower())), _LOOKED_AT)
    if picture := next((file for file in pictures if file.with_suffix(".txt").exists()), None):
        return Guess("files", f"it holds {picture.relative_to(path)} and a .txt beside it", tuple(sources))
    raise SourceError(f"{path}: holds no tars, tables, file of entries, or pictures with a .txt each")


def _is_json(file: Path) -> bool:
    return file.name.lower().removesuffix(".gz").removesuffix(".zst").endswith(_JSON)


def _entries(file: str) -> Guess:
    entries = list(islice(read_entries(Path(file)), _LOOKED_AT))
    if not entries:
        raise SourceError(f"{file}: has no entry")
    if all(map(_is_llavas, entries)):
        return Guess("llava", f"its first entries are {_what(entries)}", (file,))
    if form := next(filter(None, map(form_of, entries)), None):
        return Guess("messages", f"its first entries are {form.name}", (file,))
    keys = {key for entry in entries for key, value in entry.items() if value is not None}
    raise SourceError(
        f"{file}: its first entries have the keys {shortened(', '.join(sorted(keys)))}, which are of no form that is "
        f"known: messages, conversations, texts, instruction and output, question and answer, image and caption"
    )


def _what(entries: Sequence[RawEntry]) -> str:
    return "questions" if any("questions" in entry for entry in entries) else "conversations of human and gpt"


def _is_llavas(entry: RawEntry) -> bool:
    if any(entry.get(key) for key in ("system", "objects", "messages", "video", "videos")):
        return False
    if "questions" in entry:
        return True
    turns = entry.get("conversations")
    if not isinstance(turns, list):
        return False
    return all(isinstance(turn, dict) and turn.get("from") in ("human", "gpt") for turn in turns)
