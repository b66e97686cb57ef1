"""No picture, video, sound or box of an entry is lost without a word: it is taken along, or the entry is set aside."""

import base64
import json

import pytest
from sources import PHOTO, chat, encode, packed

from data_prep.check import check_entry
from data_prep.images import Folder, Images
from data_prep.llava import llava_entry
from data_prep.llava import main as llava
from data_prep.media import UNREAD
from data_prep.messages import MessagesEntry
from data_prep.messages import main as messages
from dslight.data.sample import BadSample
from dslight.data.shards import ShardReader

JPEG = encode(PHOTO, "JPEG")


@pytest.fixture
def images(tmp_path) -> Images:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(JPEG)
    return Images([("", Folder(tmp_path / "images"))])


def converted(program, tmp_path, entries, *options):
    """What a program writes of entries: the report and the lines of the quarantine."""
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    out = tmp_path / "out"
    program(["--json", str(path), "--images", str(tmp_path / "images"), "--out", str(out), "--max-bad", "1", *options])
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    return json.loads((out / "report.json").read_text()), lines


ONE = {"conversations": chat("<image>Q", "A")}
TAKEN = {
    "a list under images": {"images": ["a.jpg", "b.jpg"], "conversations": chat("<image>\n<image>\nCompare.", "A")},
    "one under images": {"images": "a.jpg", "conversations": chat("<image>Q", "A")},
    "both, and the same": {"image": "a.jpg", "images": ["a.jpg"], "conversations": chat("<image>Q", "A")},
    "a path with ./": {"image": "./a.jpg", "conversations": chat("<image>Q", "A")},
    "path of a struct": {"image": {"path": "a.jpg", "bytes": None}, "conversations": chat("<image>Q", "A")},
    "bare base64": {"image": base64.b64encode(JPEG).decode(), "conversations": chat("<image>Q", "A")},
    "a data URL with line breaks": {
        "image": "data:image/jpeg;base64," + base64.encodebytes(JPEG).decode(),
        "conversations": chat("<image>Q", "A"),
    },
    "what is told of the picture": {"image": "a.jpg", "image_id": 3, "conversations": chat("<image>Q", "A")},
    "its name once more": {"image": "a.jpg", "file_name": "a.jpg", "meta": {"path": "x/a.jpg", "width": 3}, **ONE},
    "null-filled": {
        "image": "a.jpg",
        "video": None,
        "audios": [],
        "objects": {"bbox": [], "ref": [None]},
        "conversations": chat("<image>Q", "A"),
    },
}


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("convert", [llava_entry, MessagesEntry()], ids=["llava", "messages"])
def test_pictures_are_taken_along_however_they_are_given(name, convert, images):
    members = dict(check_entry({"id": 1, **TAKEN[name]}, convert, images)[0])
    record = json.loads(members.pop("json"))
    marks = sum(turn["value"].count("<image>") for turn in record["conversations"])
    assert list(members.values()) == [JPEG] * marks
    assert marks == (2 if name == "a list under images" else 1)


def asked(text, answer="A", **keys):
    return {"conversations": chat(text, answer), **keys}


