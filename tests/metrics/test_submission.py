"""Submission files, read back the way the official programs read them: their score is then our metric's."""

from __future__ import annotations

import io
import json

import pytest

from dslight.metrics import benchmarks
from dslight.metrics.base import Answer, Verdict
from dslight.metrics.functional.yes_no import parse_yes_no_mme, parse_yes_no_pope
from dslight.metrics.submission import FORMATS, submission
from dslight.types import Question


def answered(rows, **shared):
    """(id, references, prediction, more) as answers."""
    return [
        Answer(
            Question(**{"question_id": name, "text": "Which?", "references": references, **shared, **more}),
            said,
            Verdict(),
        )
        for name, references, said, more in rows
    ]


def score(benchmark, answers):
    metric = benchmarks.build(benchmark)
    metric.update_questions([answer.prediction for answer in answers], [answer.question for answer in answers])
    return {key: value.item() for key, value in metric.compute().items()}


def only(files):
    (content,) = files.values()
    return content.decode()


def test_vqav2_loads_as_a_result_file_of_its_api():
    """A list of dicts whose ids are exactly those of the questions, which are numbers."""
    answers = answered(
        [("262148000", (), "red", {}), ("262148001", (), "“2” cats\n", {"extra": {"official_id": 262148001}})]
    )
    for form in ("vqav2", "textvqa"):
        loaded = json.loads(only(submission(form, answers)))
        assert {row["question_id"] for row in loaded} == {262148000, 262148001}
        said = {"vqav2": "“2” cats", "textvqa": "“2” cats\n"}[form]  # TextVQA's server normalises
        assert {row["question_id"]: row["answer"] for row in loaded}[262148001] == said
        assert all(set(row) == {"question_id", "answer"} for row in loaded)


def test_gqa_joined_by_question_and_compared_exactly_gives_our_score():
    answers = answered([("0071", ("yes",), "Yes.", {}), ("0072", ("dog",), "Dog", {}), ("0073", ("cup",), " cup", {})])
    predictions = {row["questionId"]: row["prediction"] for row in json.loads(only(submission("gqa", answers)))}
    right = [predictions[a.question.question_id] == a.question.references[0] for a in answers]
    assert right == [True, True, False]
    assert sum(right) / 3 == score("gqa", answers)["exact_match"]


def test_documents_have_numbers_for_ids():
    answers = answered([("17", (), "1975", {})])
    assert json.loads(only(submission("docvqa", answers))) == [{"questionId": 17, "answer": "1975"}]
    (row,) = json.loads(only(submission("multidocvqa", answers)))
    assert row == {"questionId": 17, "answer": "1975", "answer_page": None}


def test_vizwiz_names_the_image():
    answers = answered([("VizWiz_test_00000000.jpg", (), "red", {}), ("1", (), "dog", {"extra": {"image": "b.jpg"}})])
    assert [row["image"] for row in json.loads(only(submission("vizwiz", answers)))] == [
        "VizWiz_test_00000000.jpg",
        "b.jpg",
    ]


def test_pope_joined_by_line_with_the_labels_of_each_file_gives_our_f1():
    asked = {
        "random": [("yes", "Yes"), ("no", "Yes, two"), ("yes", "no")],
        "popular": [("yes", "Yes."), ("no", "No")],
    }
    rows = [
        (f"{subset}-{number}", (label,), said, {"type": subset})
        for subset, pairs in asked.items()
        for number, (label, said) in enumerate(pairs)
    ]
    answers = answered(rows)
    files = submission("pope", answers)
    ours = score("pope", answers)
    assert sorted(files) == ["coco_pope_popular.jsonl", "coco_pope_random.jsonl"]
    for subset in ("random", "popular"):
        labels = [a.question.references[0] for a in answers if a.question.type == subset]
        said = [
            parse_yes_no_pope(json.loads(line)["answer"]) for line in files[f"coco_pope_{subset}.jsonl"].splitlines()
        ]
        hits = sum(label == answer == "yes" for label, answer in zip(labels, said, strict=True))
        assert 2 * hits / (labels.count("yes") + said.count("yes")) == pytest.approx(ours[f"f1/{subset}"])


