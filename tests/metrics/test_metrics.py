"""What all metrics share: keys, validity, types, dtype casts, copies, errors."""

from __future__ import annotations

import math
import pickle
import random

import pytest
import torch
from metric_cases import CASES, feed, values
from torchmetrics import MetricCollection

from dslight.metrics.answers import ANLS, ExactMatch, RelaxedAccuracy, SubstringAccuracy
from dslight.metrics.base import Verdict
from dslight.metrics.functional import anls
from dslight.metrics.functional.anls import ANLS_PROTOCOLS, anls_score
from dslight.metrics.functional.multiple_choice import parse_choice, parse_options
from dslight.metrics.functional.vqa import vqa_soft_score
from dslight.metrics.multiple_choice import MultipleChoiceAccuracy
from dslight.metrics.vqa import VQAAccuracy
from dslight.metrics.yes_no import MMEScore, POPEMetric
from dslight.types import Question

all_metrics = pytest.mark.parametrize("name", CASES)


def close(a, b):
    assert list(a) == list(b)
    assert a == pytest.approx(b, nan_ok=True, abs=1e-12)


@all_metrics
def test_the_headline_is_the_first_key_and_keys_do_not_depend_on_the_data(name):
    make, rows = CASES[name]
    empty = make()
    with pytest.warns(UserWarning, match="before the ``update``"):
        before = empty.compute()
    after = feed(make(), rows).compute()
    assert next(iter(after)) == empty.headline
    assert list(before) == list(after)
    assert all(math.isnan(value) for value in before.values())
    assert not math.isnan(after[empty.headline])
    assert all(value.ndim == 0 and value.dtype == torch.float64 for value in after.values())


@all_metrics
def test_a_cast_to_bfloat16_leaves_the_result_unchanged(name):
    make, rows = CASES[name]
    expected = values(feed(make(), rows * 100))
    metric = feed(make().to(torch.bfloat16), rows * 50)
    close(values(feed(metric.to(torch.bfloat16), rows * 50)), expected)


def test_a_thousand_updates_in_bfloat16_count_to_a_thousand():
    metric = ExactMatch().to(torch.bfloat16)
    for _ in range(1000):
        metric.update(["yes"], [["yes"]])
    assert metric.count.sum() == 1000
    metric.update(["no"], [["yes"]])
    assert metric.compute()["exact_match"].item() == pytest.approx(1000 / 1001, abs=1e-12)


@all_metrics
def test_rows_that_are_not_valid_are_left_out(name):
    make, rows = CASES[name]
    mixed = [row | {"valid": True} for row in rows] + [rows[0] | {"valid": False}] * 4
    close(values(feed(make(), mixed)), values(feed(make(), rows)))
    with pytest.warns(UserWarning, match="before the ``update``"):
        nothing = values(make())
    close(values(feed(make(), [row | {"valid": False} for row in rows])), nothing)


@all_metrics
def test_the_batch_size_does_not_matter(name):
    make, rows = CASES[name]
    close(values(feed(make(), rows, batch=1)), values(feed(make(), rows, batch=len(rows))))


@all_metrics
def test_reset_clone_pickle_and_merge_keep_the_result(name):
    make, rows = CASES[name]
    expected = values(feed(make(), rows))
    metric = feed(make(), rows)
    close(values(pickle.loads(pickle.dumps(metric))), expected)
    close(values(metric.clone()), expected)
    metric.reset()
    close(values(feed(metric, rows)), expected)
    merged, other = feed(make(), rows[:2]), feed(make(), rows[2:])
    merged.merge_state(other)
    close(values(merged), expected)


@all_metrics
def test_metrics_reset_in_inference_mode_still_update_outside_it(name):
    make, rows = CASES[name]
    metric = make()
    with torch.inference_mode():
        feed(metric, rows).reset()
    close(values(feed(metric, rows)), values(feed(make(), rows)))


@all_metrics
def test_plot_draws_the_scores(name):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    make, rows = CASES[name]
    figure, axes = feed(make(), rows).plot()
    assert figure is not None
    assert axes is not None
    plt.close("all")


