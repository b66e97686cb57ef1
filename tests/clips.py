"""Small videos whose every picture shows its own number, in black and white blocks that any codec keeps."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV writes and reads the videos; pip install 'dslight[video]'")

BITS, BLOCK = 8, 16


def picture(number: int) -> np.ndarray:
    """uint8 ``[16, 128, 3]``: the bits of ``number``, the highest one on the left."""
    bits = [255 * (number >> (BITS - 1 - i) & 1) for i in range(BITS)]
    return np.repeat(np.repeat(np.array([[[b] * 3 for b in bits]], np.uint8), BLOCK, 0), BLOCK, 1)


def number(image) -> int:
    """What a picture shows, of whatever size."""
    pixels = np.asarray(image).mean(-1)
    middle = pixels[pixels.shape[0] // 2]
    return sum(bool(middle[(2 * i + 1) * len(middle) // (2 * BITS)] > 127) << (BITS - 1 - i) for i in range(BITS))


def write_clip(
    path: Path,
    times: Sequence[int],
    end: int,
    codec: str = "mpeg4",
    gop: int = 12,
    b_frames: bool | None = None,
    **options: str,
) -> Path:
    """A video whose picture i shows i from ``times[i]`` on, the last one until ``end``; all in milliseconds.

    At a steady rate h264 uses B frames. Otherwise not: an mp4 says how long a picture lasts in their order of decoding.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lasts = {time: later - time for time, later in zip(times, [*times[1:], end], strict=True)}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = BITS * BLOCK, BLOCK, "yuv420p", gop
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        if not (len(set(lasts.values())) == 1 if b_frames is None else b_frames):
            stream.codec_context.max_b_frames = 0
        packets = []
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            packets += stream.encode(frame)
        for packet in [*packets, *stream.encode(None)]:
            packet.duration = lasts[packet.pts]
            container.mux(packet)
    return path
