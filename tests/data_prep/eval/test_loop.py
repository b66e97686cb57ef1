"""What the validation loop asks of converted shards: one row per question, with its images where they are marked."""

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from data_prep.digits import write_tokenizer
from dslight.data.conversation import template
from dslight.data.datamodule import ShardData, ValSource
from dslight.data.images import SingleView
from dslight.layout import SlotLayout
from dslight.metrics.benchmarks import LETTER, SHORT, get

SLOTS = 4


@pytest.fixture
def asked(tmp_path):
    """The batches of shards, as the data module gives them."""
    write_tokenizer(tmp_path / "tokenizer")

    def ask(shards, benchmark):
        data = ShardData([], SingleView(), 4, {"it": ValSource(str(shards.out), benchmark=benchmark)}, template="bare")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
        data.connect(tokenizer, (8, 8), SlotLayout((2, 2)), {"it": get(benchmark).suffix})
        data.setup("validate")
        return list(data.val_dataloader()[0])

    return ask


def solid(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path, "PNG")


def levels(batch):
    return batch.views.base().float().mean((1, 2, 3)).tolist()


def test_images_stand_at_their_marks_in_the_order_of_the_marks(put, convert, asked, tmp_path):
    for name, level in (("a.png", 50), ("b.png", 200)):
        solid(tmp_path / "images" / name, level)
    row = {"options": "['<image 2>', 'none', '<image 1>']", "answer": "A", "question_type": "multiple-choice"}
    row |= {"id": "validation_Art_3", "question": "Which?", "image_1": "a.png", "image_2": "b.png"}
    (batch,) = asked(convert("mmmu", annotations=[put("m.json", [row])]), "mmmu")
    assert levels(batch) == [200, 50]
    assert [question.question_id for question in batch.questions] == ["validation_Art_3"]
    marked = torch.diff(batch.visual_mask[0].int(), prepend=torch.zeros(1, dtype=torch.int32))
    assert (marked == 1).sum() == 2  # two images, with the second option between them
    assert batch.visual_mask.sum() == 2 * SLOTS


def test_questions_of_one_image_are_rows_of_their_own(put, convert, asked, tmp_path):
    solid(tmp_path / "images" / "png" / "c.png", 90)
    put("test_human.json", [{"imgname": "c.png", "query": f"{i}?", "label": str(i)} for i in range(3)])
    put("test_augmented.json", [])
    (batch,) = asked(convert("chartqa"), "chartqa")
    assert batch.visual_mask.sum() == 3 * SLOTS
    assert levels(batch) == [90]  # which is looked at once
    assert batch.pictures == [0, 0, 0]
    assert [question.references for question in batch.questions] == [("0",), ("1",), ("2",)]


def test_a_question_without_image_and_frames_of_a_video(put, convert, asked, tmp_path):
    problem = {"question": "?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None}
    put("problems.json", {"1": problem})
    put("pid_splits.json", {"test": ["1"]})
    (batch,) = asked(convert("scienceqa"), "scienceqa")
    assert batch.visual_mask.sum() == 0
    uid = "0074f737"
    for i in range(6):
        solid(tmp_path / "images" / uid / f"{i}.png", 20 + 30 * i)
    put("questions.json", [{"q_uid": uid, "question": "?", **{f"option {i}": "x" for i in range(5)}}])
    put("subset_answers.json", {uid: 0})
    (batch,) = asked(convert("egoschema", "--tile", "none", "--frames", 3), "egoschema")
    assert levels(batch) == pytest.approx([50, 110, 170], abs=2)
    assert batch.visual_mask.sum() == 3 * SLOTS


def test_an_open_question_among_letters_is_asked_for_a_phrase(put, convert, asked, tmp_path):
    row = {"image_1": None, "question": "A1", "answer": "A"}
    letters = row | {"id": "validation_Math_1", "options": "['B2', 'C3']", "question_type": "multiple-choice"}
    free = row | {"id": "validation_Math_2", "options": "[]", "question_type": "open"}
    (batch,) = asked(convert("mmmu", annotations=[put("m.json", [letters, free])]), "mmmu")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for row, text in enumerate(["A1\nA. B2\nB. C3" + LETTER, "A1" + SHORT]):
        ids = batch.input_ids[row][batch.attention_mask[row].bool()].tolist()
        assert ids == template("bare").prompt(text, 0, tokenizer)
    assert batch.attention_mask.sum(1).diff() != 0
