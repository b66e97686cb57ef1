"""Which frames of a video are taken, whatever its rate and container; how they are laid out; what is refused."""

import io
import struct
from fractions import Fraction

import numpy as np
import pytest
from clips import BITS, BLOCK, av, number, picture, write_clip
from PIL import Image

from dslight.data.sample import BadSample, decode_image
from dslight.data.video import Sampling, mosaic, video_frames

STEADY = list(range(0, 8000, 40))
RNG = np.random.default_rng(0)
VARIABLE = np.cumsum([0, *RNG.choice([10, 40, 50, 400, 900], 59)]).tolist()
FORMATS = ["mp4 mpeg4", "mp4 libx264", "mkv mpeg4", "mkv libx264", "mkv ffv1", "webm libvpx", "mov libx264"]


def middle_ones(times: list[int], end: int, count: int, start: int = 0) -> list[int]:
    """The definition: the number of the last frame that begins by the middle of each of ``count`` equal parts."""
    middles = [start + Fraction((end - start) * (2 * i + 1), 2 * count) for i in range(count)]
    return [max(k for k, time in enumerate(times) if time <= middle) for middle in middles]


def shown(path, count: int, segment=None) -> list[int]:
    return [number(frame) for frame in video_frames(path, count, segment)]


@pytest.mark.parametrize("kind", [*FORMATS, "avi mpeg4", "ts libx264"])
def test_of_a_steady_video_it_takes_exactly_the_middle_frames(kind, tmp_path):
    ending, codec = kind.split()
    path = write_clip(tmp_path / f"v.{ending}", STEADY, 8000, codec)
    assert middle_ones(STEADY, 8000, 6) == [16, 50, 83, 116, 150, 183]
    for count in (1, 6, 8):
        assert shown(path, count) == middle_ones(STEADY, 8000, count)


@pytest.mark.parametrize("kind", FORMATS)
def test_of_a_variable_rate_it_takes_what_a_player_shows_then(kind, tmp_path):
    ending, codec = kind.split()
    end = VARIABLE[-1] + 700
    path = write_clip(tmp_path / f"v.{ending}", VARIABLE, end, codec)
    for count in (6, 11):
        expected = middle_ones(VARIABLE, end, count)
        assert expected != [int((i + 0.5) * len(VARIABLE) / count) for i in range(count)]  # frames by number
        assert shown(path, count) == expected


@pytest.mark.parametrize("kind", ["mp4 libx264", "mkv mpeg4"])
def test_a_segment_is_counted_from_the_first_frame(kind, tmp_path):
    ending, codec = kind.split()
    late = [time + 30_000 for time in VARIABLE]
    path = write_clip(tmp_path / f"v.{ending}", late, late[-1] + 700, codec)
    assert shown(path, 6) == middle_ones(VARIABLE, VARIABLE[-1] + 700, 6)
    assert shown(path, 5, (2.0, 7.5)) == middle_ones(VARIABLE, 7500, 5, 2000)


def test_pictures_beyond_the_length_that_a_file_says_are_there(tmp_path):
    """It is the sum of what the pictures last in their order of decoding."""
    times = [0, 40, 80, 400, 410, 1000, 1700, 1740, 2000, 3000, 3100, 5000, 5040]
    path = write_clip(tmp_path / "v.mp4", times, 6000, "libx264", b_frames=True)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base < 5
    assert shown(path, 60)[-1] == 12


def test_the_number_of_frames_need_not_be_known(tmp_path):
    path = write_clip(tmp_path / "v.mkv", STEADY, 8000)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert shown(path, 6) == middle_ones(STEADY, 8000, 6)


def test_more_frames_than_there_are_repeat_some(tmp_path):
    assert shown(write_clip(tmp_path / "v.mp4", [0, 100, 200], 300), 6) == [0, 0, 1, 1, 2, 2]


def test_a_transport_stream_of_one_key_frame_is_read_from_its_beginning(tmp_path):
    path = write_clip(tmp_path / "v.ts", STEADY, 8000, "libx264", gop=1000)
    assert shown(path, 2, (6.0, 8.0)) == [162, 187]


