"""Letters and yes/no against the numbers of the official evaluators."""

from __future__ import annotations

import math

import pytest

from dslight.metrics.functional.multiple_choice import parse_choice
from dslight.metrics.functional.yes_no import MME_PERCEPTION, parse_yes_no_mme, parse_yes_no_pope
from dslight.metrics.multiple_choice import MultipleChoiceAccuracy
from dslight.metrics.yes_no import MMEScore, POPEMetric

pytestmark = pytest.mark.golden_metrics

FILES = ["mc_mmmu", "mc_mmbench", "mc_seed", "mc_scienceqa"]
PARSED = {
    "mmmu": "mmmu_official_parsed",
    "mmmu_lmms_eval": "lmms_eval_mmmu_parsed",
    "mmbench": "vlmevalkit_can_infer",
    "mmbench_lmms_eval": "lmms_eval_mmbench_can_infer",
    "scienceqa": "scienceqa_llava_parsed",
}
SCORED = {
    "letter": "seed_llava_exact",
    "first_char": "seed_lmms_eval",
    "first_char_cased": "seed_lmms_eval_deepstack_fork",
    "scienceqa": "scienceqa_llava",
    "scienceqa_lmms_eval": "scienceqa_lmms_eval",
    "mvbench": "mvbench_lmms_eval",
}
MAIN = {"mc_mmmu": "mmmu", "mc_mmbench": "mmbench", "mc_seed": "first_char", "mc_scienceqa": "scienceqa"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("protocol", "key"), PARSED.items())
def test_the_letter_read_equals_that_of_each_evaluator(golden, name, protocol, key):
    compared = 0
    for case in golden(name):
        expected = case["extra"][key]
        if expected is not None and expected.startswith("n/a"):
            continue  # their code cannot take that many options
        if expected not in case["options"]:  # "Z", "FAILED", a random guess, or a letter that is not offered
            expected = None
        assert parse_choice(case["prediction"], case["options"], protocol) == expected, case["id"]
        compared += 1
    assert compared > 0.7 * len(golden(name))


def judge(metric, case):
    metric.reset()
    metric.update([case["prediction"]], [case["answers"]], options=[case["options"]])
    result = metric.compute()
    return result["accuracy"].item(), bool(result["unresolved"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("protocol", "key"), SCORED.items())
def test_multiple_choice_accuracy_equals_each_evaluator(golden, name, protocol, key):
    metric = MultipleChoiceAccuracy(protocol)
    for case in golden(name):
        assert judge(metric, case)[0] == case["extra"][key], case["id"]


@pytest.mark.parametrize(("name", "protocol"), MAIN.items())
def test_the_main_multiple_choice_score_is_that_of_its_protocol(golden, name, protocol):
    metric = MultipleChoiceAccuracy(protocol)
    for case in golden(name):
        score, _ = judge(metric, case)
        assert score == (case["score"] or 0.0), case["id"]


def test_where_mmmu_guesses_at_random_the_answer_is_unresolved_and_scores_0(golden):
    metric = MultipleChoiceAccuracy("mmmu")
    for case in golden("mc_mmmu"):
        guessed = case["extra"]["random_fallback_official"]
        score, unresolved = judge(metric, case)
        assert unresolved == guessed, case["id"]
        assert not (guessed and score), case["id"]


def results_of_pope(case, protocol):
    metric = POPEMetric(protocol=protocol)
    metric.update(case["predictions"], case["answers"])
    return {key: value.item() for key, value in metric.compute().items()}


def test_pope_equals_the_official_script_and_is_0_where_that_divides_by_zero(golden):
    for case in golden("pope"):
        ours, theirs = results_of_pope(case, "official"), case["result"]
        assert [parse_yes_no_pope(answer) for answer in case["predictions"]] == case["extra"]["parsed_official"]
        for key in ("f1", "precision", "recall", "yes_ratio"):
            if theirs[key] is None:  # ZeroDivisionError: what is printed before it is lost too
                assert key != "f1" or ours[key] == 0.0, case["id"]
            else:
                assert ours[key] == pytest.approx(theirs[key], abs=1e-6), (case["id"], key)
        right = theirs["TP"] + theirs["TN"]
        assert ours["accuracy"] == pytest.approx(right / len(case["answers"]), abs=1e-6)
        if case["score"] is not None:
            assert ours["f1"] == pytest.approx(case["score"], abs=1e-6), case["id"]


@pytest.mark.parametrize(
    ("protocol", "key"), [("lmms_eval", "lmms_eval"), ("vlmevalkit", "vlmevalkit_without_llm_judge")]
)
def test_pope_equals_the_other_kits(golden, protocol, key):
    for case in golden("pope"):
        ours = results_of_pope(case, protocol)
        for name, value in case["extra"][key].items():
            assert ours[name.replace("f1_score", "f1")] == pytest.approx(value, abs=1e-6), (case["id"], name)


def results_of_mme(case, protocol):
    images: dict[str, dict[str, int]] = {}
    for task, image in zip(case["categories"], case["image_ids"], strict=True):
        images.setdefault(task, {}).setdefault(image, len(images[task]) if task in images else 0)
    index = [images[t][i] for t, i in zip(case["categories"], case["image_ids"], strict=True)]
    metric = MMEScore(protocol=protocol)
    metric.update(case["predictions"], case["answers"], types=case["categories"], image_index=index)
    return {key: value.item() for key, value in metric.compute().items()}


def test_mme_equals_the_official_script(golden):
    for case in golden("mme"):
        ours = results_of_mme(case, "official")
        parsed = [parse_yes_no_mme(answer) or "other" for answer in case["predictions"]]
        assert parsed == case["extra"]["parsed_official"], case["id"]
        assert ours["unresolved"] == pytest.approx(parsed.count("other") / len(parsed))
        if case["score"] is not None:
            assert ours["total"] == pytest.approx(case["score"], abs=1e-6), case["id"]
            for key in ("perception", "cognition"):
                assert ours[key] == pytest.approx(case["result"][key], abs=1e-6), (case["id"], key)
            for task, score in case["result"]["per_category"].items():
                assert ours[task] == pytest.approx(score, abs=1e-6), (case["id"], task)


def test_mme_equals_the_other_kits(golden):
    for case in golden("mme"):
        ours, theirs = results_of_mme(case, "lmms_eval"), case["extra"]["lmms_eval"]
        assert ours["perception"] == pytest.approx(theirs["mme_perception_score"], abs=1e-6), case["id"]
        assert ours["cognition"] == pytest.approx(theirs["mme_cognition_score"], abs=1e-6), case["id"]
        ours, theirs = results_of_mme(case, "vlmevalkit"), case["extra"]["vlmevalkit_without_llm_judge"]
        assert ours["perception"] == pytest.approx(theirs["perception"], abs=1e-6), case["id"]
        assert ours["cognition"] == pytest.approx(theirs["reasoning"], abs=1e-6), case["id"]


def test_an_mme_task_without_a_yes_or_no_scores_0_where_the_official_script_raises():
    metric = MMEScore()
    metric.update(["a dog", "maybe"], ["yes", "no"], types=[MME_PERCEPTION[0]] * 2, image_index=[0, 0])
    result = metric.compute()
    assert result["existence"] == 0.0
    assert result["unresolved"] == 1.0
    assert math.isnan(result["count"])
