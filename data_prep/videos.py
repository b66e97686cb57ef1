"""Videos, found by the names that files of entries and of evaluation sets give them; what is made of one is
:mod:`dslight.data.video`'s.

Decided here: a video is decoded when its entry is checked, in a worker, and never to count or to preview more than a
few. How many pictures it becomes is known without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from dslight.data.sample import BadSample
from dslight.data.shards.writer import video_extension
from dslight.data.video import Encoded, Sampling, video_facts
from dslight.limits import at_most
from dslight.names import UnsafeNameError, below, checked

_OF_FRAME, _OF_MOSAIC = 150_000, 600_000
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


@dataclass(frozen=True)
class Film:
    """A video that an entry names, and what is made of it.

    Attributes:
        name: as the entry has it.
        videos: where it is looked for.
        sampling: how many pictures it becomes.
        segment: of it, in seconds; ``None``: all of it.
        keep: whether the file itself is kept, as the only picture; its frames are taken when it is read.
    """

    name: str
    videos: Videos
    sampling: Sampling
    segment: tuple[float, float] | None = None
    keep: bool = False

    @property
    def pictures(self) -> int:
        """How many it becomes."""
        return self.sampling.frames if self.sampling.tile is None and not self.keep else 1

    @property
    def is_there(self) -> bool:
        """Whether there is a video of its name."""
        try:
            return bool(self.videos.find(self.name))
        except BadSample:
            return False

    def __len__(self) -> int:
        """About how many bytes its pictures have."""
        if self.keep:
            return self.videos.find(self.name).stat().st_size
        return self.pictures * (_OF_FRAME if self.sampling.tile is None else _OF_MOSAIC)

    def images(self) -> list[bytes]:
        """Its pictures, encoded.

        Raises:
            BadSample: there is none, or it is cut or damaged.
            SystemExit: PyAV is missing.
        """
        try:
            if self.keep:
                return [self._whole()]
            return self.sampling.images(self.videos.find(self.name), self.segment)
        except ImportError:
            raise SystemExit("reading videos needs PyAV; pip install 'dslight[video]'") from None

    def times(self) -> list[float]:
        """When each of its pictures is shown, in seconds; none of a mosaic, and of frames that lie in a folder."""
        path = self.videos.find(self.name)
        if self.keep or self.sampling.tile is not None or path.is_dir():
            return []
        length, count = float(video_facts(path, self.segment)["seconds"]), self.sampling.frames
        return [length * (i + 0.5) / count for i in range(count)]

    def _whole(self) -> bytes:
        path = self.videos.find(self.name)
        if path.is_dir():
            raise BadSample(f"video {self.name!r}: is a folder of frames, of which there is no file", "video-name")
        what = f"video {self.name!r}: has {path.stat().st_size:,} bytes"
        at_most("member_bytes", path.stat().st_size, what, partial(BadSample, reason="video-too-large"))
        data = path.read_bytes()
        if video_extension(data) is None:
            raise BadSample(f"video {self.name!r}: is no mp4, mov, webm, mkv or avi", "video-format")
        return data

    def facts(self, data: bytes) -> dict[str, Any]:
        """What is to be known of the whole file when its frames are counted: their size, how long it is, the segment.

        Raises:
            BadSample: it is cut or damaged.
        """
        segment = {} if self.segment is None else dict(zip(("start", "end"), self.segment, strict=True))
        return {**video_facts(Encoded(self.name, data), self.segment), **segment}


def _inside(root: Path, path: Path) -> Path:
    try:
        return below(root, path.relative_to(root).as_posix(), "the name of a video")
    except UnsafeNameError as error:
        raise BadSample(str(error), "video-name") from error
