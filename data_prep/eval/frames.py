"""The videos of an evaluation set, found by the names that its files give them; what is made of one is
:mod:`dslight.data.video`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dslight.data.sample import BadSample

_VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".MP4")


@dataclass(frozen=True)
class Videos:
    """Folders of videos. A video may also lie there as a folder of its frames, named in their order."""

    roots: Sequence[Path]

    def find(self, name: str) -> Path:
        """The file, or the folder of frames, called ``name``, with or without its first folders and its ending.

        Raises:
            BadSample: there is none.
        """
        parts = PurePosixPath(name).parts
        if ".." in parts or PurePosixPath(name).is_absolute():
            raise BadSample(f"video {name!r}: must be a path below --images", "video-name")
        stem = PurePosixPath(name).suffix in _VIDEO and name.removesuffix(PurePosixPath(name).suffix)
        for root in self.roots:
            for i in range(len(parts)):
                path = root.joinpath(*parts[i:])
                found = [path, *(path.with_name(path.name + ending) for ending in _VIDEO)]
                found += [path.with_suffix("")] if stem else []
                for candidate in found:
                    if candidate.exists():
                        return candidate
        raise BadSample(f"video {name!r}: there is none", "video-missing")
