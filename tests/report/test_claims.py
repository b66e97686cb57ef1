"""Claims against runs: what holds, what does not, and by which numbers."""

import pytest

from dslight.recipe.errors import RecipeError
from dslight.recipe.report_section import Claim
from dslight.report.claims import judged, outcomes
from dslight.report.runs import collect

QUESTIONS = 400


@pytest.fixture
def checked(tmp_path, finish, answer):
    """``checked(claim, {(arm, seed): share right}, answers=True, **changes)``: its outcome."""

    def check(claim, runs, answers=True, pages=None, **changes):
        for (arm, seed), score in runs.items():
            own = {key: value[arm] for key, value in changes.items() if arm in value}
            run = finish(tmp_path / arm / str(seed), arm, seed, score, **own)
            if answers:
                answer(run, "digits", [float(i < QUESTIONS * score) for i in range(QUESTIONS)])
        results = collect([tmp_path])[0]
        (outcome,) = outcomes([claim], judged([claim], results), pages or {})
        return outcome

    return check


def two(low=0.5, deepstack=0.7):
    return {(arm, seed): share for seed in (0, 1) for arm, share in (("low", low), ("deepstack", deepstack))}


def test_a_difference_holds_where_its_whole_interval_over_questions_does(checked):
    outcome = checked(Claim("More.", "deepstack", minus="low", at_least=10), two())
    assert (outcome.say, outcome.held, outcome.verdict) == ("More.", True, "HELD")
    (text,) = outcome.numbers
    assert text.startswith(
        "deepstack − low, claimed to be at least 10 points: +20.0 points (seed 0: +20.0, seed 1: +20.0)"
    )
    assert "95 % over other questions [+16" in text
    assert "and other seeds [+1" in text


def test_a_difference_whose_interval_crosses_the_bound_does_not_hold_though_it_is_beyond_it_itself(checked):
    outcome = checked(Claim("More.", "deepstack", minus="low", at_least=18), two())
    assert outcome.verdict == "NOT HELD"
    assert ": +20.0 points" in outcome.numbers[0]


def test_without_answers_the_number_itself_decides(checked):
    outcome = checked(Claim("More.", "deepstack", minus="low", at_least=20), two(), answers=False)
    assert outcome.held is True
    assert "95 %" not in outcome.numbers[0]


@pytest.mark.parametrize(("share", "held"), [(0.5, True), (0.53, False), (0.47, False)])
def test_equal_within_is_both_ways(checked, share, held):
    outcome = checked(Claim("As much.", "deepstack", minus="low", within=2.5), two(deepstack=share))
    assert outcome.held is held


def test_of_several_arms_each_has_to_meet_the_bounds(checked):
    runs = two() | {("repeated", seed): 0.5 for seed in (0, 1)}
    outcome = checked(Claim("Controls.", ["repeated", "deepstack"], minus="low", within=5), runs)
    assert outcome.held is False
    assert [text.split(" −")[0] for text in outcome.numbers] == ["repeated", "deepstack"]


def test_a_score_by_itself(checked):
    assert checked(Claim("Good.", "deepstack", at_least=65), two()).held is True
    (text,) = checked(Claim("Good.", "deepstack", at_least=69), {("low", 2): 0.5}).numbers
    assert text.startswith(
        "deepstack, claimed to be at least 69 %: 70.0 % (seed 0: 70.0, seed 1: 70.0), 95 % over other"
    )


def test_a_quotient_of_a_number_of_the_result(checked):
    seconds = {"step_seconds": {"deepstack": 0.15, "low": 0.3}}
    claim = Claim("Cheaper.", "deepstack", relative_to="low", score="step_seconds", at_most=0.5)
    outcome = checked(claim, two(), **seconds)
    assert outcome.held is True
    assert outcome.numbers == [
        "step_seconds: deepstack / low, claimed to be at most 0.5×: 0.50× (seed 0: 0.50, seed 1: 0.50)"
    ]


def test_a_number_of_the_result_is_no_percentage(checked):
    claim = Claim("Fast.", "deepstack", score="step_seconds", at_most=0.16)
    outcome = checked(claim, two(), step_seconds={"deepstack": 0.15, "low": 0.3})
    assert outcome.held is True
    assert ": 0.15 (seed 0: 0.15" in outcome.numbers[0]