@pytest.mark.parametrize(
    ("name", "options"),
    [("v.mp4", {"movflags": "faststart"}), ("v.mkv", {}), ("v.webm", {}), ("v.avi", {})],
)
def test_a_video_whose_end_is_cut_off_is_refused(name, options, tmp_path):
    """Its head is whole: it says how long it was."""
    path = write_clip(tmp_path / name, STEADY, 8000, "libvpx" if name == "v.webm" else "mpeg4", **options)
    assert len(shown(path, 6)) == 6
    kept = path.read_bytes()[: path.stat().st_size // (4 if name == "v.avi" else 2)]  # an avi ends in a long index
    path.write_bytes(kept)
    with pytest.raises(BadSample, match=rf"{name}'?: cut at [1-5]\.\d s, it says 8\.0 s") as error:
        shown(path, 6)
    assert error.value.reason == "video-cut"


def test_a_sound_that_lasts_longer_is_no_cut(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=10), container.add_stream("aac", rate=16_000, layout="mono")
        video.width, video.height, video.pix_fmt = BITS * BLOCK, BLOCK, "yuv420p"
        for i in range(20):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        for i in range(50):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.float32), "fltp", "mono")
            sound.sample_rate, sound.pts = 16_000, 1600 * i
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    assert shown(path, 4) == [2, 7, 12, 17]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("bytes_of_it", [0.1, 0.9])
def test_a_picture_that_does_not_decode_or_had_to_be_guessed_is_refused(codec, bytes_of_it, tmp_path):
    path = write_clip(tmp_path / "v.mp4", STEADY, 8000, codec)
    with av.open(str(path)) as container:
        late = [packet for packet in container.demux(video=0) if packet.pts and packet.pts * packet.time_base > 5]
        packet = max(late[:40], key=lambda packet: packet.size)
        at, size = packet.pos, int(packet.size * bytes_of_it)
    data = bytearray(path.read_bytes())
    data[at + packet.size - size : at + packet.size] = np.random.default_rng(1).bytes(size)
    path.write_bytes(data)
    with pytest.raises(BadSample, match=r"v\.mp4") as error:
        shown(path, 50)
    assert error.value.reason == "video-damaged"
    assert shown(path, 4, (0.0, 4.0)) == middle_ones(STEADY, 4000, 4)  # what is not concerned is there,
    assert shown(path, 4, (7.0, 8.0)) == middle_ones(STEADY, 8000, 4, 7000)  # as it is not read for the others


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 50])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(BadSample, match=r"bad\.mp4") as error:
        shown(path, 6)
    assert error.value.reason == "video-damaged"


def test_a_segment_beyond_the_end_is_named(tmp_path):
    path = write_clip(tmp_path / "v.mp4", STEADY, 8000)
    with pytest.raises(BadSample, match=r"segment 100 to 8 s of 8 s") as error:
        shown(path, 6, (100.0, 110.0))
    assert error.value.reason == "video-segment"


def test_a_telephones_video_stands_upright(tmp_path):
    path = write_clip(tmp_path / "v.mp4", [0], 1000)
    data = path.read_bytes()
    as_stored = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(as_stored, data.index(b"tkhd"))
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, BLOCK << 16, 0, 1 << 30)
    path.write_bytes(data[:at] + quarter + data[at + 36 :])
    assert next(video_frames(path, 1)).size == (BLOCK, BITS * BLOCK)


def test_a_mosaic_is_filled_row_by_row_and_resized_to_a_square(tmp_path):
    path = write_clip(tmp_path / "v.mp4", STEADY, 8000)
    (data,) = Sampling(frames=6, tile=(2, 3), side=768).images(path)
    pixels = decode_image(data)
    assert pixels.shape == (768, 768, 3)
    cells = [pixels[384 * row : 384 * row + 384, 256 * column : 256 * column + 256] for row, column in np.ndindex(2, 3)]
    assert [number(cell) for cell in cells] == middle_ones(STEADY, 8000, 6)


def test_frames_as_several_images_keep_their_size(tmp_path):
    images = [decode_image(x) for x in Sampling(3, None).images(write_clip(tmp_path / "v.mp4", STEADY, 8000))]
    assert [image.shape for image in images] == [(BLOCK, BITS * BLOCK, 3)] * 3
    assert [number(image) for image in images] == middle_ones(STEADY, 8000, 3)


def test_what_is_left_of_a_mosaic_is_black():
    pixels = np.asarray(mosaic([Image.new("RGB", (4, 2), "white")] * 4, (2, 3)))
    assert pixels.shape == (4, 12, 3)
    assert pixels[:2].min() == 255
    assert pixels[2:, :4].min() == 255
    assert pixels[2:, 4:].max() == 0


def test_a_folder_of_frames_stands_for_a_video(tmp_path):
    for i in range(1, 13):  # 10 comes after 9
        out = io.BytesIO()
        Image.fromarray(picture(i)).save(out, "PNG")
        (tmp_path / f"{i}.png").write_bytes(out.getvalue())
    (tmp_path / "info.txt").write_text("no frame")
    images = Sampling(4, None).images(tmp_path)
    assert [number(decode_image(data)) for data in images] == [2, 5, 8, 11]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((None, None), Sampling(6, (2, 3))),
        ((8, None), Sampling(8, (3, 3))),
        ((2, None), Sampling(2, (1, 2))),
        ((None, "3x4"), Sampling(12, (3, 4))),
        ((5, "2x3"), Sampling(5, (2, 3))),
        ((None, "none"), Sampling(6, None)),
        ((32, "none"), Sampling(32, None)),
    ],
)
def test_the_options_of_a_program(options, expected):
    assert Sampling.of(*options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((0, None), "--frames: 0; 1 or more"),
        ((8, "2x3"), "--tile: 2x3 has room for 6 frames; --frames: 8"),
        ((6, "six"), "--tile: 'six'; rows x columns, such as 2x3, or none"),
        ((6, "0x3"), "--tile: '0x3'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling.of(*options)
