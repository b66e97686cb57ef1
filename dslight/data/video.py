"""Frames of a video as images: N of them, spread evenly, one by one or tiled into a mosaic.

The paper asks about videos with a model that has seen none: 6 frames, tiled 2 x 3, resized to a square (Table 3). Which
frames it takes is not said; here they are those shown in the middle of N equal parts of the time, which spares the
black first and last frame.

Decided here, and why:

* Frames are found by time and not by number, so neither a variable frame rate nor a file that does not count its frames
  does harm. Times are fractions, so that a frame which begins just then is the same one everywhere.
* Each is reached by seeking, so an hour costs what a minute does.
* A file that ends before it says it does, and a picture that had to be guessed, are refused: the frames would not be
  those of the video. (A transport stream does not say how long it is.)
* The images are JPEG of quality 95 without colour subsampling, as they are kept in shards.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EPERM
from fractions import Fraction
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

from PIL import Image

from dslight.data.sample import BadSample, decode_image

Grid = tuple[int, int]
"""(rows, columns), as in :mod:`dslight.types`, which needs torch."""

SIDE = 1344
"""Of the square: the 4 x 4 crops of 336 pixels that the largest of the paper's models cut."""

FRAMES, TILE = 6, (2, 3)
"""The paper's."""

_SLACK = 1
"""Seconds by which a file may be shorter than it says."""
_IMAGE = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Encoded:
    """A video in memory."""

    name: str
    data: bytes


Video = Path | Encoded
"""A file, or its bytes."""


@dataclass(frozen=True)
class Sampling:
    """What is made of a video.

    Attributes:
        frames: how many of it are taken.
        tile: (rows, columns) of the mosaic, filled row by row; ``None``: every frame is an image.
        side: of the square that the mosaic is resized to, in pixels.
    """

    frames: int = FRAMES
    tile: Grid | None = TILE
    side: int = SIDE

    def __post_init__(self) -> None:
        for name in ("frames", "side"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name}: {getattr(self, name)}; 1 or more")
        if self.tile is not None and self.tile[0] * self.tile[1] < self.frames:
            rows, columns = self.tile
            raise ValueError(f"--tile: {rows}x{columns} has room for {rows * columns} frames; --frames: {self.frames}")

    @classmethod
    def of(cls, frames: int | None = None, tile: str | None = None, side: int = SIDE) -> Sampling:
        """As the options of a program say it: ``tile`` is ``none`` or ``ROWSxCOLUMNS`` (default: rows of three), and
        ``frames`` by default as many as the mosaic has room for.

        Raises:
            ValueError: naming the option that is wrong.
        """
        if tile is None:
            frames = FRAMES if frames is None else frames
            return cls(frames, (math.ceil(frames / TILE[1]), min(frames, TILE[1])), side)
        if tile == "none":
            return cls(FRAMES if frames is None else frames, None, side)
        grid = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", tile)
        if grid is None:
            raise ValueError(f"--tile: {tile!r}; rows x columns, such as 2x3, or none")
        rows, columns = int(grid[1]), int(grid[2])
        return cls(rows * columns if frames is None else frames, (rows, columns), side)

    def images(self, path: Video, segment: Sequence[float] | None = None) -> list[bytes]:
        """Encoded images of a video or a folder of frames.

        Raises:
            BadSample: it cannot be read.
            ImportError: of PyAV, which reads videos.
        """
        if isinstance(path, Path) and path.is_dir():
            frames = folder_frames(path, self.frames)
        else:
            frames = video_frames(path, self.frames, segment)
        if self.tile is not None:
            frames = iter([mosaic(frames, self.tile).resize((self.side, self.side), Image.Resampling.BICUBIC)])
        return [_encoded(frame) for frame in frames]  # one after another: those of a large video do not fit into memory


