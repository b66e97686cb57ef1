"""Free-text answers against the numbers of the official evaluators: every protocol on every golden case."""

from __future__ import annotations

import pytest

from dslight.metrics.answers import ANLS, ExactMatch, MMMUOpenAccuracy, RelaxedAccuracy, SubstringAccuracy
from dslight.metrics.functional.mmmu_open import parse_mmmu_open
from dslight.metrics.functional.vqa import normalize_vqa_m4c, normalize_vqa_official
from dslight.metrics.vqa import VQAAccuracy

pytestmark = pytest.mark.golden_metrics

VQA = {
    "official": "official_vqav2",
    "m4c": "m4c",
    "lmms_eval": "lmms_eval_vqav2",
    "deepstack_fork": "lmms_eval_deepstack_fork_vqav2",
    "vlmevalkit": "vlmevalkit",
}
ANLS_NAMES = {
    "rrc": "rrc_official",
    "lmms_eval": "lmms_eval",
    "stvqa": "mmf_stvqa_anls",
    "mp_docvqa": "mp_docvqa_framework",
    "pix2struct": "pix2struct_no_normalisation",
}
EXACT = {
    "strict": "official_raw",
    "llava": "official_after_llava_convert",
    "lmms_eval": "lmms_eval",
    "vlmevalkit": "vlmevalkit",
}
RELAXED = {
    "pix2struct": "pix2struct",
    "lmms_eval": "lmms_eval",
    "vlmevalkit": "vlmevalkit",
    "qwen_vl": "qwen_vl_swapped_arguments",
}


def judge(metric, case, **kwargs):
    """The score that a fresh metric gives to this case alone, and whether it was unresolved."""
    metric.reset()
    metric.update([case["prediction"]], [case["answers"]], **kwargs)
    result = metric.compute()
    return result[metric.headline].item(), bool(result["unresolved"])


def assert_same(metric, cases, expected, **kwargs):
    wrong = [
        (case["id"], got, want)
        for case in cases
        if abs((got := judge(metric, case, **kwargs)[0]) - (want := expected(case))) > 1e-6
    ]
    assert not wrong, f"(case, ours, theirs): {wrong[:5]}"


@pytest.mark.parametrize("name", ["vqa_accuracy_vqav2", "textvqa_m4c"])
@pytest.mark.parametrize(("protocol", "key"), VQA.items())
def test_vqa_accuracy_equals_each_evaluator(golden, name, protocol, key):
    assert_same(VQAAccuracy(protocol), golden(name), lambda case: case["extra"][key])


def test_the_main_vqa_scores_are_those_of_the_official_and_the_m4c_protocol(golden):
    assert_same(VQAAccuracy(), golden("vqa_accuracy_vqav2"), lambda case: case["score"])
    assert_same(VQAAccuracy("m4c"), golden("textvqa_m4c"), lambda case: case["score"])


@pytest.mark.parametrize("name", ["vqa_accuracy_vqav2", "textvqa_m4c"])
def test_normalised_answers_equal_those_of_the_official_code(golden, name):
    for case in golden(name):
        extra = case["extra"]
        assert normalize_vqa_m4c(case["prediction"]) == extra["normalised_prediction_m4c"], case["id"]
        if not extra["normalisation_skipped_official"]:
            assert normalize_vqa_official(case["prediction"]) == extra["normalised_prediction_official"], case["id"]


@pytest.mark.parametrize(("protocol", "key"), ANLS_NAMES.items())
def test_anls_equals_each_evaluator_and_is_unresolved_where_it_raises(golden, protocol, key):
    metric = ANLS(protocol=protocol)
    for case in golden("anls"):
        expected = case["extra"][key]
        raised = isinstance(expected, str)  # "ERROR:ZeroDivisionError"
        score, unresolved = judge(metric, case)
        assert score == pytest.approx(0.0 if raised else expected, abs=1e-6), case["id"]
        assert unresolved == raised, case["id"]


def test_the_main_anls_score_is_that_of_the_default_protocol(golden):
    assert_same(ANLS(), golden("anls"), lambda case: case["score"])


@pytest.mark.parametrize(("protocol", "key"), EXACT.items())
def test_exact_match_equals_each_evaluator(golden, protocol, key):
    assert_same(ExactMatch(protocol), golden("gqa_exact_match"), lambda case: case["extra"][key])
    if protocol == "strict":
        assert_same(ExactMatch(), golden("gqa_exact_match"), lambda case: case["score"])


@pytest.mark.parametrize(("protocol", "key"), RELAXED.items())
def test_relaxed_accuracy_equals_each_evaluator(golden, protocol, key):
    cases = golden("relaxed_accuracy_chartqa")
    assert_same(RelaxedAccuracy(protocol=protocol), cases, lambda case: case["extra"][key])
    if protocol == "pix2struct":
        assert_same(RelaxedAccuracy(), cases, lambda case: case["score"])


def test_mmmu_open_answers_are_parsed_and_scored_as_by_the_official_code(golden):
    cases = golden("mmmu_open")
    assert_same(MMMUOpenAccuracy(), cases, lambda case: case["score"])
    for case in cases:
        assert sorted(map(str, parse_mmmu_open(case["prediction"]))) == case["parsed"], case["id"]


@pytest.mark.parametrize("protocol", ["deepstack_fork", "lmms_eval"])
def test_substring_accuracy_equals_each_evaluator(golden, protocol):
    metric = SubstringAccuracy(protocol)
    for case in golden("ocrbench"):
        expected = case["score"] if protocol == "deepstack_fork" else case["extra"]["lmms_eval_head"]
        score, _ = judge(metric, case, types=["HME100k" if case["extra"]["hme100k"] else ""])
        assert score == expected, case["id"]


def test_a_whole_golden_file_in_batches_gives_the_mean_of_its_scores(golden):
    cases = golden("vqa_accuracy_vqav2")
    metric = VQAAccuracy()
    for start in range(0, len(cases), 7):
        batch = cases[start : start + 7]
        metric.update([case["prediction"] for case in batch], [case["answers"] for case in batch])
    mean = sum(case["score"] for case in cases) / len(cases)
    assert metric.compute()["vqa_accuracy"].item() == pytest.approx(mean, abs=1e-9)
