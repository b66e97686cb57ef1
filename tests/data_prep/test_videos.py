"""Conversations about videos become conversations about their frames, and a video that is damaged costs its entry."""

import json
import resource

import numpy as np
import pytest
from clips import number, picture, write_clip
from sources import chat, encode

from data_prep.messages import MessagesEntry
from data_prep.videos import Film, Videos
from dslight.cli import main
from dslight.data.sample import BadSample, decode_image, parse_sample
from dslight.data.shards import ShardReader
from dslight.data.video import Sampling

FRAMES = Sampling(4, None)
ANSWER = {"role": "assistant", "content": "A dog runs."}


@pytest.fixture
def clips(tmp_path):
    """``a.mp4``, whose pictures show their tenths of a second up to 0.8 s, ``sub/b.mp4``, which begins with 100, and
    ``c.png``."""
    folder = tmp_path / "videos"
    write_clip(folder / "a.mp4", list(range(0, 800, 100)), 800)
    write_clip(folder / "sub" / "b.mp4", list(range(0, 400, 100)), 400)
    (folder / "c.png").write_bytes(encode(picture(200)))
    return folder


def asked(text, **more):
    return {"messages": [{"role": "user", "content": text}, ANSWER], **more}


A, B, C = [1, 3, 5, 7], [0, 1, 2, 3], [200]
FORMS = {
    "LLaVA-Video": (
        {"id": "v", "video": "a.mp4", "conversations": chat("<image>\nWhat?", "A dog runs.")}, A, "<4>\nWhat?",
    ),
    "LLaVA-Video's folders": (
        {"video": "academic/x/a.mp4", "conversations": chat("<image>\nWhat?", "A dog runs.")}, A, "<4>\nWhat?",
    ),
    "LLaMA-Factory": (asked("<video>What?", videos=["a.mp4"]), A, "<4>What?"),
    "two of them": (asked("<video> or <video>?", videos=["sub/b.mp4", "a.mp4"]), B + A, "<4> or <4>?"),
    "beside a picture": (asked("<image><video><image>?", images=["c.png"] * 2, videos=["a.mp4"]), C + A + C, "<6>?"),
    "no mark": (asked("What?", videos=["a.mp4"]), A, "<4>\nWhat?"),
    "no mark, with a picture": (asked("What?", images=["c.png"], videos=["a.mp4"]), C + A, "<1>\n<4>\nWhat?"),
    "Qwen's part": (
        asked([{"type": "video", "video": "file:///a.mp4"}, {"type": "text", "text": "What?"}]), A, "<4>\nWhat?",
    ),
    "a segment": (
        asked([{"type": "video", "video": "a.mp4", "video_start": 0.4, "video_end": 0.8}, {"text": "?"}]), [4, 5, 6, 7],
        "<4>\n?",
    ),
    "a part of the entry's": (asked([{"type": "video"}, {"type": "text", "text": "?"}], videos=["a.mp4"]), A, "<4>\n?"),
    "frames": (asked("<video>?", videos=[["c.png"] * 9]), C * 4, "<4>?"),
    "few frames": (asked([{"video": ["c.png", "c.png"]}, {"text": "?"}]), C * 2, "<2>\n?"),
    "beside an answer's tag": (
        {"videos": ["a.mp4"], "conversations": chat("<video>?", "Use <video>.")}, A, "<4>?",
    ),
}  # fmt: skip


def shown(text):
    """A text with the number of marks in the place of a run of them."""
    for count in range(9, 0, -1):
        text = text.replace("<image>" * count, f"<{count}>")
    return text


@pytest.mark.parametrize("name", FORMS)
def test_a_video_becomes_its_frames_where_it_stood(name, clips, tmp_path):
    entry, numbers, text = FORMS[name]
    (tmp_path / "x.jsonl").write_text(json.dumps(entry) + "\n")
    call = ["data", "convert", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*call, "--images", str(clips), "--frames", "4", "--tile", "none"]) == 0
    sample = parse_sample("k", ShardReader(tmp_path / "out").read(0))
    assert [number(decode_image(image)) for image in sample.images] == numbers
    assert shown(sample.turns[0].text) == text