def mosaic(frames: Iterable[Image.Image], tile: Grid) -> Image.Image:
    """Frames of the size of the first row by row, (rows, columns) of them; what is left is black."""
    rest = iter(frames)
    first = next(rest)
    (rows, columns), (width, height) = tile, first.size
    whole = Image.new("RGB", (columns * width, rows * height))
    for i, frame in enumerate(chain([first], rest)):
        whole.paste(frame.resize((width, height)), (i % columns * width, i // columns * height))
    return whole


def folder_frames(path: Path, count: int) -> Iterator[Image.Image]:
    """The pictures in the middle of ``count`` equal parts of a folder, in the order of the numbers in their names.

    Raises:
        BadSample: there are none, or one does not decode.
    """

    def number(file: Path) -> list[tuple[int, str]]:
        return [(int(digits or 0), word) for word, digits in re.findall(r"(\D*)(\d*)", file.stem)]

    files = sorted((file for file in path.iterdir() if file.suffix.lower() in _IMAGE), key=number)
    if not files:
        raise BadSample(f"video {path.name!r}: its folder holds no frames", "video-missing")
    for i in range(count):
        file = files[(2 * i + 1) * len(files) // (2 * count)]
        try:
            yield Image.fromarray(decode_image(file.read_bytes(), alpha="drop"))
        except (OSError, BadSample) as error:
            raise BadSample(f"frame {path.name}/{file.name}: does not decode: {error}", "image-damaged") from error


def video_frames(path: Video, count: int, segment: Sequence[float] | None = None) -> Iterator[Image.Image]:
    """The frames shown in the middle of ``count`` equal parts of a video, or of its ``segment`` (seconds).

    Raises:
        BadSample: it does not decode, or not as far as it says.
        ImportError: of PyAV.
    """
    import av
    from av.error import FFmpegError

    try:
        with av.open(_readable(path), "r") as container:
            if not container.streams.video:
                raise BadSample(f"video {path.name!r}: has no pictures", "video-damaged")
            first, last = _span(path, container)
            start, end = (Fraction(0), last - first) if segment is None else (Fraction(second) for second in segment)
            end = min(end, last - first)
            if start >= end:
                where = f"{path.name!r}: segment {float(start):g} to {float(end):g} s of {float(last - first):g} s"
                raise BadSample(f"video {where}", "video-segment")
            for i in range(count):
                yield _frame_at(path, container, first + start + (end - start) * (2 * i + 1) / (2 * count))
    except (FFmpegError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Video, error: Any) -> BadSample:
    why = "it is cut or damaged" if error.errno == EPERM else error.strerror  # FFmpeg's of a file without an index
    return BadSample(f"video {path.name!r}: does not decode: {why}", "video-damaged")


def video_facts(path: Video, segment: Sequence[float] | None = None) -> dict[str, Any]:
    """``width`` and ``height`` of the frames of a video as they are shown, and ``seconds``, of its segment alone.

    Raises:
        BadSample: it does not decode, or not as far as it says.
        ImportError: of PyAV.
    """
    import av

    frame = next(video_frames(path, 1, segment))
    with av.open(_readable(path), "r") as container:
        first, last = _span(path, container)
    start, end = (0, last - first) if segment is None else (Fraction(second) for second in segment)
    return {"width": frame.width, "height": frame.height, "seconds": float(min(end, last - first) - start)}


def _readable(path: Video) -> str | io.BytesIO:
    return io.BytesIO(path.data) if isinstance(path, Encoded) else str(path)


def _span(path: Video, container: Any) -> tuple[Fraction, Fraction]:
    """When the pictures of a video begin and end, in its own seconds."""
    stream = container.streams.video[0]
    first = (stream.start_time or 0) * stream.time_base
    length = None if stream.duration is None else stream.duration * stream.time_base
    if length is not None and stream.frames and stream.average_rate:  # an AVI that was cut has its length corrected
        length = max(length, stream.frames / stream.average_rate)
    whole = None if container.duration is None else Fraction(container.duration, 1_000_000)
    pictures, everything = _read_to_the_end(container, first + (length or whole or 0))
    # matroska says when the last stream ends, counted from 0; others how long the pictures last
    says, has = (first + length, pictures) if length is not None else (whole or everything, everything)
    if says - has > _SLACK:
        raise BadSample(f"video {path.name!r}: cut at {float(has):.1f} s, it says {float(says):.1f} s", "video-cut")
    return first, pictures if length is None else max(pictures, first + length)  # some count to the last one's begin


def _read_to_the_end(container: Any, near: Fraction) -> tuple[Fraction, Fraction]:
    """When the last picture, and the last of all streams, ends; nothing is decoded for it.

    Args:
        container: an open file.
        near: where to begin, in its seconds.
    """
    stream = container.streams.video[0]
    for begin in (near, Fraction(0)):  # where the end is cut off, nothing is found near it
        container.seek(int(begin / stream.time_base), stream=stream, backward=True)
        pictures = everything = Fraction(-1)
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                length = (packet.duration or 0) * packet.time_base
                if packet.stream is stream and not length:
                    length = 1 / (stream.average_rate or Fraction(1000))
                everything = max(everything, packet.pts * packet.time_base + length)
                if packet.stream is stream:
                    pictures = max(pictures, packet.pts * packet.time_base + length)
        if pictures >= 0:
            return pictures, everything
    raise BadSample(f"video {Path(container.name).name!r}: not one picture can be read", "video-damaged")


def _frame_at(path: Video, container: Any, time: Fraction) -> Image.Image:
    """The frame that is shown at ``time``: the last that begins by then."""
    import av

    stream = container.streams.video[0]
    for earlier in (0, 10):  # seconds: a transport stream is entered anywhere, and the next key frame may be too late
        container.seek(int((time - earlier) / stream.time_base), stream=stream, backward=True)
        # what is decoded before the first key frame is made of other pictures
        frames = dropwhile(lambda frame: not frame.key_frame, container.decode(stream))
        if (shown := _last_by(path, frames, time)) is not None:
            return _upright(shown)
    with av.open(_readable(path), "r") as fresh:  # an index that is wrong, or none: from the beginning
        frames = fresh.decode(fresh.streams.video[0])
        first = next(frames, None)
        if first is None:
            raise BadSample(f"video {path.name!r}: not one frame decodes", "video-damaged")
        return _upright(_last_by(path, frames, time) or first)


def _last_by(path: Video, frames: Iterator[Any], time: Fraction) -> Any:
    """The last frame that begins by ``time``, if one does."""
    shown, guessed = None, False
    for frame in frames:
        if frame.pts is not None and frame.pts * frame.time_base > time:
            break
        guessed = frame.is_corrupt or (guessed and not frame.key_frame)  # what is wrong stays until the next whole one
        shown = frame
    if guessed:
        raise BadSample(f"video {path.name!r}: damaged before {float(time):.1f} s", "video-damaged")
    return shown


def _upright(frame: Any) -> Image.Image:
    """A frame turned as a player shows it (telephones store theirs lying)."""
    image = frame.to_image()
    turn = getattr(frame, "rotation", 0)
    return image.rotate(turn, expand=True) if turn else image


def _encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95, subsampling=0)
    return out.getvalue()
