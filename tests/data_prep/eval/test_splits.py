"""Splits and forms of the authors' files beside the usual ones, and what their servers want to know of them."""

import json

import pytest

from data_prep.eval.files import Files, find_parquet
from data_prep.eval.sets import SETS


@pytest.mark.parametrize("split", ["challenge_balanced", "submission_all", "test_balanced"])
def test_gqa_asks_the_questions_of_hidden_splits(put, save, convert, split):
    """``submission_all`` is what its server reads; it has no answers."""
    put(f"{split}_questions.json", {"201": {"question": "Which?", "imageId": "n1", "isBalanced": True}})
    put("testdev_balanced_questions.json", {"9": {"question": "?", "imageId": "n1", "answer": "no"}})
    save("n1.jpg")
    shards = convert("gqa", "--split", split)
    assert {name: question.references for name, question in shards.questions.items()} == {"201": ()}
    assert shards.facts["201"]["hidden"] is True
    assert json.loads((shards.out / "official_ids.json").read_text()) == ["201"]


@pytest.mark.parametrize(
    ("split", "hides"),
    [("test", True), ("test-dev2015", True), ("challenge_all", True), ("testdev_all", True), ("testmini", True)],
)
def test_which_splits_keep_their_answers(split, hides):
    """A split that could be hidden and has answers is scored all the same."""
    assert Files({}, split).hides == hides
    assert Files({}, split, public=SETS["gqa"].public).hides == (hides and split != "testdev_all")


def test_a_split_is_asked_for_by_whole_words(tmp_path):
    for name in ("testdev_balanced_images/testdev-00000", "Full/adversarial-00000", "data/validation-00000"):
        path = tmp_path / f"{name}-of-00001.parquet"
        path.parent.mkdir()
        path.touch()
    for split, found in (("testdev_balanced", "testdev"), ("full", "adversarial"), ("val", "validation")):
        (path,), _ = find_parquet([tmp_path], split, ())
        assert path.name.startswith(found)
    for split in ("test", "dev", "bal", "0000"):
        with pytest.raises(SystemExit, match=f"--split: '{split}' is none of"):
            find_parquet([tmp_path], split, ())


def test_msvdqa_in_the_form_of_video_chatgpt(put, save, convert):
    put("test_q.json", [{"video_name": "-4ws_5_15.avi", "question_id": 37092, "question": "what is a man doing?"}])
    put("test_a.json", [{"answer": "chop", "type": 0, "question_id": 37092}])
    save("-4ws_5_15/1.jpg")
    shards = convert("msvdqa")
    (question,) = shards.questions.values()
    assert (question.official_id, question.references, question.extra["video"]) == (37092, ("chop",), "-4ws_5_15.avi")


def test_infovqa_keeps_what_its_server_reports_by(put, save, convert):
    kinds = {"answer_type": ["single span"], "evidence": ["text"], "operation/reasoning": ["counting"]}
    item = {"questionId": 98313, "question": "?", "image_local_name": "30889.jpeg", "answers": ["lack of work"]}
    put("infographicsVQA_val_v1.0_withQT.json", {"data": [item | kinds]})
    save("30889.jpeg")
    facts = convert("infovqa").facts["98313"]
    assert {name: facts[name] for name in kinds} == kinds


def test_ids_of_the_whole_split_stay_with_a_slice_and_test_dev_has_those_of_the_test_set(put, save, convert):
    def questions(*numbers):
        return [{"image_id": 1, "question": "?", "question_id": number} for number in numbers]

    for name, numbers in (("test-dev2015", (10, 11)), ("test2015", (10, 11, 12))):
        content = {"data_subtype": name, "questions": questions(*numbers)}
        put(f"v2_OpenEnded_mscoco_{name}_questions.json", content)
    save("test2015/COCO_test2015_000000000001.jpg")
    shards = convert("vqav2", "--split", "test-dev2015", "--limit", 1)
    assert list(shards.questions) == ["10"]
    assert json.loads((shards.out / "official_ids.json").read_text()) == [10, 11, 12]
    shards = convert("vqav2", "--split", "test2015")
    assert list(shards.questions) == ["10", "11", "12"]
