"""Chats of other tools: what they mean in LLaVA's terms, and what they do not mean."""

import base64
import json

import pytest
from sources import PHOTO, chat, encode

from data_prep.messages import MessagesEntry
from dslight.data.sample import BadSample, parse_sample
from dslight.data.shards import ShardReader


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def parts(*content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "A"}]


URL = "data:image/png;base64," + base64.b64encode(encode(PHOTO)).decode()
TEXT = {"type": "text", "text": "Q"}
PATH = {"type": "image_url", "image_url": {"url": "a.png"}}
BYTES = {"type": "image_url", "image_url": {"url": URL}}
FILE = {"type": "image", "image": "file:///data/a.png"}
UNDERSTOOD = {
    "plain": ({"messages": said("Q", "A", "Q2", "A2")}, [], ["Q", "A", "Q2", "A2"], []),
    "qwen": ({"messages": parts(FILE, TEXT)}, ["data/a.png"], ["<image>\nQ", "A"], []),
    "qwen, no type": ({"messages": parts({"image": "a.png"}, {"text": "Q"})}, ["a.png"], ["<image>\nQ", "A"], []),
    "qwen, image last": ({"messages": parts(TEXT, {"image": "a.png"})}, ["a.png"], ["Q<image>", "A"], []),
    "openai path": ({"messages": parts(TEXT, PATH)}, ["a.png"], ["Q<image>", "A"], []),
    "openai bytes": ({"messages": parts(BYTES, TEXT)}, [encode(PHOTO)], ["<image>\nQ", "A"], []),
    "placeholders": (
        {"messages": parts({"type": "image"}, {"type": "image"}, TEXT), "images": ["a.png", "b.png"]},
        ["a.png", "b.png"], ["<image>\n<image>\nQ", "A"], [],
    ),
    "llama-factory": ({"messages": said("<image>Q", "A"), "images": ["a.png"]}, ["a.png"], ["<image>Q", "A"], []),
    "sharegpt": ({"conversations": chat("<image>\nQ", "A"), "image": "a.png"}, ["a.png"], ["<image>\nQ", "A"], []),
    "no mark": (
        {"messages": said("Q", "A"), "images": ["a.png"]}, ["a.png"], ["<image>\nQ", "A"], ["image marks added"],
    ),
    "system": (
        {"messages": [{"role": "system", "content": "Be brief."}, *said("Q", "A")]},
        [], ["Be brief.\n\nQ", "A"], ["system text put before the question"],
    ),
    "empty system": ({"messages": [{"role": "system", "content": ""}, *said("Q", "A")]}, [], ["Q", "A"], []),
    "answer first": ({"conversations": chat("x", "hello", "Q", "A")[1:]}, [], ["Q", "A"], ["first answer left out"]),
    "question last": ({"messages": said("Q", "A", "Q2")}, [], ["Q", "A"], ["last question left out"]),
    "the word in an answer": ({"messages": said("Q", "An <image> tag.")}, [], ["Q", "An <image> tag."], []),
    "system beside": (
        {"conversations": chat("<image>Q", "A"), "system": "Be brief.", "images": ["a.png"]},
        ["a.png"], ["Be brief.\n\n<image>Q", "A"], ["system text put before the question"],
    ),
    "messages null": ({"messages": None, "conversations": chat("Q", "A")}, [], ["Q", "A"], []),
    "null-filled part": ({"messages": parts({**TEXT, "image": None, "video": None})}, [], ["Q", "A"], []),
    "hf struct": (
        {"messages": said("<image>Q", "A"), "images": [{"bytes": URL[22:], "path": None}]},
        [encode(PHOTO)], ["<image>Q", "A"], [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_it_is_understood(name):
    raw, images, texts, changes = UNDERSTOOD[name]
    entry = MessagesEntry()({"id": 1, **raw})
    assert list(entry.images) == images
    assert [turn["value"] for turn in entry.record["conversations"]] == texts
    assert [turn["from"] for turn in entry.record["conversations"]] == ["human", "gpt"] * (len(texts) // 2)
    assert list(entry.changes) == changes
    assert entry.record["id"] == 1


def test_a_system_text_can_be_left_out():
    entry = MessagesEntry("drop")({"messages": [{"role": "system", "content": "Be brief."}, *said("Q", "A")]})
    assert entry.record["conversations"] == chat("Q", "A")
    assert list(entry.changes) == ["system text dropped"]


def test_a_system_text_can_be_kept_as_a_turn_of_its_own():
    messages = [{"role": "system", "content": "Be brief."}, *said("Q", "A")]
    entry = MessagesEntry("keep")({"messages": messages})
    assert entry.record["conversations"] == [{"from": "system", "value": "Be brief."}, *chat("Q", "A")]
    turns = parse_sample("k", {"json": json.dumps(entry.record).encode()}).turns
    assert [turn.role for turn in turns] == ["system", "human", "gpt"]


REFUSED = {
    "remote": ({"messages": parts({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}})}, "image-remote"),
    "audio": ({"messages": parts({"type": "audio", "audio": "a.wav"}, TEXT)}, "part"),
    "tool": ({"messages": [*said("Q"), {"role": "tool", "content": "4"}, *said("Q", "A")[1:]]}, "roles"),
    "too few images": ({"messages": said("<image> <image>", "A"), "images": ["a.png"]}, "marks"),
    "too many images": ({"messages": said("<image>", "A"), "images": ["a.png", "b.png"]}, "marks"),
    "broken bytes": ({"messages": parts({"image": "data:image/png;base64,???"})}, "image-damaged"),
    "no answer": ({"messages": said("Q")}, "no-answer"),
    "text and video": ({"messages": parts({**TEXT, "video": "a.mp4"})}, "media"),
    "less than nothing": ({"messages": [*said("Q"), {**said("Q", "A")[1], "weight": -0.5}]}, "weights"),
    "no messages": ({"text": "Q"}, "no-text"),
    "image null": ({"messages": said("<image>", "A"), "images": [None]}, "image-name"),
    "content as number": ({"messages": said(5, "A")}, "record"),
    "image as number": ({"messages": parts({"type": "image", "image": 5}, TEXT)}, "image-name"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_reason(name):
    raw, reason = REFUSED[name]
    with pytest.raises(BadSample) as error:
        MessagesEntry()(raw)
    assert error.value.reason == reason


def test_a_single_part_is_a_list_of_one():
    messages = [{"role": "user", "content": {"type": "text", "text": "Q"}}, *said("Q", "A")[1:]]
    assert MessagesEntry()({"messages": messages}).record["conversations"] == chat("Q", "A")


def test_the_program_writes_all_that_is_understood(tmp_path, program):
    (tmp_path / "images" / "data").mkdir(parents=True)
    for name in ("a.png", "b.png", "data/a.png"):
        (tmp_path / "images" / name).write_bytes(encode(PHOTO))
    entries = [{"id": name, **raw} for name, (raw, *_) in (UNDERSTOOD | REFUSED).items()]
    entries.append({"id": "two in a row", "messages": [*said("Q"), *said("Q", "A")]})
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    done = program(
        "messages", "--json", tmp_path / "chats.jsonl", "--images", tmp_path / "images", "--out", tmp_path / "out",
        "--max-bad", 0.5, "--workers", 2, "--shard-entries", 10,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reader = ShardReader(tmp_path / "out", check="full")
    samples = [parse_sample(reader.locate(row)[1], reader.read(row)) for row in range(len(reader))]
    assert {sample.id: [turn.text for turn in sample.turns] for sample in samples} == {
        name: texts for name, (_, _, texts, _) in UNDERSTOOD.items()
    }
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["bad"]["roles"] == 2
    assert sum(report["bad"].values()) == len(REFUSED) + 1
    assert report["changed"]["system text put before the question"] == 2
    assert report["changed"]["media tag kept as a word of an answer"] == 1


def test_answers_that_are_not_to_be_learnt_say_so_in_the_shard():
    for mark in ({"weight": 0}, {"loss": False}):
        messages = said("q1", "not this", "q2", "this")
        messages[1] |= mark
        record = MessagesEntry()({"messages": messages}).record
        turns = parse_sample("k", {"json": json.dumps(record).encode()}).turns
        assert [turn.learnt for turn in turns] == [True, False, True, True]
        with pytest.raises(BadSample, match="nothing to learn"):
            parse_sample("k", {"json": json.dumps(MessagesEntry()({"messages": messages[:2]}).record).encode()})


@pytest.mark.parametrize(("weight", "kept"), [(0.5, 0.5), (2, 2), (1.0, 1), (0.0, 0), (None, 1)])
def test_the_weight_of_an_answer_is_kept(weight, kept):
    messages = said("q1", "this", "q2", "that")
    messages[1] |= {"weight": weight}
    record = MessagesEntry()({"messages": messages}).record
    turns = parse_sample("k", {"json": json.dumps(record).encode()}).turns
    assert [turn.weight for turn in turns] == [1, kept, 1, 1]
    assert ("weight" in record["conversations"][1]) == (kept != 1)


@pytest.mark.parametrize(
    "mark", [{"weight": -1}, {"weight": float("nan")}, {"weight": "2"}, {"loss": 0.5}, {"train": 2}]
)
def test_a_weight_that_is_none_is_refused_by_name(mark):
    messages = said("q1", "this")
    messages[1] |= mark
    with pytest.raises(BadSample, match=f"{next(iter(mark))} of a message: "):
        MessagesEntry()({"messages": messages})
