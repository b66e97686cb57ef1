"""Videos that shards keep whole: their frames are those that a conversion makes, as many as a run asks for."""

import json

import pytest
from clips import number, write_clip
from transformers import AutoTokenizer

from data_prep.digits import write_tokenizer
from dslight.cli import main
from dslight.data.caches.lengths import image_size
from dslight.data.datamodule import ShardData
from dslight.data.images import SingleView
from dslight.data.records import read_sample
from dslight.data.sample import BadSample, decode_image, parse_sample
from dslight.data.shards import ShardReader
from dslight.data.views.frames import Frames
from dslight.layout import SlotLayout


@pytest.fixture
def source(tmp_path):
    """Two conversations about videos of 0.8 and 2 s, whose pictures show their tenths of a second, and one cut."""
    write_clip(tmp_path / "a.mp4", list(range(0, 800, 100)), 800)
    write_clip(tmp_path / "b.mp4", list(range(0, 2000, 100)), 2000)
    whole = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    said = {"from": "gpt", "value": "As in <image>."}
    entries = [
        {"id": "a", "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}, said]},
        {
            "id": "both",
            "videos": ["b.mp4", "a.mp4"],
            "conversations": [{"from": "human", "value": "<video> or <video>?"}, said],
        },
        {"id": "cut", "video": "cut.mp4", "conversations": [{"from": "human", "value": "<video>\nWhat?"}, said]},
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return tmp_path


def convert(source, name, *options):
    call = [
        "data",
        "convert",
        str(source / "x.jsonl"),
        "--images",
        str(source),
        "--format",
        "messages",
        "--workers",
        "1",
    ]
    assert main([*call, "--max-bad", "0.5", "--out", str(source / name), *options]) == 0
    return ShardReader(source / name, check="full")


def test_frames_of_kept_videos_are_those_of_a_conversion(source, capsys):
    made, kept = convert(source, "made", "--frames", "4", "--tile", "none"), convert(source, "kept", "--keep-videos")
    assert len(kept) == len(made) == 2
    said = capsys.readouterr().out
    assert "2 records with 12 images, those of 3 videos among them (0 of text only)" in said
    assert "2 records with 3 videos (0 of text only)" in said
    assert {name for row in range(2) for name in kept.read(row)} == {"mp4", "0.mp4", "1.mp4", "json"}
    for row in range(2):
        ours, theirs = read_sample(kept, row, frames=Frames(4)), read_sample(made, row)
        assert ours.images == theirs.images
        assert ours.turns == theirs.turns
        ours, theirs = (read_sample(folder, row, frames=Frames(4, depth=2)) for folder in (kept, made))
        assert [(one.frames, round(one.seconds, 3)) for one in ours.images] == [
            (one.frames, round(one.seconds, 3)) for one in theirs.images
        ]
        assert [len(one.frames) for one in ours.images] == [2, 2] * (row + 1)
        assert ours.turns == theirs.turns
    lines = (source / "kept" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["cut"]


def test_a_run_says_how_many_and_what_is_counted_is_what_is_read(source):
    kept = convert(source, "kept", "--keep-videos")
    for frames, counts in (
        (Frames(), (8, 16)), (Frames(count=2), (2, 4)), (Frames(fps=5), (4, 14)), (Frames(fps=5, most=6), (4, 10)),
        (Frames(fps=0.1), (1, 2)),
    ):  # fmt: skip
        for row, count in enumerate(counts):
            read = read_sample(kept, row, frames=frames)
            counted = parse_sample("k", kept.read(row, head=0), frames=frames.undecoded)
            assert len(read.images) == len(counted.images) == count
            assert read.turns == counted.turns
            assert [image_size(one) for one in counted.images] == [decode_image(one).shape[:2] for one in read.images]
    assert [number(decode_image(one)) for one in read_sample(kept, 0, frames=Frames(fps=5)).images] == [1, 3, 5, 7]


def test_a_kept_video_that_is_damaged_later_is_a_bad_sample(source):
    kept = convert(source, "kept", "--keep-videos")
    members = kept.read(0)
    video = members["mp4"]
    for damaged in (b"", video[: len(video) // 2], bytes(len(video))):
        with pytest.raises(BadSample, match=r"^k: video 'a\.mp4'"):
            parse_sample("k", {**members, "mp4": damaged})
    record = json.loads(members["json"])
    for wrong in ({"height": -1}, {"seconds": "x"}, {"width": 1 << 40}):
        record["image_info"] = [{**json.loads(members["json"])["image_info"][0], **wrong}]
        with pytest.raises(BadSample):
            parse_sample("k", {**members, "json": json.dumps(record).encode()}, frames=Frames(fps=1).undecoded)


def test_a_resumed_run_sees_the_frames_that_it_would_have_seen(source):
    """Over the end of an epoch too, in other processes for reading than before."""
    convert(source, "kept", "--keep-videos")
    write_tokenizer(source / "tokenizer")

    def module(state=None, workers=0):
        made = ShardData(
            [str(source / "kept")], SingleView(), 1, template="bare", video=Frames(fps=2), num_workers=workers
        )
        made.connect(AutoTokenizer.from_pretrained(source / "tokenizer"), (8, 8), SlotLayout((2, 2)))
        made.setup("fit")
        made.load_state_dict(state or {})
        return made

    def batches(made, count):
        loader, found = made.train_dataloader(), []
        while len(found) < count:
            for batch in loader:
                found.append((batch.keys, batch.input_ids.tolist(), batch.views.base().tolist()))
                if len(found) == count:
                    break
        return found

    whole = batches(module(), 5)
    assert len({str(pixels) for _, _, pixels in whole}) == 2
    for stopped in (1, 2, 3):
        first = module()
        begun = batches(first, stopped)
        assert begun + batches(module(first.state_dict(), workers=int(stopped == 3)), 5 - stopped) == whole


def test_settings_that_mean_nothing_are_refused():
    for wrong, said in (
        ({"count": 0}, "data.video.count: 0"),
        ({"fps": 0.0}, r"data.video.fps: 0\.0"),
        ({"most": 0}, "most"),
        ({"count": 3, "fps": 1.0}, r"data.video.count: 3, beside fps: 1\.0; name one"),
    ):
        with pytest.raises(ValueError, match=said):
            Frames(**wrong)