@all_metrics
def test_forward_returns_the_score_of_the_batch_and_accumulates(name):
    make, rows = CASES[name]
    metric = make()
    for start in (0, 2):
        chunk = rows[start : start + 2] if start == 0 else rows[start:]
        of_batch = metric(**{key: [row[key] for row in chunk] for key in chunk[0]})
        close({key: value.item() for key, value in of_batch.items()}, values(feed(make(), chunk)))
    close(values(metric), values(feed(make(), rows)))


def test_a_collection_keeps_metrics_of_equal_state_apart():
    collection = MetricCollection({"a": ExactMatch("strict"), "b": ExactMatch("lmms_eval")}, compute_groups=False)
    collection.update(["yes"], [["yes"]])
    collection.update(["Yes."], [["yes"]])
    result = collection.compute()
    assert [value.item() for key, value in result.items() if "exact_match" in key] == [0.5, 1.0]


def test_the_breakdown_has_one_key_per_type_and_untyped_questions_count_overall():
    metric = VQAAccuracy(types=("yes/no", "what is"))
    metric.update(["yes", "cat", "x"], [["yes"], ["dog"], ["x"]], types=["yes/no", "what is", ""])
    result = {key: value.item() for key, value in metric.compute().items()}
    assert result == {
        "vqa_accuracy": pytest.approx(2 / 3),
        "vqa_accuracy/yes_no": 1.0,
        "vqa_accuracy/what_is": 0.0,
        "unresolved": 0.0,
    }


def test_types_are_ignored_by_a_metric_without_a_breakdown():
    metric = ExactMatch()
    metric.update(["a"], [["a"]], types=["anything"])
    assert list(metric.compute()) == ["exact_match", "unresolved"]


def test_a_type_without_questions_is_nan():
    metric = RelaxedAccuracy()
    metric.update(["1"], [["1"]], types=["human"])
    assert math.isnan(metric.compute()["relaxed_accuracy/augmented"])


# --- the leave-one-out rule ---


