"""What is right by default: the numbers that papers report, thoughts that are no answers, pairs that were cut."""

import json

import pytest

from dslight.metrics import benchmarks
from dslight.metrics.base import Answer, Verdict
from dslight.metrics.functional.multiple_choice import parse_choice
from dslight.metrics.functional.thinking import UNFINISHED, spoken
from dslight.metrics.submission import submission
from dslight.types import Question


def ask(name, rows):
    """The metric after (answer, references, type) rows."""
    metric = benchmarks.build(name)
    questions = [Question(str(i), "Which?", refs, kind) for i, (_, refs, kind) in enumerate(rows)]
    metric.update_questions([said for said, _, _ in rows], questions)
    return metric, {key: float(value) for key, value in metric.compute().items()}


CAPITALS = [("Yes", "yes"), ("Red", "red"), ("Two", "2"), ("2.", "2"), ("A dog", "dog")]


def test_vqav2_normalises_against_answers_that_are_all_alike_with_the_bare_script_beside():
    _, scores = ask("vqav2", [(said, (reference,) * 10, "other") for said, reference in CAPITALS])
    assert scores["vqa_accuracy"] == 1.0
    assert scores["vqa_accuracy_official"] == 0.0


@pytest.mark.parametrize(("form", "key"), [("vqav2", "answer"), ("vizwiz", "answer")])
def test_what_is_uploaded_is_normalised(form, key):
    answers = [Answer(Question(str(i), "?", ()), said, Verdict()) for i, (said, _) in enumerate(CAPITALS)]
    (content,) = submission(form, answers).values()
    assert [row[key] for row in json.loads(content)] == [reference for _, reference in CAPITALS]


def test_what_is_uploaded_holds_no_thoughts():
    answers = [Answer(Question("1", "?", ()), "<think>cat?</think> dog", Verdict())]
    (content,) = submission("docvqa", answers).values()
    assert json.loads(content)[0]["answer"] == "dog"


def test_a_formula_with_capitals_is_right_in_ocrbench():
    kind = "Handwritten Mathematical Expression Recognition"
    assert ask("ocrbench", [("$A + B$", ("A+B",), kind)])[1]["accuracy"] == 1.0


def test_egoschema_takes_the_letter_whose_last_mention_comes_first():
    options = dict(zip("ABCDE", ("run", "sit", "eat", "cry", "fall"), strict=True))
    assert parse_choice("(A) or (B), no, (A)", options, "egoschema") == "B"


def test_an_mme_image_with_one_question_is_left_out():
    metric = benchmarks.build("mme")
    asked = [Question(f"{i}/{n}/count", "?", ("yes",), "count") for i, n in ((0, 0), (0, 1), (1, 0))]
    metric.update_questions(["yes", "no", "yes"], asked)
    assert float(metric.compute()["count"]) == 50.0
    metric.reset()
    metric.update_questions(["yes"], asked[2:])
    assert metric.compute()["total"].isnan()


def test_activitynet_is_scored_by_exact_match_without_a_judge():
    _, scores = ask("activitynetqa", [("No.", ("no",), "yes/no"), ("red", ("blue",), "color")])
    assert (scores["exact_match"], scores["exact_match/yes_no"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<think>\nNo.\n\n</think>\n\nYes", "Yes"),
        ("begun in the prompt</think>B", "B"),
        ("<think></think>", ""),
        ("<think>one</think><think>two</think>A", "A"),
        ("a < b", "a < b"),
        ("I think no", "I think no"),
    ],
)
def test_thoughts_are_cut_off(reply, answer):
    assert spoken(reply) == answer
    assert spoken(reply) is not UNFINISHED


@pytest.mark.parametrize("reply", ["<think>Is it", " <think>", "<think>a</think>b<think>c"])
def test_a_reply_that_ends_among_thoughts_is_no_answer(reply):
    assert spoken(reply) is UNFINISHED


@pytest.mark.parametrize("name", ["pope", "vqav2", "mmbench", "docvqa"])
def test_an_unfinished_reply_is_wrong_and_counted(name):
    reference = {"pope": "yes", "mmbench": "A"}.get(name, "yes")
    metric = benchmarks.build(name)
    question = Question("1", "Which?\nA. yes\nB. no", (reference,), metric.types[0] if metric.types else "")
    assert metric.update_questions(["<think>yes, A"], [question]) == [Verdict(0.0, True, True)]
    scores = {key: float(value) for key, value in metric.compute().items()}
    assert scores[metric.headline] == 0.0
    assert scores["unresolved"] == 1.0
