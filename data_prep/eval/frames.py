"""The videos of an evaluation set, found by the names that its files give them; what is made of one is
:mod:`dslight.data.video`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dslight.data.sample import BadSample
from dslight.names import UnsafeNameError, below, checked

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
        try:
            parts = checked(name, "the name of a video").parts
        except UnsafeNameError as error:
            raise BadSample(str(error), "video-name") from error
        stem = PurePosixPath(name).suffix in _VIDEO and name.removesuffix(PurePosixPath(name).suffix)
        for root in self.roots:
            for i in range(len(parts)):
                path = root.joinpath(*parts[i:])
                found = [path, *(path.with_name(path.name + ending) for ending in _VIDEO)]
                found += [path.with_suffix("")] if stem else []
                for candidate in found:
                    if candidate.exists():
                        return _inside(root, candidate)
        raise BadSample(f"video {name!r}: there is none", "video-missing")


def _inside(root: Path, path: Path) -> Path:
    try:
        return below(root, path.relative_to(root).as_posix(), "the name of a video")
    except UnsafeNameError as error:
        raise BadSample(str(error), "video-name") from error