@pytest.mark.parametrize(("matches", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_with_ten_references_m_matches_give_three_tenths_each_up_to_one(matches, score):
    references = ["red"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert vqa_soft_score("Red" if matches < 10 else "red", references) == pytest.approx(score)


@pytest.mark.parametrize("protocol", ["official", "m4c", "lmms_eval", "deepstack_fork", "vlmevalkit"])
def test_a_single_reference_is_exact_match_after_normalisation(protocol):
    assert vqa_soft_score("The RED car!", ["a red car"], protocol) == 1.0
    assert vqa_soft_score("blue", ["a red car"], protocol) == 0.0


@pytest.mark.parametrize("n", range(1, 12))
def test_unanimous_references_give_1_whatever_their_number(n):
    assert vqa_soft_score("cat", ["cat"] * n) == 1.0
    assert vqa_soft_score("dog", ["cat"] * n) == 0.0


def test_of_two_and_three_references_one_match_gives_a_half_and_a_third():
    assert vqa_soft_score("cat", ["cat", "dog"]) == pytest.approx(1 / 2)
    assert vqa_soft_score("cat", ["cat", "dog", "cow"]) == pytest.approx(1 / 3)
    assert vqa_soft_score("cat", ["cat", "cat", "cow"]) == pytest.approx(2 / 3)


def test_the_protocols_disagree_on_ten_times_yes():
    assert vqa_soft_score("yes.", ["yes"] * 10, "official") == 0.0
    assert vqa_soft_score("yes.", ["yes"] * 10, "m4c") == 1.0


def distance_by_hand(a: str, b: str) -> int:
    """Characters to insert, delete or replace, row by row."""
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, start=1):
        above_left, row[0] = row[0], i
        for j, other in enumerate(b, start=1):
            above_left, row[j] = row[j], min(above_left + (char != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@pytest.mark.parametrize("protocol", ANLS_PROTOCOLS)
def test_anls_counts_characters_exactly(protocol, monkeypatch):
    """Of 1,000 random pairs: empty, combined, beyond the basic plane, half a surrogate, longer than a machine word."""
    rng = random.Random(protocol)
    letters = "abAB  \n1ßİé\u0301漢\U0001f600\ud800\x00"

    def text() -> str:
        return "".join(rng.choices(letters, k=rng.choice([0, 1, 2, 5, 9, 20, 70])))

    pairs = [("", ""), ("a", "a"), *((first := text(), rng.choice([first, first[1:], text()])) for _ in range(1000))]
    found = [anls_score(a, [b], protocol, threshold=0.0) for a, b in pairs]
    monkeypatch.setattr(anls.Levenshtein, "distance", distance_by_hand)
    assert found == [anls_score(a, [b], protocol, threshold=0.0) for a, b in pairs]
    assert len({score for score in found if score is not None}) > 20


@all_metrics
def test_what_is_summed_is_what_each_answer_is_given(name):
    """The verdicts of all batches give the score; POPE's F1 and MME's accuracy+ are not means and only bound it."""
    make, rows = CASES[name]
    metric, verdicts = make(), []
    for one in [*rows, rows[0] | {"valid": False}]:
        metric.update(**{key: [value] for key, value in one.items()})
        verdicts += metric.verdicts
    assert verdicts.pop() == Verdict(None, False)
    result = values(metric)
    assert result["unresolved"] == pytest.approx(sum(verdict.unresolved for verdict in verdicts) / len(rows))
    mean = sum(verdict.score for verdict in verdicts) / len(rows)
    if name == "pope":
        counted = metric.counts[:, 0, 0].sum() + metric.counts[:, 1, 1].sum()
        assert mean == pytest.approx(counted.item() / len(rows))
    elif name == "mme":
        assert mean == pytest.approx(metric.images[..., 0].sum().item() / len(rows))
    else:
        assert mean == pytest.approx(result["accuracy" if name == "circular" else metric.headline])


# --- multiple choice and yes/no ---


def question(text="", references=("A",), question_id="0", **more):
    return Question(question_id=question_id, text=text, references=tuple(references), **more)


def test_update_questions_reads_options_from_the_text():
    listed = "Which animal?\nA. a cat\nB. a dog\n(C) two birds\nAnswer with the option's letter."
    assert parse_options(listed) == {"A": "a cat", "B": "a dog", "C": "two birds"}
    metric = MultipleChoiceAccuracy("mmbench")
    metric.update_questions(["a dog", "B"], [question(listed, ["B"]), question(listed, ["A"])])
    assert metric.compute()["accuracy"] == 0.5


def test_an_mmmu_question_without_options_is_judged_as_an_open_one():
    metric = MultipleChoiceAccuracy("mmmu")
    metric.update_questions(
        ["so the answer is 12.5", "B"], [question("How long?", ["12.5"]), question("Which?\nA. x\nB. y", ["B"])]
    )
    assert metric.compute()["accuracy"] == 1.0


def test_a_circular_question_is_right_only_if_all_its_rotations_are():
    text = "Which?\nA. x\nB. y"
    asked = [(3, "A", "A"), (1000003, "B", "B"), (4, "A", "A"), (1000004, "A", "B")]
    metric = MultipleChoiceAccuracy("mmbench", circular_groups=5)
    questions = [question(text, [reference], str(number)) for number, _, reference in asked]
    metric.update_questions([answer for _, answer, _ in asked], questions)
    result = metric.compute()
    assert list(result)[0] == metric.headline == "circular_accuracy"  # noqa: RUF015
    assert result["circular_accuracy"] == 0.5
    assert result["accuracy"] == 0.75


def test_an_mme_image_whose_questions_come_apart_still_counts_as_a_pair():
    metric = MMEScore()
    for number, answer, label in [("7/0", "yes", "yes"), ("8/0", "yes", "yes"), ("7/1", "no", "no")]:
        metric.update_questions([answer], [question(references=[label], question_id=number, type="OCR")])
    metric.update_questions(["yes"], [question(references=["no"], question_id="8/1", type="OCR")])
    assert metric.compute()["OCR"].item() == 100 * (3 / 4 + 1 / 2)


def test_pope_averages_over_its_subsets_and_lmms_eval_pools():
    answers, labels = ["yes", "yes", "yes", "no"], ["yes", "yes", "no", "yes"]
    subsets = ["random", "random", "popular", "popular"]
    for protocol, f1 in [("official", (1.0 + 0.0) / 2), ("lmms_eval", 2 / 3)]:
        metric = POPEMetric(protocol=protocol)
        metric.update(answers, labels, types=subsets)
        assert metric.compute()["f1"].item() == pytest.approx(f1)


@pytest.mark.parametrize(
    ("protocol", "answer", "letter"),
    [
        ("ai2d", " B. a dog", "B"),
        ("ai2d", "(b)", "B"),
        ("ai2d", "the dog", None),
        ("egoschema", "B, but (A) is close", "A"),  # "B," is none of the forms
        ("egoschema", "(C) or (A)", "C"),
        ("mmmu", "(C) or (A)", "A"),
        ("egoschema", "I think that it is a dog", "B"),
        ("mvbench", "１  c.２", "C"),  # a full stop before a digit of any script stays, and parts the letter from it
        ("mvbench", "It is (b)", "B"),
    ],
)
def test_readers_without_golden_cases_follow_their_rule(protocol, answer, letter):
    assert parse_choice(answer, {"A": "a cat", "B": "a dog", "C": "two birds"}, protocol) == letter


def test_a_formula_keeps_its_case_and_loses_its_spaces():
    for protocol, score in [("official", 1.0), ("deepstack_fork", 0.0)]:
        metric = SubstringAccuracy(protocol)
        metric.update(["x ^ { A }"], [["x^{A}"]], types=["HME100k"])
        assert metric.compute()["accuracy"] == score


# --- errors ---


@pytest.mark.parametrize("make", [VQAAccuracy, ANLS, ExactMatch, POPEMetric, MMEScore, MultipleChoiceAccuracy])
def test_an_unknown_protocol_is_refused_with_the_list(make):
    with pytest.raises(ValueError, match=r"protocol: 'offical' is not one of .*"):
        make(protocol="offical")


def test_a_single_string_instead_of_a_list_is_refused():
    with pytest.raises(TypeError, match="one entry per question"):
        VQAAccuracy().update("yes", [["yes"]])


def test_lengths_that_differ_are_named():
    with pytest.raises(ValueError, match="target: 1 entries for 2 predictions"):
        VQAAccuracy().update(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="valid: 1 entries for 2 predictions"):
        VQAAccuracy().update(["a", "b"], [["a"], ["b"]], valid=[True])


def test_a_question_without_references_is_named():
    with pytest.raises(ValueError, match=r"target\[1\]: .* got none"):
        ANLS().update(["a", "b"], [["a"], []])


def test_an_unknown_type_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'yesno', which is not one of yes/no, number"):
        VQAAccuracy(types=("yes/no", "number")).update(["a"], [["a"]], types=["yesno"])


def test_a_text_reading_protocol_asks_for_options():
    with pytest.raises(ValueError, match=r"options: .*update_questions"):
        MultipleChoiceAccuracy("mmbench").update(["A"], [["A"]])
    with pytest.raises(ValueError, match="question '12': its text lists no options"):
        MultipleChoiceAccuracy("mmbench").update_questions(["A"], [question("Which?", question_id="12")])


def test_an_mme_image_out_of_range_is_named():
    with pytest.raises(ValueError, match="image 20 of task 'OCR', which has 20 images"):
        MMEScore().update(["yes"], [["yes"]], types=["OCR"], image_index=[20])
    with pytest.raises(ValueError, match=r"question 'x7': .* as in 17/0"):
        MMEScore().update_questions(["yes"], [question(references=["yes"], question_id="x7", type="OCR")])


def test_a_label_that_is_neither_yes_nor_no_is_named():
    with pytest.raises(ValueError, match="has the reference 'maybe'"):
        POPEMetric().update(["yes"], [["maybe"]])