OTHERS = (
    "[IMG]", "<ImageHere>", "(<image>./</image>)", "<image/>", "<im_patch>", "<IMG_CONTEXT>", "<|AUDIO|>", "<video_0>",
    "![a page](a.jpg)", "<img src='a.jpg'>", "<start_of_image>",
)  # fmt: skip
LOST = {
    "marks without images": (asked("<image>Q"), "marks"),
    "image null": (asked("<image>Q", image=None), "marks"),
    "image empty": (asked("<image>Q", image=""), "marks"),
    "no image in the list": (asked("<image>Q", image=[]), "marks"),
    "images empty": (asked("<image>Q", images=[]), "marks"),
    "image_path": (asked("<image>Q", image_path="a.jpg"), "media"),
    "image_id, no image": (asked("Q", image_id=7), "media"),
    "imageFile": (asked("Q", imageFile="a.jpg"), "media"),
    "video, mark of images": (asked("<image>\nQ", video="clip.mp4"), "media"),
    "video": (asked("<video>\nQ", video="clip.mp4"), "media"),
    "videos and images": (asked("<image><video>Q", images=["a.jpg"], videos=["clip.mp4"]), "media"),
    "video mark alone": (asked("<video>Q"), "marks"),
    "audios": (asked("<audio>Q", audios=["a.wav"]), "media"),
    "audio mark alone": (asked("<audio>Q"), "marks"),
    "qwen-vl": (asked("Picture 1: <img>a.jpg</img>\nQ"), "marks"),
    "qwen2-vl": (asked("<|vision_start|><|image_pad|><|vision_end|>Q"), "marks"),
    "phi": (asked("<|image_1|>Q"), "marks"),
    "numbered": (asked("<image 1> Q"), "marks"),
    **{mark: (asked(f"{mark} Q"), "marks") for mark in OTHERS},
    "a name of a file": (asked("Q", file_name="a.jpg"), "media"),
    "a film by its name": (asked("Q", path="x/clip.MP4"), "media"),
    "a name within": (asked("Q", data={"parts": [{"url": "a.png"}]}), "media"),
    "bytes as text": (asked("Q", blob=base64.b64encode(JPEG).decode()), "media"),
    "another one": (asked("<image>Q", image="a.jpg", second="b.jpg"), "media"),
    "box mark alone": (asked("<image>Find it", "<bbox>", image="a.jpg"), "marks"),
    "picture of an answer": (asked("Q", "<img>a.jpg</img>"), "marks"),
    "of a turn": ({"conversations": [{**chat("Q")[0], "images": ["a.jpg"]}, chat("Q", "A")[1]]}, "media"),
    "two that differ": (asked("<image>Q", image="a.jpg", images=["b.jpg"]), "media"),
    "null in the list": (asked("<image><image>Q", image=["a.jpg", None]), "image-name"),
    "unwanted": (asked("Q", label=False), "no-answer"),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("convert", [llava_entry, MessagesEntry()], ids=["llava", "messages"])
def test_an_entry_whose_media_are_not_taken_along_is_set_aside(name, convert, images):
    entry, reason = LOST[name]
    with pytest.raises(BadSample) as error:
        check_entry(entry, convert, images)
    looked_for = isinstance(convert, MessagesEntry) and ("video" in entry or "videos" in entry)
    assert error.value.reason == ("video-missing" if looked_for else reason)


BOXES = {"ref": ["sheep"], "bbox": [[1, 2, 3, 4]]}


def test_boxes_are_written_into_their_places_by_the_program_that_knows_them_and_else_set_aside(images):
    entry = asked("<image>Find <ref-object>", "At <bbox>", image="a.jpg", objects=BOXES)
    record = json.loads(check_entry(entry, MessagesEntry(), images)[0]["json"])
    assert [turn["value"] for turn in record["conversations"]] == ["<image>Find sheep", "At [1, 2, 3, 4]"]
    with pytest.raises(BadSample, match=r"key objects: .* is not read"):
        check_entry(entry, llava_entry, images)


def test_bytes_under_a_key_that_is_not_read_are_a_medium(images):
    with pytest.raises(BadSample, match=r"key blob: .* would be lost"):
        check_entry(asked("Q", blob={"bytes": b"RIFF"}), MessagesEntry(), images)


def test_llava_files_have_no_place_for_a_system_text_beside_the_conversation(images):
    with pytest.raises(BadSample, match=r"system text.*--format messages"):
        check_entry(asked("Q", system="Answer in French."), llava_entry, images)


def test_what_is_no_medium_and_not_read_is_counted_by_name(images, tmp_path, capsys):
    entry = asked("Q", "Use the <video> tag.", reasoning="...", score=3, label=True, empty="")
    entry["conversations"][1]["reasoning_content"] = "..."
    notes = check_entry(entry, llava_entry, images).changes
    names = ("reasoning", "score", "label", "conversations[].reasoning_content")
    assert notes == [*(UNREAD + name for name in names), "media tag kept as a word of an answer"]
    report, _ = converted(llava, tmp_path, [entry, entry, asked("Q")])
    assert report["unread"] == dict.fromkeys(sorted(names), 2)
    assert report["changed"] == {"media tag kept as a word of an answer": 2}
    assert "keys that were not read: conversations[].reasoning_content 2, label 2" in capsys.readouterr().out


def test_one_bad_entry_never_stops_a_conversion(images, tmp_path):
    entries = [
        asked("<image>Q", image="a.jpg", id="good"),
        asked("<image><image>Q", image=["a.jpg", None]),
        asked("<image>Q", image="caf\udce9.jpg", id="caf\udce9"),
        asked("<image>Q", image="iVBORw0KGgo" * 30_000, id="x" * 5000),
        asked("Q", **{"k\udce9": 1}),
        {"conversations": [None]},
        {"conversations": {"from": "human"}},
    ]
    report, lines = converted(llava, tmp_path, entries, "--workers", "1")
    assert report["records"] == 2
    assert [line["row"] for line in lines] == [1, 2, 3, 5, 6]
    assert [line["reason"] for line in lines[:3]] == ["image-name", "image-missing", "image-damaged"]
    assert max(len(json.dumps(line)) for line in lines) < 1500
    assert json.loads(json.dumps(lines[1]))["image"] == "caf\udce9.jpg"


def test_a_file_whose_name_is_not_utf8_is_read(images, tmp_path):
    try:
        (tmp_path / "images" / "caf\udce9.jpg").write_bytes(JPEG)
    except OSError:
        pytest.skip("this file system takes names of UTF-8 only")
    report, _ = converted(llava, tmp_path, [asked("<image>Q", image="caf\udce9.jpg")])
    assert report["images"] == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_is_not_utf8_is_missing_in_an_archive_and_stops_nothing(kind, images, tmp_path):
    archive = packed(tmp_path / "images", kind)
    entries = [asked("<image>Q", image="a.jpg"), asked("<image>Q", image="caf\udce9.jpg")]
    report, lines = converted(llava, tmp_path, entries, "--images", str(archive))
    assert (report["records"], lines[0]["reason"]) == (1, "image-missing")


@pytest.mark.parametrize("program", [llava, messages], ids=["llava", "messages"])
def test_the_quarantine_is_there_where_all_entries_are_bad(program, images, tmp_path):
    with pytest.raises(SystemExit, match=r"not one of 2 entries is good \(marks 2\).*the first: entry 0: turn 0 holds"):
        converted(program, tmp_path, [asked("<video>Q"), asked("<image>Q")])
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["marks", "marks"]
    with pytest.raises(SystemExit, match="not one of 2 entries is good"):  # again: nothing is taken for finished
        converted(program, tmp_path, [asked("<video>Q"), asked("<image>Q")])


def test_a_shard_keeps_which_answers_are_learnt(images, tmp_path):
    entry = asked("q1", "not this")
    entry["conversations"] = [*chat("q1", "not this", "q2", "this")]
    entry["conversations"][1]["weight"] = 0
    for program in (llava, messages):
        out = tmp_path / program.__module__
        (tmp_path / "x.jsonl").write_text(json.dumps(entry))
        program(["--json", str(tmp_path / "x.jsonl"), "--out", str(out), "--name", "n"])
        turns = json.loads(ShardReader(out).read(0)["json"])["conversations"]
        assert [turn.get("weight", 1) for turn in turns] == [1, 0, 1, 1]
