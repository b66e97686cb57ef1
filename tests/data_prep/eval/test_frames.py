"""Frames out of real videos: which ones they are, how they are laid out, and the two sets that ask about videos."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from data_prep.eval.frames import Sampling, Videos, tile, video_frames
from dslight.data.sample import BadSample, decode_image

av = pytest.importorskip("av", reason="PyAV writes and reads the videos; pip install 'dslight[video]'")

FPS = 10
LEVELS = 7  # of grey between one second and the next


def grey(second: float) -> int:
    """Of the picture at a time."""
    return 20 + LEVELS * int(second)


def write(path, seconds=24, size=(64, 36), first=0.0, picture=None, noise=0, gop=50):
    """A video that is a little brighter every second; with few key frames, so that seeking has to decode on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", gop
        stream.options = {"sc_threshold": "1000000000"}  # a key frame every `gop` frames and no others
        for i in range(int(seconds * FPS)):
            pixels = np.full((size[1], size[0], 3), grey(i / FPS), np.uint8) if picture is None else picture
            pixels = pixels + np.random.default_rng(i).integers(0, noise + 1, pixels.shape, dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i + int(first * FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def level(image) -> float:
    return float(np.asarray(image).mean())


@pytest.fixture(params=["mp4", "mkv", "avi", "ts"])
def video(request, tmp_path):
    return write(tmp_path / f"v.{request.param}")


def test_frames_are_those_in_the_middle_of_equal_parts(video):
    levels = [level(frame) for frame in video_frames(video, 6)]
    assert levels == pytest.approx([grey(second) for second in (2, 6, 10, 14, 18, 22)], abs=2)


def test_frames_of_a_segment(video):
    levels = [level(frame) for frame in video_frames(video, 4, (11.0, 15.0))]
    assert levels == pytest.approx([grey(second) for second in (11.5, 12.5, 13.5, 14.5)], abs=2)


def test_more_frames_than_there_are_repeat_some(tmp_path):
    levels = [level(frame) for frame in video_frames(write(tmp_path / "short.mp4", seconds=0.3), 6)]
    assert levels == pytest.approx([grey(0)] * 6, abs=2)


def test_a_video_that_begins_late_is_counted_from_its_first_frame(tmp_path):
    levels = [level(frame) for frame in video_frames(write(tmp_path / "late.mkv", first=30), 6)]
    assert levels == pytest.approx([grey(second) for second in (2, 6, 10, 14, 18, 22)], abs=2)


def test_a_transport_stream_of_one_key_frame_is_read_from_its_beginning(tmp_path):
    path = write(tmp_path / "v.ts", gop=1000)
    assert [level(frame) for frame in video_frames(path, 2, (18.0, 20.0))] == pytest.approx(
        [grey(18.5), grey(19.5)], abs=2
    )


def test_a_video_whose_end_is_cut_off_gives_what_it_has(tmp_path):
    path = write(tmp_path / "cut.mkv", noise=8)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    levels = [level(frame) for frame in video_frames(path, 6)]
    assert levels == pytest.approx([grey(second) for second in (1, 3, 5, 7, 9, 11)], abs=10)


def test_a_telephones_video_stands_upright(tmp_path):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :32] = 255  # white on the left: turned to the right by a quarter, that is the top
    path = write(tmp_path / "v.mp4", seconds=1, size=(64, 32), picture=picture)
    data = path.read_bytes()
    as_stored = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(as_stored, data.index(b"tkhd"))
    quarter = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data[:at] + quarter + data[at + 36 :])
    frame = np.asarray(next(video_frames(path, 1)))
    assert frame.shape == (64, 32, 3)
    assert frame[:28].min() > 200
    assert frame[36:].max() < 50


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "video-damaged"), (b"<html>404</html>" * 50, "video-damaged")],
)
def test_what_is_no_video_is_named(tmp_path, content, reason):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(BadSample, match=r"bad\.mp4") as error:
        list(video_frames(path, 6))
    assert error.value.reason == reason


def test_a_segment_beyond_the_end_is_named(video):
    with pytest.raises(BadSample, match=r"segment 100 to 24 s of 24 s") as error:
        list(video_frames(video, 6, (100.0, 110.0)))
    assert error.value.reason == "video-segment"


