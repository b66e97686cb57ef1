"""Frames of a video as images: N of them, spread evenly, one by one or tiled into a square.

The paper asks about videos with a model that has seen none: 6 frames, tiled 2 x 3, resized to a square (Table 3). Which
frames it takes is not said; here they are those in the middle of N equal parts of the time, which spares the black
first and last frame. Frames are found by time and not by number, so a variable frame rate does no harm, and each is
reached by seeking, so an hour costs what a minute does. The images are JPEG of quality 95 without colour subsampling.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from PIL import Image, ImageOps

from dslight.data.sample import BadSample

Layout = Literal["tile", "images"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
SIDE = 1344
"""Of the square: the 4 x 4 crops of 336 pixels that the largest of the paper's models cut."""

_VIDEO = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".MP4")
_IMAGE = (".jpg", ".jpeg", ".png", ".webp")


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


@dataclass(frozen=True)
class Sampling:
    """What is made of a video.

    Attributes:
        frames: how many of it are taken.
        layout: ``images``, one by one, or ``tile``, rows of three in one square.
        side: of that square, in pixels.
    """

    frames: int = 6
    layout: Layout = "tile"
    side: int = SIDE

    def images(self, path: Path, segment: Sequence[float] | None = None) -> list[bytes]:
        """Encoded images of a video or a folder of frames.

        Raises:
            BadSample: it cannot be read.
        """
        frames = list(_folder_frames(path, self.frames) if path.is_dir() else video_frames(path, self.frames, segment))
        if self.layout == "tile":
            frames = [tile(frames).resize((self.side, self.side), Image.Resampling.BICUBIC)]
        return [_encoded(frame) for frame in frames]


def tile(frames: Sequence[Image.Image], columns: int = 3) -> Image.Image:
    """Frames of one size row by row, ``columns`` beside each other; what is left of the last row is black."""
    width, height = frames[0].size
    columns = min(columns, len(frames))
    whole = Image.new("RGB", (columns * width, -(-len(frames) // columns) * height))
    for i, frame in enumerate(frames):
        whole.paste(frame.resize((width, height)), (i % columns * width, i // columns * height))
    return whole


def video_frames(path: Path, count: int, segment: Sequence[float] | None = None) -> Iterator[Image.Image]:
    """The frames shown in the middle of ``count`` equal parts of a video, or of its ``segment`` (seconds).

    Raises:
        BadSample: it does not decode.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadSample(f"video {path.name!r}: has no pictures", "video-damaged")
            first, last = _span(container)
            start, end = segment or (0.0, last - first)
            end = min(end, last - first)
            if start >= end:
                where = f"{path.name!r}: segment {start:g} to {end:g} s of {last - first:g} s"
                raise BadSample(f"video {where}", "video-segment")
            for i in range(count):
                yield _frame_at(path, container, first + start + (end - start) * (i + 0.5) / count)
    except (FFmpegError, OSError) as error:
        raise BadSample(f"video {path.name!r}: does not decode: {error}", "video-damaged") from error


def _span(container: Any) -> tuple[float, float]:
    """When a video begins and ends, in its own seconds."""
    stream = container.streams.video[0]
    first = float((stream.start_time or 0) * stream.time_base)
    if stream.duration is not None:
        return first, first + float(stream.duration * stream.time_base)
    # matroska says when the last frame ends, others how long it takes, and either may have been cut off
    times: list[float] = []
    if container.duration is not None:
        container.seek(int((first + container.duration / 1e6) / stream.time_base), stream=stream, backward=True)
        times = [frame.time for frame in container.decode(stream) if frame.time is not None]
    if not times:
        container.seek(stream.start_time or 0, stream=stream, backward=True)
        times = [frame.time for frame in container.decode(stream) if frame.time is not None]
    return first, max(times, default=first) + float(1 / (stream.average_rate or 1000))


def _frame_at(path: Path, container: Any, time: float) -> Image.Image:
    """The frame that is shown at ``time``: the last that begins by then."""
    import av

    stream = container.streams.video[0]
    for earlier in (0, 10):  # seconds: a transport stream is entered anywhere, and the next key frame may be too late
        container.seek(int((time - earlier) / stream.time_base), stream=stream, backward=True)
        # what is decoded before the first key frame is made of other pictures
        frames = dropwhile(lambda frame: not frame.key_frame, container.decode(stream))
        if (shown := _last_by(frames, time)) is not None:
            return _upright(shown)
    with av.open(str(path)) as fresh:  # an index that is wrong, or none: from the beginning
        frames = fresh.decode(fresh.streams.video[0])
        first = next(frames, None)
        if first is None:
            raise BadSample(f"video {path.name!r}: not one frame decodes", "video-damaged")
        return _upright(_last_by(frames, time) or first)


def _last_by(frames: Iterator[Any], time: float) -> Any:
    """The last frame that begins by ``time``, if one does."""
    shown = deque(takewhile(lambda frame: frame.time is None or frame.time <= time, frames), 1)
    return shown[0] if shown else None


def _upright(frame: Any) -> Image.Image:
    """A frame turned as a player shows it (telephones store theirs lying)."""
    image = frame.to_image()
    turn = getattr(frame, "rotation", 0)
    return image.rotate(turn, expand=True) if turn else image


def _folder_frames(path: Path, count: int) -> Iterator[Image.Image]:
    def number(file: Path) -> list[tuple[int, str]]:
        return [(int(digits or 0), word) for word, digits in re.findall(r"(\D*)(\d*)", file.stem)]

    files = sorted((file for file in path.iterdir() if file.suffix.lower() in _IMAGE), key=number)
    if not files:
        raise BadSample(f"video {path.name!r}: its folder holds no frames", "video-missing")
    for i in range(count):
        file = files[int((i + 0.5) * len(files) / count)]
        try:
            with Image.open(file) as image:
                yield ImageOps.exif_transpose(image).convert("RGB")
        except OSError as error:
            raise BadSample(f"frame {path.name}/{file.name}: does not decode: {error}", "image-damaged") from error


def _encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()
