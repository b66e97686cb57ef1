"""Claims about single stacks: every stack of every seed has to meet the bounds."""

import json
from dataclasses import replace

import pytest

from dslight.recipe.report_section import Claim
from dslight.report.claims import judged, outcomes
from dslight.report.runs import collect

CLAIM = Claim("Every stack is read.", "deepstack", without="each_stack", at_most=-10)


@pytest.fixture
def checked(tmp_path, finish):
    """``checked({seed: {way: share right}})``: the claim's outcome; a seed of ``None`` was not diagnosed."""

    def check(seeds, claim=CLAIM):
        for seed, ways in seeds.items():
            run = finish(tmp_path / str(seed), "deepstack", seed, 0.9)
            if ways is None:
                continue
            (run / "diagnostics").mkdir()
            lines = [
                {"source": "digits", "number": i, "scores": {way: float(i < 10 * right) for way, right in ways.items()}}
                for i in range(10)
            ]
            (run / "diagnostics" / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            comparisons = {"digits": [{"name": way, "title": way} for way in ways]}
            (run / "diagnostics.json").write_text(json.dumps({"stacks": [], "parts": {}, "comparisons": comparisons}))
        results = collect([tmp_path])[0]
        (outcome,) = outcomes([claim], judged([claim], results), {}, results)
        return outcome

    return check


WHOLE = {"all": 0.9, "without_1": 0.7, "without_2": 0.8, "without_any": 0.1}


def test_each_stack_has_its_own_numbers_and_at_the_bound_they_hold(checked):
    outcome = checked({0: WHOLE, 1: WHOLE | {"without_1": 0.6}})
    assert outcome.verdict == "HELD"
    stacks = [f"deepstack without stack {i} on digits, claimed to be at most -10 points: " for i in (1, 2)]
    assert outcome.numbers == [
        stacks[0] + "−25.0 points (seed 0: −20.0, seed 1: −30.0)",
        stacks[1] + "−10.0 points (seed 0: −10.0, seed 1: −10.0)",
    ]


def test_one_stack_that_one_seed_does_not_read_breaks_it_whatever_the_mean(checked):
    outcome = checked({0: WHOLE | {"without_2": 0.1}, 1: WHOLE | {"without_2": 0.9}})
    assert outcome.verdict == "NOT HELD"
    assert "−40.0 points (seed 0: −80.0, seed 1: +0.0)" in outcome.numbers[1]


def test_a_run_in_which_no_stack_was_left_out_is_not_checked(checked):
    outcome = checked({0: WHOLE, 1: None})
    assert outcome.verdict == "NOT CHECKED"
    assert outcome.numbers == ["deepstack: no stack was left out in the runs of seed 1; set diagnostics.drop"]


def test_an_arm_that_has_not_run_is_not_checked(checked):
    outcome = checked({0: WHOLE}, replace(CLAIM, arm="gone"))
    assert (outcome.held, outcome.numbers) == (None, ["there is no finished run of gone"])


@pytest.mark.parametrize("key", ["minus", "relative_to", "score"])
def test_it_stands_beside_no_other_comparison(key):
    assert replace(CLAIM, **{key: "low"}).fault() == (
        f"{key}: low, and without each_stack, which compares an arm's own score with itself"
    )
