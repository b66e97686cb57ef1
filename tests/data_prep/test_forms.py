"""Entries that hold no list of messages: what they say, and ms-swift's boxes in their places."""

import pytest
from sources import chat

from data_prep.forms import form_of, with_objects
from data_prep.messages import MessagesEntry
from dslight.data.sample import BadSample

FORMS = {
    "alpaca": (
        {"instruction": "Translate.", "input": "Hund", "output": "dog"}, ["Translate.\nHund", "dog"], "instructions"
    ),
    "alpaca, no input": ({"instruction": "Say A.", "input": "", "output": "A"}, ["Say A.", "A"], "instructions"),
    "alpaca, history": (
        {"instruction": "R", "output": "B", "history": [["Q", "A"]], "system": "S"}, ["S\n\nQ", "A", "R", "B"],
        "instructions",
    ),
    "ms-swift": (
        {"query": "<image>Q", "response": "A", "images": ["a.jpg"], "history": [["P", "Z"]]},
        ["P", "Z", "<image>Q", "A"],
        "questions with",
    ),
    "question": ({"question": "Q", "answer": "A", "image": "a.jpg"}, ["<image>\nQ", "A"], "questions with"),
    "prompt": ({"prompt": "Q", "completion": "A"}, ["Q", "A"], "questions with"),
    "caption": ({"image": "a.jpg", "caption": "A page."}, ["<image>\n", "A page."], "pictures with"),
    "text": ({"images": ["a.jpg"], "text": "\ufeffA page."}, ["<image>\n", "A page."], "pictures with"),
    "texts": ({"texts": [{"user": "Q", "assistant": "A"}], "images": []}, ["Q", "A"], "texts of user"),
    "messages": (
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, ["Q", "A"], "chats",
    ),
    "llava": ({"conversations": chat("Q", "A"), "messages": None}, ["Q", "A"], "LLaVA"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_it_is_read_as_a_conversation(name):
    raw, texts, form = FORMS[name]
    entry = MessagesEntry()(raw)
    assert [turn["value"] for turn in entry.record["conversations"]] == texts
    assert set(raw) - {"messages"} <= set(entry.read or ())
    found = form_of(raw)
    assert found is not None
    assert found.name.startswith(form)


def test_what_is_in_no_form_is_set_aside():
    for raw in (
        {"text": "Q"},
        {"question_id": 1, "image": "a.jpg", "text": "Q"},
        {"question": "Q"},
        {"answer": "A"},
        {"image": "a.jpg"},
        {"texts": []},
    ):
        with pytest.raises(BadSample, match="no other form that is known"):
            MessagesEntry()(raw)
        assert form_of(raw) is None


def said(asked: object, answer: str) -> list[dict[str, object]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def test_boxes_and_references_are_written_in_their_order():
    objects = {"ref": ["sheep", "dog"], "bbox": [[1, 2, 3, 4], [0.5, 6, 7, 8], [9, 10]]}
    messages = said([{"type": "text", "text": "Find <ref-object> and <ref-object>"}], "<bbox><bbox>, <bbox>")
    asked, answered = with_objects(messages, objects)
    assert asked["content"][0]["text"] == "Find sheep and dog"
    assert answered["content"] == "[1, 2, 3, 4][0.5, 6, 7, 8], [9, 10]"
    assert (
        with_objects(messages, '{"ref": ["sheep", "dog"], "bbox": [[1, 2], [3, 4], [5, 6]]}')[1]["content"]
        == "[1, 2][3, 4], [5, 6]"
    )


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"ref": ["a"], "bbox": []}, "more <bbox> than"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]] * 2}, "objects: 1 have no place <bbox>"),
        ({"ref": ["a"], "bbox": [[1, 2, 3]]}, r"a box is \[x1, y1, x2, y2\]"),
        ({"ref": ["a"], "bbox": ["1,2,3,4"]}, "a box is"),
        ([{"bbox": [1, 2, 3, 4]}], "lists of ref and bbox"),
    ],
)
def test_boxes_that_are_not_as_many_as_their_places_are_set_aside(objects, message):
    with pytest.raises(BadSample, match=message):
        with_objects(said("<ref-object>", "<bbox>"), objects)