def test_another_score_than_the_headline(checked):
    scores = {
        arm: {"val/digits/vqa_accuracy": 0.5, "val/other/f1": f1} for arm, f1 in (("low", 0.2), ("deepstack", 0.9))
    }
    claim = Claim("F1.", "deepstack", minus="low", score="val/other/f1", at_least=50)
    outcome = checked(claim, two(), answers=False, scores=scores)
    assert outcome.held is True
    assert outcome.numbers[0].startswith(
        "val/other/f1: deepstack − low, claimed to be at least 50 points: +70.0 points"
    )


def test_a_difference_at_the_bound_meets_it_whatever_floats_make_of_it(checked):
    runs = {("low", 0): 0.91, ("deepstack", 0): 0.93}  # 100 * (0.93 - 0.91) = 2.0000000000000018
    assert checked(Claim("As much.", "deepstack", minus="low", within=2), runs, answers=False).held is True


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        ({("low", 0): 0.5}, "there is no finished run of deepstack"),
        (
            {("deepstack", 0): 0.5},
            "deepstack − low, claimed to be at least 1 points: there is no run of low with the same seed",
        ),
        (
            {("deepstack", 0): 0.5, ("low", 1): 0.5},
            "deepstack − low, claimed to be at least 1 points: there is no run of low with",
        ),
    ],
)
def test_what_cannot_be_compared_is_neither_held_nor_not(checked, runs, text):
    outcome = checked(Claim("More.", "deepstack", minus="low", at_least=1), runs)
    assert (outcome.held, outcome.verdict) == (None, "NOT CHECKED")
    assert outcome.numbers[0].startswith(text)


def test_a_claim_that_is_broken_by_one_arm_is_not_saved_by_one_that_is_missing(checked):
    outcome = checked(Claim("Controls.", ["gone", "deepstack"], minus="low", within=5), two())
    assert outcome.held is False


def test_at_several_points_of_a_grid_a_claim_has_to_hold_at_each(tmp_path, finish):
    shares = {("low", 1): 0.5, ("low", 2): 0.5, ("deepstack", 1): 0.7, ("deepstack", 2): 0.4}
    for (arm, lr), share in shares.items():
        finish(tmp_path / arm / str(lr), arm, 0, share, point={"seed": 0, "stage.lr": lr})
    claim = Claim("More.", "deepstack", minus="low", at_least=10)
    results = collect([tmp_path])[0]
    (outcome,) = outcomes([claim], judged([claim], results), {})
    assert outcome.held is False
    assert [text.split(",")[0] for text in outcome.numbers] == [
        "deepstack lr=1 − low lr=1",
        "deepstack lr=2 − low lr=2",
    ]


def test_a_comparison_leads_to_its_questions(checked):
    pages = {("deepstack", "low", "digits"): "diffs/x.html"}
    outcome = checked(Claim("More.", "deepstack", minus="low", at_least=10), two(), pages=pages)
    assert outcome.numbers[0].startswith('<a href="diffs/x.html">deepstack − low</a>, claimed')


def test_a_number_that_is_no_mean_over_questions_has_no_interval(checked, tmp_path):
    scores = {"val/digits/f1": 0.9}
    heads = {arm: {"digits": {"headline": "val/digits/f1"}} for arm in ("low", "deepstack")}
    changes = {
        "headline": dict.fromkeys(heads, "val/digits/f1"),
        "scores": dict.fromkeys(heads, scores),
        "sources": heads,
    }
    outcome = checked(Claim("F1.", "deepstack", at_least=90), two(0.9, 0.9), answers=False, **changes)
    assert outcome.held is True
    assert "95 %" not in outcome.numbers[0]


def test_a_score_that_no_run_has_is_refused_with_those_that_there_are(checked):
    claim = Claim("More.", "deepstack", score="val/digits/vqa_acuracy", at_least=10)
    with pytest.raises(RecipeError) as caught:
        checked(claim, two())
    assert str(caught.value).startswith(
        "report.claims.0.score: no finished run has 'val/digits/vqa_acuracy'; did you mean val/digits/vqa_accuracy?"
    )
