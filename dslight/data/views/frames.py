"""Records that hold whole videos: which frames of them are looked at is a setting of the run, and not of the shards.

In the shard, a video is a member like a picture (``mp4``), with one ``<image>`` mark where it stands. When the record
is read, as many frames as :class:`Frames` says take its place, and as many marks; from there on they are pictures.

Decided here, and why:

* How many they are, and how large, is known from ``image_info``, which the conversion writes, so that lengths and
  tokens are counted without decoding.
* A frame is what a conversion to frames makes of it (:mod:`dslight.data.video`), one after another: in memory is one
  decoded frame, and those that were taken, encoded.
* A video that does not decode is a bad sample, for ``data.on_bad``.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

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

    Example:
        >>> Frames(fps=0.5, most=16).of({"seconds": 12.0})
        6
    """

    count: int | None = None
    fps: float | None = None
    most: int = 64
    decoded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("count", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"data.video.{name}: {value}; 1 or more")
        if self.count is not None and self.fps is not None:
            raise ValueError(f"data.video.count: {self.count}, beside fps: {self.fps}; name one of them")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"data.video.fps: {self.fps}; frames a second, above 0")

    @property
    def undecoded(self) -> Frames:
        """The same for whoever counts: empty pictures of their size stand in for them."""
        return _Undecoded(self.count, self.fps, self.most)

    def of(self, info: Mapping[str, Any]) -> int:
        """How many frames of a video are looked at, of which is known what a conversion writes."""
        wanted = (self.count or 8) if self.fps is None else round(float(info["seconds"]) * self.fps)
        return max(1, min(wanted, self.most if self.fps is not None else wanted))

    def in_place_of_videos(
        self, members: Mapping[str, bytes], record: Mapping[str, Any]
    ) -> tuple[dict[str, bytes], dict[str, Any]]:
        """A record, and its members, with frames where its videos were.

        Raises:
            BadSample: one does not decode.
            LookupError, TypeError, ValueError: the record is none that a conversion wrote.
        """
        filled, names, runs = dict(members), list[str](), list[int]()
        for name, info in zip(record["images"], record["image_info"], strict=True):
            if not is_video(name):
                names.append(name)
                runs.append(1)
                continue
            found = self._frames(filled.pop(name), info)
            made = {f"{name.rpartition('.')[0] or 'v'}-{i}.jpg": data for i, data in enumerate(found)}
            filled |= made
            names += made
            runs.append(len(made))
        turns, rest = [], iter(runs)
        for turn in record.get("conversations", ()):
            text = turn["value"]
            if turn["from"] in ("human", "user"):
                first, *others = text.split(_MARK)
                text = first + "".join(_MARK * next(rest, 1) + other for other in others)
            turns.append({**turn, "value": text})
        return filled, {**record, "images": names, **({"conversations": turns} if turns else {})}

    def _frames(self, data: bytes, info: Mapping[str, Any]) -> list[bytes]:
        count = self.of(info)
        if not self.decoded:
            return [_blank(int(info["height"]), int(info["width"]))] * count
        from dslight.data.video import Encoded, Sampling  # which reads samples

        segment = (float(info.get("start", 0)), float(info.get("end", 1e9)))
        return Sampling(count, None).images(Encoded(str(info.get("name", "")), data), segment)


class _Undecoded(Frames):
    decoded = False


AS_USUAL = Frames()
"""Where nobody says."""


def is_video(name: str) -> bool:
    """Whether a member is a video, by its ending."""
    return name.rpartition(".")[2] in VIDEO_ENDINGS


def _blank(height: int, width: int) -> bytes:
    """The head of a BMP: its size, and no pixels."""
    if not (0 < height < _LARGEST and 0 < width < _LARGEST):
        raise ValueError(f"image_info says that a video has {height} x {width} pixels")
    return struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