def test_a_video_becomes_one_picture_as_in_evaluation_where_nothing_is_said(clips, tmp_path, capsys):
    """Its folder is found beside the file."""
    lines = [FORMS["LLaMA-Factory"][0], {**FORMS["LLaVA-Video"][0], "id": "w"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = ["data", "convert", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*call, "--side", "60"]) == 0
    reader = ShardReader(tmp_path / "out")
    theirs = Sampling(side=60).images(clips / "a.mp4")
    assert [parse_sample("k", reader.read(row)).images for row in range(2)] == [tuple(theirs)] * 2
    said = capsys.readouterr().out
    assert f"its pictures and videos are taken from {clips}" in said
    assert "0: 1 image (60x60); '<image>What?'" in said


def test_a_video_that_is_missing_cut_or_damaged_costs_its_entry_alone(clips, tmp_path):
    whole = (clips / "a.mp4").read_bytes()
    (clips / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (clips / "page.mp4").write_bytes(b"<html>not found</html>")
    names = ["a.mp4", "cut.mp4", "page.mp4", "gone.mp4", "../a.mp4", "https://x/a.mp4"]
    lines = [asked("<video>?", id=name, videos=[name]) for name in names]
    lines += [
        asked("<video><video>?", id="more", videos=["a.mp4"]),
        asked("<video>?", id="fewer", videos=["a.mp4"] * 2),
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    call = ["data", "convert", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*call, "--images", str(clips), "--side", "60", "--max-bad", "1"]) == 0
    bad = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in bad} == {
        "cut.mp4": "video-damaged", "page.mp4": "video-damaged", "gone.mp4": "video-missing", "../a.mp4": "video-name",
        "https://x/a.mp4": "video-remote", "more": "marks", "fewer": "marks",
    }  # fmt: skip
    said = {line["id"]: line["message"] for line in bad}
    assert said["more"] == "has fewer videos than places for them"
    assert said["fewer"] == "one of its videos has no <video> mark; give each one its mark, or leave all marks out"
    assert not [text for text in said.values() if "image" in text or "Errno" in text]
    assert len(ShardReader(tmp_path / "out")) == 1


def test_without_pyav_the_program_ends_and_says_what_to_install(clips, monkeypatch):
    def missing(*_):
        raise ImportError

    monkeypatch.setattr(Sampling, "images", missing)
    with pytest.raises(SystemExit, match=r"needs PyAV; pip install 'dslight\[video\]'"):
        Film("a.mp4", Videos((clips,)), FRAMES).images()


def test_other_options_are_another_job(clips, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text(json.dumps(FORMS["LLaMA-Factory"][0]) + "\n")
    call = ["data", "convert", str(tmp_path / "x.jsonl"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*call, "--side", "60"]) == 0
    assert main([*call, "--side", "60"]) == 0
    assert main([*call, "--side", "80"]) == 1
    assert "its options.videos.side was 60, now it is 80;" in capsys.readouterr().err
    assert main(call) == 1
    assert "its options.videos.frames was 6, now it is not set;" in capsys.readouterr().err
    assert main([*call, "--frames", "0"]) == 1
    assert "--frames: 0; 1 or more" in capsys.readouterr().err


def test_what_is_asked_of_a_part_and_not_done_is_counted():
    part = {"type": "video", "video": "a.mp4", "fps": 2.0, "nframes": 8, "max_pixels": 100}
    entry = MessagesEntry(sampling=FRAMES)(asked([part, {"type": "text", "text": "?"}]))
    assert sorted(entry.changes) == [f"key not read: content[].{name}" for name in ("fps", "max_pixels", "nframes")]
    with pytest.raises(BadSample, match="both video and videos"):
        MessagesEntry()(asked("?", video="a.mp4", videos=["b.mp4"]))


def test_frames_are_encoded_one_after_another(tmp_path):
    """64 frames of 1920 x 1080 would be 400 MB."""
    folder = tmp_path / "long"
    folder.mkdir()
    data = encode(np.zeros((1080, 1920, 3), np.uint8), "JPEG")
    for i in range(64):
        (folder / f"{i}.jpg").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(Sampling(64, None).images(folder)) == 64
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000
