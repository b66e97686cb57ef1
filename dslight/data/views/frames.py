"""Records that hold whole videos: which frames of them are looked at is a setting of the run, and not of the shards.

In the shard, a video is a member like a picture (``mp4``), with one ``<image>`` mark where it stands. When the record
is read, as many frames as :class:`Frames` says take its place, and as many marks; from there on they are pictures.

Decided here, and why:

* Frames may also be stored one by one, as pictures: ``image_info`` then says of each which ``video`` of the record it
  is of (a number), and its ``time`` in seconds.
* How many they are, and how large, is known from ``image_info``, which the conversion writes, so that lengths and
  tokens are counted without decoding.
* A frame is what a conversion to frames makes of it (:mod:`dslight.data.video`), one after another: in memory is one
  decoded frame, and those that were taken, encoded.
* A video that does not decode is a bad sample, for ``data.on_bad``.
* For an encoder whose patches are several frames deep (Qwen2-VL to Qwen3-VL), frames stay together as a :class:`Clip`,
  with their times as text between them (``stamps``) or as one clip whose times are positions. For any other, they are
  pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, ClassVar, Literal

from dslight.data.shards.writer import VIDEO_ENDINGS

_MARK = "<image>"
_LARGEST = 1 << 16


@dataclass(frozen=True)
class Frames:
    """Which frames of a video are looked at.

    Args:
        count: as many, in the middle of equal parts of it; default: 8, where ``fps`` says nothing.
        fps: of each second as many, in place of ``count``.
        most: no more than these, whatever ``fps`` makes of a long video.
        least: no fewer than these, whatever ``fps`` makes of a short one.
        min_pixels: least pixels of a video whose encoder has temporal patches, as that is seen; default: those of
            ``data.views``, of each frame.
        max_pixels: the most.
        budget: whether these are of all frames of a ``video`` together (Qwen3-VL), or of each ``frame`` (Qwen2-VL,
            Qwen2.5-VL).
        stamps: whether the times of frames stand as text before them, ``<0.5 seconds>`` (Qwen3-VL); else the frames of
            a video are one run of tokens, and their times positions (Qwen2.5-VL). With temporal patches alone.
        around: texts before and behind a video with stamps.
        depth: frames that share a temporal patch; 0: as the encoder has it.

    Example:
        >>> Frames(fps=0.5, most=16).of({"seconds": 12.0})
        6
    """

    count: int | None = None
    fps: float | None = None
    most: int = 64
    least: int = 1
    min_pixels: int | None = None
    max_pixels: int | None = None
    budget: Literal["video", "frame"] = "video"
    stamps: bool = True
    around: tuple[str, str] = ("", "")
    depth: int = 0
    decoded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("count", "most", "least"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.video.{name}: {value}; 1 or more")
        if self.count is not None and self.fps is not None:
            raise ValueError(f"data.video.count: {self.count}, beside fps: {self.fps}; name one of them")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"data.video.fps: {self.fps}; frames a second, above 0")
        if self.least > self.most:
            raise ValueError(f"data.video.least: {self.least}; at most data.video.most, which is {self.most}")
        if self.depth < 0:
            raise ValueError(f"data.video.depth: {self.depth}; 1 (frames are pictures) or more, or 0 (as the encoder)")
        if (self.min_pixels is None) != (self.max_pixels is None):
            given = "min_pixels" if self.max_pixels is None else "max_pixels"
            raise ValueError(f"data.video.{given}: {getattr(self, given)}, alone; name both of min_pixels, max_pixels")
        if self.min_pixels is not None and not 1 <= self.min_pixels <= (self.max_pixels or 0):
            raise ValueError(f"data.video.min_pixels: {self.min_pixels}; from 1 to max_pixels, {self.max_pixels}")
        if any(_MARK in text for text in self.around):
            raise ValueError(f"data.video.around: {list(self.around)}; {_MARK} stands for a picture itself")

    def seen_by(self, depth: int) -> Frames:
        """The same for an encoder whose patches are ``depth`` frames deep.

        Raises:
            ValueError: another depth was named, which this encoder has not.
        """
        if self.depth > 1 and self.depth != depth:
            raise ValueError(f"data.video.depth: {self.depth}; the patches of this encoder are {depth} frames deep")
        return self if self.depth or depth == 1 else replace(self, depth=depth)

    def to_recipe(self) -> dict[str, Any]:
        """As the section ``data.video`` of a recipe: what is not as usual."""
        said = {key: value for key, value in vars(self).items() if value != getattr(AS_USUAL, key) and key != "depth"}
        alone = {"depth": 1} if self.depth == 1 else {}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in {**said, **alone}.items()}

    @property
    def clips(self) -> bool:
        """Whether frames stay together; else they are pictures."""
        return self.depth > 1

    @property
    def undecoded(self) -> Frames:
        """The same for whoever counts: empty pictures of their size stand in for them."""
        return _Undecoded(**vars(self))

    def of(self, info: Mapping[str, Any]) -> int:
        """How many frames of a video are looked at, of which is known what a conversion writes."""
        if self.fps is None:
            return self.count or 8
        return max(self.least, min(round(float(info["seconds"]) * self.fps), self.most))

    def together(self, frames: Sequence[Any], times: Sequence[float], seconds: float) -> tuple[list[Clip], str]:
        """Frames of a video, and what stands in the text for it: as many ``<image>`` as there are clips.

        Args:
            frames: encoded, or uint8 RGB ``[H, W, 3]``.
            times: of each, in seconds.
            seconds: that a frame stands for.
        """
        count, apart = len(frames), seconds * self.depth
        if not self.stamps:
            return [Clip(tuple(frames), count, apart, self)], _MARK
        made, text = [], ""
        for first in range(0, count, self.depth):
            last = min(first + self.depth, count)
            behind = times[min(first + self.depth - 1, count - 1)]  # a last one alone is seen twice
            made.append(Clip(tuple(frames[first:last]), count, apart, self))
            text += f"<{(times[first] + behind) / 2:.1f} seconds>{_MARK}"
        return made, text.join(self.around)

    def in_place_of_videos(
        self, members: Mapping[str, bytes], record: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
        """A record, and its members, with frames where its videos were; and what stands in its text for each of the
        pictures and videos that it had.

        Raises:
            BadSample: one does not decode.
            LookupError, TypeError, ValueError: the record is none that a conversion wrote.
        """
        filled, names, marks = dict[str, Any](members), list[str](), list[str]()
        for own in self._apart(list(zip(record["images"], record["image_info"], strict=True))):
            name, info = own[0]
            if is_video(name):
                found, mark = self._taken(filled.pop(name), info)
            elif self.clips and info.get("video") is not None:
                found, mark = self._kept([(filled[name], info) for name, info in own])
            else:
                names.append(name)
                marks.append(_MARK)
                continue
            made = {f"{name.rpartition('.')[0] or 'v'}-{i}.jpg": one for i, one in enumerate(found)}
            filled |= made
            names += made
            marks += [mark, *[""] * (len(own) - 1)]  # the marks of frames that were stored one by one are one
        turns, rest = [], iter(marks)
        for turn in record.get("conversations", ()):
            asked = turn["from"] in ("human", "user")
            turns.append({**turn, "value": marked(turn["value"], rest)} if asked else turn)
        said = {"conversations": turns} if turns else {}
        return filled, {**record, "images": names, **said}, tuple(marks) if self.clips else ()

    def _apart(self, shown: Sequence[tuple[str, Any]]) -> list[list[tuple[str, Any]]]:
        """Pictures and videos, each by itself, but for frames of one video that stand side by side."""

        def key(each: tuple[int, tuple[str, Any]]) -> tuple[int, Any]:
            at, (name, info) = each
            apart = not self.clips or is_video(name) or info.get("video") is None
            return (at, None) if apart else (-1, info["video"])

        return [[one for _, one in run] for _, run in groupby(enumerate(shown), key)]

    def _taken(self, data: bytes, info: Mapping[str, Any]) -> tuple[list[Any], str]:
        """Frames of a video, or clips of these, and what stands in the text for them."""
        found = self._frames(data, info)
        if not self.clips:
            return found, _MARK * len(found)
        seconds = float(info["seconds"]) / len(found)
        return self.together(found, [seconds * (i + 0.5) for i in range(len(found))], seconds)

    def _kept(self, frames: Sequence[tuple[bytes, Mapping[str, Any]]]) -> tuple[list[Clip], str]:
        """Clips of frames that are stored as pictures, and what stands in the text for them."""
        times = [float(info["time"]) for _, info in frames]
        count = len(frames)
        seconds = (times[-1] - times[0]) / (count - 1) if count > 1 else 1.0
        said = self.count is not None or self.fps is not None
        wanted = min(count, self.of({"seconds": seconds * count})) if said else count
        taken = [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
        return self.together([frames[i][0] for i in taken], [times[i] for i in taken], seconds * count / wanted)

    def _frames(self, data: bytes, info: Mapping[str, Any]) -> list[bytes]:
        count = self.of(info)
        if not self.decoded:
            return [_blank(int(info["height"]), int(info["width"]))] * count
        from dslight.data.video import Encoded, Sampling  # which reads samples

        segment = (float(info.get("start", 0)), float(info.get("end", 1e9)))
        return Sampling(count, None).images(Encoded(str(info.get("name", "")), data), segment)


class _Undecoded(Frames):
    decoded = False


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video that an encoder of temporal patches sees together: one patch deep, or as deep as the video.

    Attributes:
        frames: encoded, or uint8 RGB ``[H, W, 3]``; all of one size.
        whole: how many frames are looked at of the video that they are of.
        seconds: from one temporal patch to the next.
        asked: how videos are looked at.
    """

    frames: tuple[Any, ...]
    whole: int
    seconds: float
    asked: Frames

    @property
    def patches(self) -> int:
        """How many temporal patches it has; frames that the last of them lacks are repeated."""
        return -(-len(self.frames) // self.asked.depth)


def marked(text: str, marks: Iterable[str]) -> str:
    """A text with ``marks`` in place of its ``<image>``, in their order; behind one that ends otherwise, no new line
    begins. An empty mark is of a frame that the mark before stands for, too."""
    rest, (first, *others) = iter(marks), text.split(_MARK)
    last = _MARK
    for other in others:
        mark = next(rest, _MARK)
        first, last = (first, mark) if mark else (first.removesuffix("\n"), last)
        first += mark + (other if last.endswith(_MARK) else other.removeprefix("\n"))
    return first


AS_USUAL = Frames()
"""Where nobody says."""


def has_videos(record: Mapping[str, Any], frames: Frames) -> bool:
    """Whether a record holds videos, whole or, where frames stay together, as pictures."""
    if any(is_video(name) for name in record.get("images") or ()):
        return True
    return frames.clips and any(info.get("video") is not None for info in record.get("image_info") or ())


def is_video(name: str) -> bool:
    """Whether a member is a video, by its ending."""
    return name.rpartition(".")[2] in VIDEO_ENDINGS


def _blank(height: int, width: int) -> bytes:
    """The head of a BMP: its size, and no pixels."""
    if not (0 < height < _LARGEST and 0 < width < _LARGEST):
        raise ValueError(f"image_info says that a video has {height} x {width} pixels")
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
