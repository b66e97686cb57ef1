"""A folder of pictures, each with its caption beside it (``a.jpg``, ``a.txt``): img2dataset's output as files, and what
tools for fine-tuning image models write."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from data_prep.check import Entry
from data_prep.entries import RawEntry, SourceError
from dslight.data.sample import IMAGE_TOKEN, BadSample
from dslight.data.shards.foreign import IMAGE_ENDING


@dataclass(frozen=True)
class Captioned:
    """The pictures of a folder as the entries of a source; see :class:`data_prep.entries.Source`."""

    root: Path

    @cached_property
    def names(self) -> list[str]:
        """The pictures, below the folder, in order."""
        files = (file for file in self.root.rglob("*") if IMAGE_ENDING.fullmatch(file.suffix[1:].lower()))
        found = sorted(str(file.relative_to(self.root)) for file in files if not file.name.startswith("."))
        if not found:
            raise SourceError(f"{self.root}: holds no pictures")
        return found

    @property
    def there(self) -> bool:
        """See :class:`data_prep.entries.Source`."""
        return self.root.is_dir()

    @property
    def named(self) -> str:
        """See :class:`data_prep.entries.Source`."""
        return str(self.root)

    @property
    def bytes(self) -> int | None:
        """See :class:`data_prep.entries.Source`."""
        return sum((self.root / name).stat().st_size for name in self.names)

    @property
    def reads(self) -> Sequence[Path]:
        """See :class:`data_prep.entries.Source`."""
        return (self.root,)

    def identity(self) -> dict[str, Any]:
        """See :class:`data_prep.entries.Source`: names and sizes."""
        files = [f"{name} {(self.root / name).stat().st_size}" for name in self.names]
        text = "\n".join(files).encode("utf-8", "surrogateescape")
        return {"file": self.root.name, "files": len(files), "files_sha256": hashlib.sha256(text).hexdigest()}

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[RawEntry]:
        return map(_entry, self.names)

    def batches(self, size: int, done: set[int]) -> Iterator[tuple[int, Sequence[RawEntry]]]:
        """See :class:`data_prep.entries.Source`."""
        for number, start in enumerate(range(0, len(self), size)):
            if number not in done:
                yield number, [_entry(name) for name in self.names[start : start + size]]


def _entry(name: str) -> RawEntry:
    return {"id": name.rpartition(".")[0], "image": name}


@dataclass(frozen=True)
class CaptionedEntry:
    """Makes an entry of a picture below ``root`` and the text beside it."""

    root: Path

    def __call__(self, raw: RawEntry) -> Entry:
        """See :data:`data_prep.check.Convert`."""
        path = (self.root / raw["image"]).with_suffix(".txt")
        try:
            caption = path.read_text(encoding="utf-8-sig").strip()
        except OSError:
            raise BadSample(f"there is no {path.name} beside it", "no-text") from None
        except UnicodeDecodeError as error:
            raise BadSample(f"{path.name}: is not UTF-8 ({error})", "no-text") from error
        turns = [{"from": "human", "value": IMAGE_TOKEN}, {"from": "gpt", "value": caption}]
        return Entry({"id": raw["id"], "conversations": turns}, [raw["image"]], read={"id", "image"})
