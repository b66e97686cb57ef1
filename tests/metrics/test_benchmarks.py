"""The table of benchmarks."""

from __future__ import annotations

import math

import pytest

from dslight.metrics import benchmarks
from dslight.metrics.vqa import VQAAccuracy
from dslight.types import Question

LETTERS = {"seed", "mmmu", "mmbench", "scienceqa", "ai2d", "egoschema", "nextqa"}
YES_NO = {"pope", "mme"}
FREE_TEXT = {"vqa", "exact", "vqav2", "textvqa", "vizwiz", "gqa", "docvqa", "infovqa", "chartqa", "ocrbench", "mmvet"}


def test_the_table_has_every_benchmark():
    assert sorted(benchmarks.BENCHMARKS) == sorted(LETTERS | YES_NO | FREE_TEXT)


@pytest.mark.parametrize("name", sorted(LETTERS | YES_NO | FREE_TEXT))
def test_a_right_answer_scores_full_marks_and_a_wrong_one_none(name):
    right, wrong = ("A", "B") if name in LETTERS else ("yes", "no") if name in YES_NO else ("12", "dog")
    for answer, full in ((right, True), (wrong, False)):
        metric = benchmarks.build(name)
        kind = metric.types[0] if metric.types else ""
        text = "Which?\nA. a cat\nB. a bird" if name in LETTERS else "Which?"
        ids = ("0/0", "0/1") if name == "mme" else ("0", "1")
        metric.update_questions([answer] * 2, [Question(i, text, (right,), kind) for i in ids])
        result = metric.compute()
        top = 200.0 if name == "mme" else 1.0
        assert result[metric.headline].item() == (top if full else 0.0)
        if kind and name != "mme":
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


def test_an_unknown_benchmark_is_refused_with_the_list():
    with pytest.raises(ValueError, match=r"benchmark: 'vqa2' is not one of .*vqav2"):
        benchmarks.get("vqa2")


def test_letter_benchmarks_ask_for_a_letter_and_answers_have_room():
    for name, row in benchmarks.BENCHMARKS.items():
        assert ("letter" in row.suffix) == (name in LETTERS)
        assert row.max_new_tokens >= 16
