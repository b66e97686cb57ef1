"""Videos that are given from Python: files, or frames that are taken already.

Of a file, as many frames are taken as the data's settings say (:class:`~dslight.data.views.frames.Frames`); what is
given as frames is seen whole. Where nobody says how fast frames follow one another, they do as ``data.video.fps`` says,
or twice a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dslight.data.sample import IMAGE_TOKEN, BadSample
from dslight.data.views.frames import Frames

VIDEO_TOKEN = "<video>"
"""Stands for a video in the text of a question."""

USUAL_FPS = 2.0
_MARKS = re.compile(f"{IMAGE_TOKEN}|{VIDEO_TOKEN}")


@dataclass(frozen=True, eq=False)
class Video:
    """Frames of a video that are taken already, and when they are shown.

    Args:
        frames: uint8 ``[F, H, W, 3]``, or a list of pictures, all of one size.
        fps: how many of them are of a second.
        times: of each, in seconds; default: one behind the other, from 0 on.

    Raises:
        ValueError: naming the argument.

    Example:
        >>> clip = dslight.Video(np.zeros((4, 20, 30, 3), dtype=np.uint8), fps=1.0)
        >>> clip.shown
        (0.0, 1.0, 2.0, 3.0)
    """

    frames: Any
    fps: float | None = None
    times: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if len(self.frames) < 1:
            raise ValueError("frames: a video of none")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps: {self.fps}; frames a second, above 0")
        if self.times is not None and len(self.times) != len(self.frames):
            raise ValueError(f"times: {len(self.times)} for {len(self.frames)} frames")

    @property
    def seconds(self) -> float:
        """That a frame stands for."""
        if self.fps is None and self.times is not None and len(self.times) > 1:
            return (float(self.times[-1]) - float(self.times[0])) / (len(self.times) - 1)
        return 1 / (self.fps or USUAL_FPS)

    @property
    def shown(self) -> tuple[float, ...]:
        """When each frame is, in seconds."""
        if self.times is not None:
            return tuple(float(time) for time in self.times)
        rate = self.fps or USUAL_FPS
        return tuple(i / rate for i in range(len(self.frames)))


def videos_of(given: Any) -> list[Any]:
    """What is given for one question as a list of videos; a list of pictures is one."""
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        return [given]
    return [given] if given and all(_is_frame(one) for one in given) else list(given)


def watched(video: Any, asked: Frames, read: Callable[[Any], np.ndarray]) -> tuple[list[Any], str]:
    """What is looked at of a video, pictures or clips, and what stands in the text for it.

    Args:
        video: a file, frames, or a :class:`Video`.
        asked: how videos are looked at.
        read: anything that shows a picture to uint8 RGB ``[H, W, 3]``.

    Raises:
        ValueError: it is none, or cannot be read.
    """
    if isinstance(video, str | Path):
        frames, times, seconds = _taken(Path(video), asked)
    else:
        made = video if isinstance(video, Video) else Video(_frames(video), asked.fps)
        frames, times, seconds = list(made.frames), made.shown, made.seconds
    arrays = [read(frame) for frame in frames]
    return asked.together(arrays, times, seconds) if asked.clips else (arrays, IMAGE_TOKEN * len(arrays))


def ordered(text: str, images: Sequence[Any], videos: Sequence[tuple[list[Any], str]]) -> tuple[str, list[Any], Any]:
    """A question with one ``<image>`` for each picture and video, what they are in its order, and what each stands as.

    Args:
        text: with ``<image>`` and ``<video>`` where they stand, or without: then pictures come first, videos behind.
        images: the pictures.
        videos: as :func:`watched` has them.

    Raises:
        BadSample: the text has other numbers of them.
    """
    found = _MARKS.findall(text)
    for token, there in ((IMAGE_TOKEN, images), (VIDEO_TOKEN, videos)):
        if found and found.count(token) != len(there):
            raise BadSample(f"the question has {found.count(token)} {token}, and there are {len(there)}", "marks")
    left = {IMAGE_TOKEN: iter([([one], IMAGE_TOKEN) for one in images]), VIDEO_TOKEN: iter(videos)}
    order = found or [IMAGE_TOKEN] * len(images) + [VIDEO_TOKEN] * len(videos)
    taken = [next(left[token]) for token in order]
    shown = [one for many, _ in taken for one in many]
    return text.replace(VIDEO_TOKEN, IMAGE_TOKEN), shown, tuple(mark for _, mark in taken)


def _is_frame(one: Any) -> bool:
    return hasattr(one, "size") and getattr(one, "ndim", 3) == 3 and not isinstance(one, Video | str | bytes)


def _frames(video: Any) -> Any:
    shape = getattr(video, "shape", None)
    if isinstance(video, list | tuple) or (shape is not None and len(shape) == 4):
        return video
    what = f"an array of shape {tuple(shape)}" if shape is not None else f"a {type(video).__name__}"
    raise ValueError(f"{what} is no video; give a file, frames [F, H, W, 3], a list of pictures, or a dslight.Video")


def _taken(path: Path, asked: Frames) -> tuple[list[bytes], list[float], float]:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        from dslight.data.video import Sampling, video_facts

        length = float(video_facts(path)["seconds"])
        frames = Sampling(asked.of({"seconds": length}), None).images(path)
    except ImportError:
        raise ValueError(f"{path}: reading videos needs PyAV; pip install 'dslight[video]'") from None
    seconds = length / len(frames)
    return frames, [seconds * (i + 0.5) for i in range(len(frames))], seconds
