"""Per-question files: read back, and paired by id."""

import math

import numpy as np
import pytest

from dslight.files.typed import FileError
from dslight.report.questions import aligned, read_answers
from dslight.report.runs import collect


def test_a_run_s_answers_are_read_by_source_in_the_order_of_the_questions(tmp_path, finish, answer):
    run = finish(tmp_path / "run")
    answer(run, "textvqa", [1, 0.3, None], type=["a", "b", "b"])
    answer(run, "pope", [1])
    found = collect([tmp_path])[0][0].answers
    assert list(found) == ["pope", "textvqa"]
    text = found["textvqa"]
    assert (text.ids, text.types) == (("q0", "q1", "q2"), ("a", "b", "b"))
    assert text.scores[:2].tolist() == [1.0, 0.3]
    assert math.isnan(text.scores[2])
    assert text.mean == pytest.approx(0.65)
    assert [line.type for line in text.lines(["q2", "q0"])] == ["b", "a"]


def test_a_line_is_found_again_whatever_letters_stand_before_it(tmp_path, finish, answer):
    run = finish(tmp_path / "run")
    answer(run, "textvqa", [0, 1], prediction=["Ωμέγα — 漢字\u2028 and more", "second"])
    assert read_answers(run)["textvqa"].lines(["q1"])[0].prediction == "second"


def test_a_run_without_files_has_no_answers(tmp_path, finish):
    assert read_answers(finish(tmp_path / "run")) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "textvqa.jsonl:2: not JSON"),
        ('{"question_id": 1}', "textvqa.jsonl:2: score: missing"),
        ('{"question_id": 1, "score": "good"}', "textvqa.jsonl:2: score: must be a valid number, not 'good'"),
        ("[]", "textvqa.jsonl:2: the whole: must be an object"),
        ('{"question_id": 1, "score": 73.5}', "textvqa.jsonl:2: score: must be less than or equal to 1, not 73.5"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path, finish, answer, line, message):
    file = answer(finish(tmp_path / "run"), "textvqa", [1])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(FileError, match=message):
        read_answers(tmp_path / "run")


def test_runs_are_paired_on_the_questions_that_all_have_a_score_for(tmp_path, finish, answer):
    one, two, three = (finish(tmp_path / name) for name in ("one", "two", "three"))
    answer(one, "v", [0.1, 0.2, None, 0.4])
    answer(two, "v", [0.5, 0.6, 0.7], question_id=["q3", "q1", "q2"])
    answer(three, "v", [0.8, 0.9, 1.0, None], question_id=["q1", "q9", "q3", "q0"])
    found = [read_answers(run)["v"] for run in (one, two, three)]
    ids, scores = aligned(found)
    assert ids == ("q1", "q3")
    np.testing.assert_allclose(scores, [[0.2, 0.4], [0.6, 0.5], [0.8, 1.0]])
    ids, scores = aligned(found[:1])
    assert ids == ("q0", "q1", "q3")
    np.testing.assert_allclose(scores, [[0.1, 0.2, 0.4]])
    answer(three, "v", [1.0], question_id="other")
    assert aligned([*found, read_answers(three)["v"]])[1].shape == (4, 0)


def test_the_second_question_of_an_id_is_a_question_of_its_own(tmp_path, finish, answer):
    run = finish(tmp_path / "run")
    answer(run, "v", [1, 0, 0.5], question_id=["7", "8", "7"], prediction=["a", "b", "c"])
    found = read_answers(run)["v"]
    assert found.ids == ("7", "8", "7#2")
    assert [line.prediction for line in found.lines(["7#2", "7"])] == ["c", "a"]
