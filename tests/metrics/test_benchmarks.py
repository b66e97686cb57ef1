"""The table of benchmarks."""

from __future__ import annotations

import math

import pytest

from dslight.metrics import benchmarks
from dslight.metrics.base import Verdict
from dslight.metrics.submission import FORMATS
from dslight.metrics.vqa import VQAAccuracy
from dslight.types import Question

LETTERS = {"seed", "mmmu", "mmbench", "scienceqa", "ai2d", "egoschema", "nextqa"}
LETTERS |= {"choice", "circular", "mmstar", "realworldqa", "blink", "hrbench", "vstar", "cvbench", "mmmu_pro"}
LETTERS |= {"videomme", "mvbench", "longvideobench", "mlvu"}
YES_NO = {"pope", "mme", "yes_no", "hallusionbench"}
FREE_TEXT = {"vqa", "exact", "vqav2", "textvqa", "vizwiz", "gqa", "docvqa", "infovqa", "multidocvqa", "chartqa"} | {
    "ocrbench", "activitynetqa", "short", "countbench", "mathvista", "chartqapro",
    "mmlongbench_doc", "ocrbench_v2",
}  # fmt: skip
GROUPS = {"figure_group": 0, "question_group": 0, "group": 0}
PLACES = {"refcoco", "screenspot"}
JUDGED = {"mmvet", "msvdqa", "charxiv", "llava_bench"}


def test_the_table_has_every_benchmark():
    assert sorted(benchmarks.BENCHMARKS) == sorted(LETTERS | YES_NO | FREE_TEXT | PLACES | JUDGED)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_a_box_that_fits_scores_and_one_elsewhere_does_not(name):
    metric = benchmarks.build(name)
    asked = [Question(str(i), "Where?", ("[0.1, 0.1, 0.5, 0.5]",)) for i in range(2)]
    metric.update_questions(["[100, 110, 500, 500]", "[600, 600, 900, 900]"], asked)
    assert [verdict.score for verdict in metric.verdicts] == [1.0, 0.0]


@pytest.mark.parametrize("name", sorted(LETTERS | YES_NO | FREE_TEXT))
def test_a_right_answer_scores_full_marks_and_a_wrong_one_none(name):
    right, wrong = ("A", "B") if name in LETTERS else ("yes", "no") if name in YES_NO else ("12", "dog")
    for answer, full in ((right, True), (wrong, False)):
        metric = benchmarks.build(name)
        kind = metric.types[0] if metric.types else ""
        text = "Which?\nA. a cat\nB. a bird" if name in LETTERS else "Which?"
        ids = ("0/0", "0/1") if name == "mme" else ("0", "1")
        metric.update_questions([answer] * 2, [Question(i, text, (right,), kind, extra=GROUPS) for i in ids])
        assert [verdict.score for verdict in metric.verdicts] == [float(full)] * 2
        result = metric.compute()
        top = 200.0 if name == "mme" else 1.0
        assert result[metric.headline].item() == (top if full else 0.0)
        if kind and name not in ("mme", "cvbench", "mlvu", "ocrbench_v2"):  # whose numbers are no means
            typed = [value.item() for key, value in result.items() if key.startswith(f"{metric.headline}/")]
            assert sum(not math.isnan(value) for value in typed) == 1


def test_a_metric_is_fresh_every_time():
    first, second = benchmarks.build("vqa"), benchmarks.build("vqa")
    first.update(["a"], [["a"]])
    assert second.count.sum() == 0


def test_overrides_replace_the_metrics_arguments():
    metric = benchmarks.build("vqav2", protocol="deepstack_fork", types=None)
    assert isinstance(metric, VQAAccuracy)
    assert metric.protocol == "deepstack_fork"
    assert metric.types == ()
    assert benchmarks.build("mmbench", circular_groups=7).headline == "circular_accuracy"


def test_thoughts_have_room_beside_the_answer_unless_a_limit_is_named():
    from types import SimpleNamespace

    said = dict.fromkeys(("benchmark", "protocol", "suffix", "max_new_tokens", "metric", "thinking"))
    assert benchmarks.row_of("docvqa", SimpleNamespace(**said)).max_new_tokens == 32
    assert benchmarks.row_of("docvqa", SimpleNamespace(**said | {"thinking": True})).max_new_tokens == 32 + 2048
    limited = said | {"thinking": True, "max_new_tokens": 100}
    assert benchmarks.row_of("docvqa", SimpleNamespace(**limited)).max_new_tokens == 100


def test_an_unknown_benchmark_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"benchmark: 'vqa2' is not one of .*vqav2"):
        benchmarks.get("vqa2")


def test_letter_benchmarks_ask_for_a_letter_and_answers_have_room():
    for name, row in benchmarks.BENCHMARKS.items():
        assert ("letter" in row.suffix) == (name in LETTERS), name
        assert row.max_new_tokens >= 16


@pytest.mark.parametrize("name", sorted(LETTERS | YES_NO | FREE_TEXT))
def test_questions_whose_answers_are_hidden_are_neither_scored_nor_counted(name):
    """Among the others, and alone."""
    right = "A" if name in LETTERS else "yes" if name in YES_NO else "12"
    text = "Which?\nA. a cat\nB. a bird" if name in LETTERS else "Which?"
    metric = benchmarks.build(name)
    kind = metric.types[0] if metric.types else ""
    hidden = Question("0/0" if name == "mme" else "0", text, (), extra=GROUPS)
    shown = [Question(i, text, (right,), kind, extra=GROUPS) for i in ("1/0", "1/1")[: 2 if name == "mme" else 1]]
    verdicts = metric.update_questions([right] * (1 + len(shown)), [hidden, *shown])
    assert verdicts == [Verdict(None, False), *[Verdict(1.0, False)] * len(shown)]
    assert metric.compute()[metric.headline].item() == (200.0 if name == "mme" else 1.0)
    metric.reset()
    metric.update_questions([right], [hidden])
    assert all(value.isnan() for value in metric.compute().values())


@pytest.mark.parametrize("name", sorted(JUDGED))
def test_what_a_language_model_judges_is_written_and_not_scored(name):
    row, metric = benchmarks.get(name), benchmarks.build(name)
    assert row.judge
    assert row.submission in FORMATS
    assert metric.update_questions(["a dog"], [Question("1", "What?", ("a dog",), "what")]) == [Verdict()]
    assert metric.compute()["score"].isnan()


def test_every_hidden_split_and_every_judge_has_a_format():
    for name, row in benchmarks.BENCHMARKS.items():
        assert row.submission is None or row.submission in FORMATS, name
        assert row.submission or not (row.hidden or row.judge), name


def test_mmbench_counts_a_question_that_is_right_in_all_its_rotations():
    metric, text = benchmarks.build("mmbench"), "Which?\nA. a cat\nB. a bird"
    asked = [
        Question(str(index), text, (letter,)) for index, letter in [(7, "A"), (1000007, "B"), (8, "A"), (1000008, "B")]
    ]
    metric.update_questions(["A", "B", "A", "A"], asked)
    assert {key: value.item() for key, value in metric.compute().items()} == {
        "circular_accuracy": 0.5,
        "accuracy": 0.75,
        "unresolved": 0.0,
    }
    with pytest.raises(ValueError, match="question 'a7': circular evaluation needs MMBench's index as its id"):
        metric.update_questions(["A"], [Question("a7", text, ("A",))])