def test_mme_read_two_lines_at_a_time_gives_our_points():
    """The official script takes neighbouring lines for the two questions of an image, which it checks by name."""
    rows = [
        ("0/0", ("yes",), "Yes", {}),
        ("1/0", ("yes",), "no", {}),
        ("0/1", ("no",), "No\tway", {}),
        ("1/1", ("no",), "no.", {}),
    ]
    answers = answered(rows, type="count")
    lines = submission("mme", answers)["count.txt"].decode().splitlines()
    pairs = [[line.split("\t") for line in lines[i : i + 2]] for i in range(0, len(lines), 2)]
    assert all(len(row) == 4 for pair in pairs for row in pair)
    assert all(first[0] == second[0] for first, second in pairs)
    right = [[parse_yes_no_mme(said) == label for _, _, label, said in pair] for pair in pairs]
    accuracy, plus = sum(map(sum, right)) / 4, sum(map(all, right)) / 2
    assert 100 * (accuracy + plus) == score("mme", answers)["count"] == 125.0


LETTERS = "Which?\nA. a cat\nB. a dog\nC. two birds\nD. no one"


def test_mmbench_is_a_sheet_with_a_prediction_for_every_index():
    openpyxl = pytest.importorskip("openpyxl")
    answers = answered([("3", (), "B", {}), ("1000003", (), "It\x07 is\nC", {})], text=LETTERS)
    (content,) = submission("mmbench", answers).values()
    head, *rows = openpyxl.load_workbook(io.BytesIO(content)).active.iter_rows(values_only=True)
    assert head == ("index", "question", "A", "B", "C", "D", "prediction")
    assert rows == [
        (3, "Which?", "a cat", "a dog", "two birds", "no one", "B"),
        (1000003, "Which?", "a cat", "a dog", "two birds", "no one", "It is\nC"),
    ]


def test_mmbench_is_a_table_with_tabs_where_openpyxl_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    text = submission("mmbench", answered([("3", (), "It is\n\tB", {})], text=LETTERS))["submission.tsv"].decode()
    assert [line.split("\t")[-1] for line in text.splitlines()] == ["prediction", "It is B"]


def test_seed_and_mm_vet_keep_the_ids_of_their_files():
    answers = answered([("v1_0", (), "A cat sits.", {}), ("v1_1", (), "x", {})])
    assert json.loads(only(submission("mmvet", answers))) == {"v1_0": "A cat sits.", "v1_1": "x"}
    lines = only(submission("seed", answered([("101669", ("A",), "A", {})]))).splitlines()
    assert [json.loads(line) for line in lines] == [{"question_id": "101669", "prediction": "A"}]


def test_letters_and_indices_are_those_that_the_protocol_reads_and_never_a_guess():
    rows = [("q0", (), "(B)", {}), ("q1", (), "it is B. a dog", {}), ("q2", (), "none", {})]
    answers = answered(rows, text=LETTERS)
    assert json.loads(only(submission("egoschema", answers))) == {"q0": 1, "q1": 1, "q2": -1}
    open_question = answered([("q3", (), "so it is 2.5", {})])
    found = json.loads(only(submission("mmmu", answers + open_question)))
    assert found == {"q0": "B", "q1": "", "q2": "", "q3": "so it is 2.5"}


def test_video_answers_go_to_the_judge_with_question_and_reference():
    """Video-ChatGPT's script reads these four keys of a list, and makes the names unique itself."""
    rows = [
        ("4", ("a man",), "a boy", {"extra": {"video": "vid1"}}),
        ("5", ("run",), "walk", {"extra": {"video": "vid1"}}),
    ]
    loaded = json.loads(only(submission("video_judge", answered(rows))))
    assert [(row["video_name"], row["Q"], row["A"], row["pred"]) for row in loaded] == [
        ("vid1", "Which?", "a man", "a boy"),
        ("vid1", "Which?", "run", "walk"),
    ]


def test_an_unknown_format_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"submission: 'vqa' is not one of vqav2, .*video_judge"):
        submission("vqa", [])


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_answers_give_the_same_bytes(form):
    answers = answered([("3", ("yes",), "B", {"type": "count"})], text=LETTERS)
    files = submission(form, answers)
    assert files
    assert all(files.values())
    if form != "mmbench":  # a sheet holds the time at which it was made
        assert submission(form, answers) == files


def test_a_server_gets_a_row_for_every_question_of_the_split():
    answers = answered([("2", (), "red", {"extra": {"official_id": 2}})])
    rows = json.loads(only(submission("vqav2", answers, [1, 2, 3])))
    assert {row["question_id"]: row["answer"] for row in rows} == {1: "", 2: "red", 3: ""}
    answers = answered([("a.jpg", (), "red", {})])
    rows = json.loads(only(submission("vizwiz", answers, ["a.jpg", "b.jpg"])))
    assert rows == [{"image": "a.jpg", "answer": "red"}, {"image": "b.jpg", "answer": ""}]
    assert len(json.loads(only(submission("mmvet", answers, ["a.jpg", "b.jpg"])))) == 1
