"""The sets that ask about videos: their files are found, and their frames stand in the shards."""

import sys

import pytest
from clips import av, number, write_clip

from data_prep.videos import Videos
from dslight.data.sample import BadSample, decode_image

FPS, SECONDS = 10, 24


def write(path, seconds=SECONDS):
    """A video whose pictures show their tenths of a second."""
    return write_clip(path, list(range(0, 1000 * seconds, 1000 // FPS)), 1000 * seconds, gop=50)


def numbers(images) -> list[int]:
    return [number(decode_image(data)) for data in images]


def test_a_video_is_found_by_its_name_without_folders_and_ending(tmp_path):
    path = write(tmp_path / "videos" / "P03_24.MP4", 1)
    videos = Videos([tmp_path / "elsewhere", tmp_path / "videos"])
    assert videos.find("P03/P03_24.MP4") == path
    assert videos.find("P03_24") == path
    with pytest.raises(BadSample, match="'P03_25': there is none"):
        videos.find("P03_25")
    with pytest.raises(BadSample, match="must be a path below"):
        videos.find("../videos/P03_24.MP4")


def test_a_folder_of_frames_is_found_as_the_video_that_it_stands_for(tmp_path):
    folder = tmp_path / "1164" / "42"
    folder.mkdir(parents=True)
    for name in ("1164/42.mp4", "1164/42", "42"):
        assert Videos([tmp_path if "/" in name else tmp_path / "1164"]).find(name) == folder


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
    shards = convert("nextqa", "--tile", "none", "--frames", 4)
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
    assert numbers(shards.samples[0].images) == [30, 90, 150, 210]


def test_msvdqa_finds_a_clip_by_the_mapping_or_by_its_number(put, convert, tmp_path):
    rows = [
        {"answer": "couch", "id": 35756, "question": "what is a man sitting on?", "video_id": 1301},
        {"answer": "man", "id": 35757, "question": "who is sitting?", "video_id": 1301},
        {"answer": "two", "id": 35758, "question": "how many are there?", "video_id": 1302},
    ]
    put("test_qa.json", rows)
    put("val_qa.json", rows[:1])
    put("youtube_mapping.txt", "-4wsuPCjDBc_5_15 vid1301\n")
    write(tmp_path / "images" / "-4wsuPCjDBc_5_15.avi", 2)
    write(tmp_path / "images" / "vid1302.mp4", 2)
    shards = convert("msvdqa", "--tile", "none", "--frames", 2)
    assert {key: (q.text, q.references) for key, q in shards.questions.items()} == {
        "35756": ("what is a man sitting on?", ("couch",)),
        "35757": ("who is sitting?", ("man",)),
        "35758": ("how many are there?", ("two",)),
    }
    assert [len(sample.questions) for sample in shards.samples] == [2, 1]
    assert numbers(shards.images["35757"]) == [5, 15]
    asked = shards.questions["35758"]
    assert (asked.official_id, asked.extra["video"]) == (35758, "vid1302")


def test_activitynetqa_joins_questions_and_answers(put, convert, tmp_path):
    ids = ["v_1QIUV7WYKXg_1", "v_1QIUV7WYKXg_2", "v_v_aaaaaaaaa_1"]
    names = ["1QIUV7WYKXg", "1QIUV7WYKXg", "v_aaaaaaaaa"]
    asked = [
        {"video_name": name, "question": f"{key}?", "question_id": key} for key, name in zip(ids, names, strict=True)
    ]
    put("test_q.json", asked)
    put("test_a.json", [{"answer": str(i), "type": i + 2, "question_id": key} for i, key in enumerate(ids)][::-1])
    write(tmp_path / "images" / "v_1QIUV7WYKXg.mp4", 2)
    write(tmp_path / "images" / "v_v_aaaaaaaaa.mkv", 2)
    shards = convert("activitynetqa", "--side", 60)
    assert {key: (q.references, q.type) for key, q in shards.questions.items()} == {
        ids[0]: (("0",), "temporal relationship"),
        ids[1]: (("1",), "yes/no"),
        ids[2]: (("2",), "color"),
    }
    assert shards.questions[ids[2]].extra == {"video": "v_aaaaaaaaa"}
    assert decode_image(shards.images[ids[0]][0]).shape == (60, 60, 3)


def test_a_video_that_was_cut_or_damaged_is_quarantined_with_its_reason(put, convert, tmp_path, capsys):
    header, row = NEXTQA.splitlines()[0], "{},369,640,480,what,0,6,CH,a,b,c,d,e"
    names = ("whole", "cut", "damaged", "empty")
    put("test.csv", "\n".join([header, *map(row.format, names)]))
    for name in names:
        write(tmp_path / "images" / f"{name}.mkv", 12)
    for name, change in {"cut": lambda data: data[: len(data) // 2], "empty": lambda data: b""}.items():
        path = tmp_path / "images" / f"{name}.mkv"
        path.write_bytes(change(path.read_bytes()))
    path = tmp_path / "images" / "damaged.mkv"
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = max(list(container.demux(video=0))[1:], key=lambda packet: packet.size)
    at = data.index(bytes(packet))
    data[at + 20 : at + packet.size] = bytes(packet.size - 20)
    path.write_bytes(data)
    with pytest.raises(SystemExit, match="video-"):
        convert("nextqa")
    shards = convert("nextqa", "--max-bad", "0.75", "--frames", 12)
    assert list(shards.questions) == ["whole_6"]
    assert {line["id"]: line["reason"] for line in shards.quarantine} == {
        "cut": "video-cut",
        "damaged": "video-damaged",
        "empty": "video-damaged",
    }
    assert "cut at " in shards.quarantine[0]["message"]


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
    shards = convert("seed", "--tile", "none", "--frames", 2)
    assert {key: numbers(images) for key, images in shards.images.items()} == {
        "v10": [60, 180],
        "v11": [105, 115],
        "v12": [65, 75],  # frames 90 to 120, 15 a second
    }


def test_without_pyav_the_program_says_what_to_install(egoschema, convert, tmp_path, monkeypatch):
    write(tmp_path / "images" / f"{egoschema[0]}.mp4")
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    with pytest.raises(SystemExit, match=r"reading videos needs PyAV; pip install 'dslight\[video\]'"):
        convert("egoschema")


def test_the_program_runs_from_the_command_line_and_again(egoschema, program, tmp_path):
    write(tmp_path / "images" / f"{egoschema[0]}.mp4", 2)
    arguments = ["--annotations", tmp_path / "annotations", "--images", tmp_path / "images", "--out", tmp_path / "out"]
    first = program("eval", "egoschema", *arguments, "--workers", 2, command=True)
    assert first.returncode == 0, first.stderr
    assert "1 of 1 questions; validate with: {root:" in first.stdout
    assert "finished already" in program("eval", "egoschema", *arguments).stdout