def test_a_tile_is_a_square_of_two_rows_of_three(video):
    (data,) = Sampling(frames=6, layout="tile", side=96).images(video)
    pixels = decode_image(data)
    assert pixels.shape == (96, 96, 3)
    cells = [
        pixels[row * 48 + 8 : row * 48 + 40, column * 32 + 8 : column * 32 + 24]
        for row in (0, 1)
        for column in range(3)
    ]
    assert [level(cell) for cell in cells] == pytest.approx([grey(second) for second in (2, 6, 10, 14, 18, 22)], abs=2)


def test_frames_as_several_images_keep_their_size(video):
    images = [decode_image(data) for data in Sampling(frames=3, layout="images").images(video)]
    assert [image.shape for image in images] == [(36, 64, 3)] * 3
    assert [level(image) for image in images] == pytest.approx([grey(second) for second in (4, 12, 20)], abs=2)


def test_a_row_that_is_not_full_is_black_at_its_end():
    pixels = np.asarray(tile([Image.new("RGB", (4, 2), "white")] * 4))
    assert pixels.shape == (4, 12, 3)
    assert pixels[:2].min() == 255
    assert pixels[2:, 4:].max() == 0


def test_a_folder_of_frames_stands_for_a_video(tmp_path):
    folder = tmp_path / "1164" / "42"
    folder.mkdir(parents=True)
    for i in range(1, 13):  # 10 comes after 9
        out = io.BytesIO()
        Image.new("RGB", (8, 8), (i * 20, i * 20, i * 20)).save(out, "PNG")
        (folder / f"{i}.png").write_bytes(out.getvalue())
    (folder / "info.txt").write_text("no frame")
    for name in ("1164/42.mp4", "1164/42", "42"):
        root = tmp_path if "/" in name else tmp_path / "1164"
        images = Sampling(frames=4, layout="images").images(Videos([root]).find(name))
        assert [level(decode_image(data)) for data in images] == pytest.approx([40, 100, 160, 220], abs=2)


def test_a_video_is_found_by_its_name_without_folders_and_ending(tmp_path):
    path = write(tmp_path / "videos" / "P03_24.MP4", seconds=1)
    videos = Videos([tmp_path / "elsewhere", tmp_path / "videos"])
    assert videos.find("P03/P03_24.MP4") == path
    assert videos.find("P03_24") == path
    with pytest.raises(BadSample, match="'P03_25': there is none"):
        videos.find("P03_25")
    with pytest.raises(BadSample, match="must be a path below"):
        videos.find("../videos/P03_24.MP4")


@pytest.fixture
def egoschema(put):
    """The fields of questions.json and subset_answers.json."""
    options = {f"option {i}": f"C does {word}" for i, word in enumerate(("this", "that", "both", "neither", "more"))}
    uids = ["0074f737-11cb-497d-8d07-77c3a8127391", "001934bb-81bd-4cd8-a574-0472ef3f6678"]
    rows = [
        {"q_uid": uid, "google_drive_id": "x", "question": f"What does c do in {uid[:4]}?", **options} for uid in uids
    ]
    put("questions.json", rows)
    put("subset_answers.json", {uids[0]: 3})
    return uids


def test_egoschema_asks_the_answered_subset_about_a_tile(egoschema, convert, tmp_path):
    write(tmp_path / "images" / f"{egoschema[0]}.mp4")
    shards = convert("egoschema", "--side", 60)
    asked = shards.questions[egoschema[0]]
    assert asked.text == (
        "What does c do in 0074?\nA. C does this\nB. C does that\nC. C does both\nD. C does neither\nE. C does more"
    )
    assert asked.references == ("D",)
    assert list(shards.questions) == egoschema[:1]
    assert [decode_image(data).shape for data in shards.images[egoschema[0]]] == [(60, 60, 3)]


def test_egoschema_hides_the_answers_of_the_others(egoschema, convert, tmp_path):
    write(tmp_path / "images" / f"{egoschema[0]}.mp4")
    shards = convert("egoschema", "--split", "all", "--max-bad", "0.5")
    assert shards.report["bad"] == {"video-missing": 1}
    write(tmp_path / "images" / f"{egoschema[1]}.mp4")
    shards = convert("egoschema", "--split", "all")
    assert [question.references for question in shards.questions.values()] == [("D",), ()]
    assert shards.report["changed"] == {"answers hidden": 1}


