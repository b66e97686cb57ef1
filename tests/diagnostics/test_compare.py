"""Which arms there are, and the arithmetic of paired differences."""

import numpy as np
import pytest
from scipy import stats

from dslight.components import DeepStack, Stack
from dslight.diagnostics.compare import Arm, arms, difference
from dslight.diagnostics.groups import Groups
from dslight.diagnostics.settings import Diagnostics

EVERYTHING = Diagnostics(drop=True, shuffle=True)
ARM = Arm("without_1", "without stack 1", lambda _: lambda injection: injection)


@pytest.mark.parametrize(
    ("scheduler", "settings", "expected"),
    [
        ("DeepStackV", EVERYTHING, ["all", "without_1", "without_2", "without_any", "permuted", "other_image"]),
        ("DeepStackV", Diagnostics(drop=True), ["all", "without_1", "without_2", "without_any"]),
        ("DeepStackV", Diagnostics(shuffle=True), ["all", "permuted", "other_image"]),
        ("DeepStackV", Diagnostics(), []),
        ("LowResolution", EVERYTHING, []),
        ("CrossAttention", EVERYTHING, []),
        (DeepStack([Stack([1], "crops", "pool")]), EVERYTHING, ["all", "without_any", "other_image"]),
        (
            DeepStack([Stack([1], "crops", "pool")], [Stack([1], "crops", "pool")]),  # one each: none can be exchanged
            EVERYTHING,
            ["all", "without_1", "without_2", "without_any", "other_image"],
        ),
    ],
)
def test_the_arms_that_make_sense_for_a_model(make_vlm, scheduler, settings, expected):
    assert [arm.name for arm in arms(Groups(make_vlm(scheduler)), settings)] == expected


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    whole, scores = rng.integers(0, 11, 50) / 10, rng.integers(0, 11, 50) / 10
    found = difference(ARM, whole.tolist(), scores.tolist())
    paired = stats.ttest_rel(scores, whole)
    assert found.delta == pytest.approx((scores - whole).mean())
    assert found.delta / found.error == pytest.approx(paired.statistic)
    assert found.score == pytest.approx(scores.mean())
    assert (found.better, found.worse) == (int((scores > whole).sum()), int((scores < whole).sum()))
    assert found.questions == 50


def test_questions_that_an_arm_could_not_be_asked_do_not_count():
    found = difference(ARM, [1.0, 0.0, None, 1.0], [0.0, 0.0, 1.0, None])
    assert (found.questions, found.delta, found.worse, found.better) == (2, -0.5, 1, 0)
    assert difference(ARM, [None, 1.0], [1.0, None]) is None
    assert difference(ARM, [1.0], [0.0]).error is None