NEXTQA = """video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4
4010069381,369,640,480,how do the two man play,0,6,CH,roll the handle,tap their feet,"strum, hard",hit,pat
4010069381,369,640,480,why did he bend,2,7,CW,a,b,c,d,e
3238737531,500,640,480,where is this,4,0,DL,a,b,c,d,park
3238737531,500,640,480,what did he do after,1,1,TN,a,b,c,d,e
"""


def test_nextqa_shows_a_video_once_for_all_its_questions(put, convert, tmp_path):
    """The columns of dataset/nextqa/test.csv."""
    put("test.csv", NEXTQA)
    put("map_vid_vidorID.json", {"4010069381": "1150/4010069381", "3238737531": "1164/3238737531"})
    write(tmp_path / "images" / "1150" / "4010069381.mp4")
    write(tmp_path / "images" / "3238737531.mp4")
    shards = convert("nextqa", "--layout", "images", "--frames", 4)
    assert [len(sample.images) for sample in shards.samples] == [4, 4]
    assert {key: (q.references, q.type) for key, q in shards.questions.items()} == {
        "4010069381_6": (("A",), "causal"),
        "4010069381_7": (("C",), "causal"),
        "3238737531_0": (("E",), "descriptive"),
        "3238737531_1": (("B",), "temporal"),
    }
    assert shards.questions["4010069381_6"].text == (
        "how do the two man play\nA. roll the handle\nB. tap their feet\nC. strum, hard\nD. hit\nE. pat"
    )
    assert [level(decode_image(data)) for data in shards.samples[0].images] == pytest.approx(
        [grey(second) for second in (3, 9, 15, 21)], abs=2
    )


def test_seed_takes_the_segment_of_a_video_where_there_is_no_frame_of_it(put, convert, tmp_path):
    choices = {f"choice_{c}": c for c in "abcd"}

    def item(dimension, data_id, segment):
        return {
            "answer": "B",
            **choices,
            "data_id": data_id,
            "data_type": "video",
            "question": "?",
            "question_id": f"v{dimension}",
            "question_type_id": dimension,
        } | ({} if segment is None else {"segment": segment})

    rows = [
        item(10, "94328.webm", None),
        item(11, "P03/P03_24.MP4", [10.0, 12.0]),
        item(12, "P06/cam01/x.avi", [90, 120]),
    ]
    put("SEED-Bench.json", {"questions": rows, "question_type": {}})
    write(tmp_path / "images" / "94328.mkv").rename(tmp_path / "images" / "94328.webm")
    write(tmp_path / "images" / "P03" / "P03_24.MP4")
    write(tmp_path / "images" / "P06" / "cam01" / "x.avi")
    shards = convert("seed", "--layout", "images", "--frames", 2)
    levels = {key: [level(decode_image(data)) for data in images] for key, images in shards.images.items()}
    assert levels["v10"] == pytest.approx([grey(6), grey(18)], abs=2)
    assert levels["v11"] == pytest.approx([grey(10.5), grey(11.5)], abs=2)
    assert levels["v12"] == pytest.approx([grey(6.5), grey(7.5)], abs=2)  # frames 90 to 120, 15 a second


def test_without_pyav_the_program_says_what_to_install(egoschema, convert, tmp_path, monkeypatch):
    write(tmp_path / "images" / f"{egoschema[0]}.mp4")
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    with pytest.raises(SystemExit, match=r"reading videos needs PyAV; pip install 'dslight\[video\]'"):
        convert("egoschema")


def test_the_program_runs_from_the_command_line_and_again(egoschema, program, tmp_path):
    write(tmp_path / "images" / f"{egoschema[0]}.mp4", seconds=2)
    arguments = ["--annotations", tmp_path / "annotations", "--images", tmp_path / "images", "--out", tmp_path / "out"]
    first = program("eval", "egoschema", *arguments, "--workers", 2)
    assert first.returncode == 0, first.stderr
    assert "1 of 1 questions; validate with: {root:" in first.stdout
    assert "finished already" in program("eval", "egoschema", *arguments).stdout
