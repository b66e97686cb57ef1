"""Intervals and tests, next to scipy's, to closed forms and to what happens in simulated experiments."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from dslight.report.statistics import DIFFERENCE, SCORE, estimates, holm, mcnemar, resampled_means


def estimate(scores, limits=SCORE, **options):
    return estimates([np.atleast_2d(scores)], limits, **options)[0]


@pytest.fixture
def answers():
    """Scores of two models, VQA-like (0, 0.3, 0.6, 0.9, 1), alike on most questions: float64 ``[400]`` each."""
    generator = np.random.default_rng(7)
    first = generator.choice([0, 0.3, 0.6, 0.9, 1], 400, p=[0.3, 0.05, 0.1, 0.05, 0.5])
    changed = generator.random(400) < 0.3
    second = np.where(changed, generator.choice([0, 1], 400, p=[0.4, 0.6]), first)
    return second, first


def test_an_interval_over_questions_is_scipy_s_percentile_and_close_to_its_bca(answers):
    ours = estimate(answers[0], seed=3)
    for method, tolerance in (("percentile", 0.002), ("BCa", 0.004)):
        theirs = stats.bootstrap(
            (answers[0],), np.mean, n_resamples=20_000, batch=500, method=method, rng=np.random.default_rng(1)
        ).confidence_interval
        assert ours.over_questions.low == pytest.approx(theirs.low, abs=tolerance)
        assert ours.over_questions.high == pytest.approx(theirs.high, abs=tolerance)
    assert ours.value == pytest.approx(answers[0].mean())
    assert (ours.seeds, ours.questions, ours.over_seeds) == (1, 400, None)


def test_a_paired_difference_has_scipy_s_interval_and_about_the_p_of_a_paired_t_test(answers):
    ours = estimate(answers[0] - answers[1], DIFFERENCE)
    theirs = stats.bootstrap(
        answers,
        lambda a, b, axis=-1: np.mean(a - b, axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.over_questions.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.over_questions.high == pytest.approx(theirs.high, abs=0.002)
    assert 0.001 < ours.over_questions.p < 0.2
    assert ours.over_questions.p == pytest.approx(stats.ttest_rel(*answers).pvalue, rel=0.15)
    # what pairing is for: the same models on different questions could not be told apart
    apart = stats.ttest_ind(*answers).pvalue
    assert apart > 2 * ours.over_questions.p


def test_p_below_five_percent_and_an_interval_without_zero_say_the_same():
    generator = np.random.default_rng(0)
    said = []
    for shift in np.linspace(-0.2, 0.2, 40):
        found = estimate(np.clip(generator.normal(shift, 0.5, (3, 300)), -1, 1), DIFFERENCE, resamples=2000)
        for interval in (found.over_questions, found.over_seeds):
            assert interval is not None
            if abs(interval.p - 0.05) > 0.003:  # a draw on the border
                assert (interval.p < 0.05) == (not interval.low <= 0 <= interval.high)
                said.append(interval.p < 0.05)
    assert 10 < sum(said) < 70


def test_the_resampled_means_are_those_of_resampled_rows_with_the_same_draw_for_all_runs():
    scores = np.random.default_rng(0).random((3, 50))
    scores[2] = scores[0] - scores[1]
    means = resampled_means(scores, 4000, seed=5)
    np.testing.assert_allclose(means[:, 2], means[:, 0] - means[:, 1], atol=1e-12)
    np.testing.assert_allclose(means.mean(axis=0), scores.mean(axis=1), atol=0.003)
    np.testing.assert_allclose(means.std(axis=0), scores.std(axis=1) / np.sqrt(50), rtol=0.05)
    # a mean over 50 drawn questions, and not some other weighted sum: scores of 1 stay 1
    assert resampled_means(np.ones((1, 50)), 100, 0) == pytest.approx(1.0)


def test_the_draws_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    scores = np.random.default_rng(0).random((2, 30))
    whole = resampled_means(scores, 100, seed=1)
    monkeypatch.setattr("dslight.report.statistics._CHUNK", 70)
    assert np.array_equal(resampled_means(scores, 100, seed=1), whole)


def test_the_same_seed_gives_the_same_numbers_also_beside_other_tables():
    generator = np.random.default_rng(0)
    tables = [generator.random((rows, 80)) for rows in (1, 3, 2)]
    together = estimates(tables, resamples=500, seed=4)
    assert together == [estimate(table, resamples=500, seed=4) for table in tables]
    assert estimate(tables[1], resamples=500, seed=5) != together[1]
    assert estimates([]) == []


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_with_seeds_that_differ_and_many_questions_the_interval_is_student_s(seeds):
    means = np.random.default_rng(seeds).normal(0.6, 0.02, seeds)
    found = estimate(np.repeat(means[:, None], 20_000, axis=1), resamples=2000)
    assert found.over_seeds is not None
    expected = stats.t.interval(0.95, seeds - 1, means.mean(), stats.sem(means))
    assert (found.over_seeds.low, found.over_seeds.high) == pytest.approx(np.clip(expected, 0, 1), rel=0.02, abs=1e-4)
    assert found.over_questions.high - found.over_questions.low == pytest.approx(0, abs=2e-4)
    assert found.over_seeds.p == pytest.approx(stats.ttest_1samp(means, 0).pvalue, abs=0.003)


def test_seeds_that_agree_leave_the_interval_over_questions():
    run = np.random.default_rng(0).random(300) < 0.6
    found = estimate([run, run, run])
    assert found.over_seeds is not None
    for ours, theirs in (
        (found.over_seeds.low, found.over_questions.low),
        (found.over_seeds.p, found.over_questions.p),
    ):
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("seeds", "spread", "easy", "questions"),
    [
        (2, 0.0, (3, 2), 400),
        (2, 0.04, (3, 2), 400),
        (3, 0.01, (3, 2), 400),
        (3, 0.04, (3, 2), 400),
        (5, 0.04, (3, 2), 400),
        (2, 0.0, (0.3, 30), 200),  # nearly all wrong: a bootstrap of those alone covers the truth in 0.8 of them
        (2, 0.02, (0.3, 30), 200),
        (3, 0.0, (30, 0.3), 200),
        (3, 0.02, (30, 0.3), 200),
    ],
)
def test_intervals_cover_the_truth_in_at_least_95_of_100_experiments(seeds, spread, easy, questions):
    """Questions of different difficulty, seeds of different luck: the truth is the mean over all of both.

    A bootstrap that resamples the seeds, too, covers it in as little as 0.5 (two seeds) or 0.75 (three) of them, where
    the seeds' luck is most of the noise: how often the truth lies between the lowest and the highest of so few.
    """
    generator, experiments, covered = np.random.default_rng(seeds), 300, [0, 0]

    def chances(runs, count):
        return np.clip(generator.beta(*easy, count) + generator.normal(0, spread, (runs, 1)), 0, 1)

    truth = np.mean([chances(1000, 100).mean() for _ in range(20)])
    for number in range(experiments):
        found = estimate(generator.random((seeds, questions)) < chances(seeds, questions), resamples=600, seed=number)
        assert found.over_seeds is not None
        covered[0] += found.over_questions.low <= truth <= found.over_questions.high
        covered[1] += found.over_seeds.low <= truth <= found.over_seeds.high
        assert 0 <= found.over_seeds.low <= found.over_seeds.high <= 1
    # three standard errors of a share of 0.95 in 300 experiments: 0.038
    assert covered[1] / experiments > 0.912
    if spread == 0.0:
        assert covered[0] / experiments > 0.912
    if spread == 0.04:  # and over questions alone is a statement about these runs alone
        assert covered[0] / experiments < 0.8


@pytest.mark.parametrize("limits", [SCORE, DIFFERENCE])
def test_an_interval_ends_where_scores_do_and_is_never_a_point(limits):
    """What two seeds that disagree say of a score of 0.4 %, and what 300 questions that all go one way do."""
    low, high = limits
    wide = estimate([np.arange(300) < 0, np.arange(300) < 100], limits)
    assert wide.over_seeds is not None
    assert (wide.over_seeds.low, wide.over_seeds.high) == (low, high)
    for score in limits:
        all_alike = estimate(np.full(300, score), limits).over_questions
        assert low <= all_alike.low < all_alike.high <= high
        assert 0.005 < all_alike.high - all_alike.low < 0.05


def test_the_two_questions_more_hardly_move_an_interval_of_many(answers):
    ours = estimate(answers[0]).over_questions
    plain = np.quantile(resampled_means(answers[0][None], 10_000, 0), [0.025, 0.975])
    assert (ours.low, ours.high) == pytest.approx(plain, abs=0.003)


def test_equal_models_are_called_different_in_one_of_twenty_experiments():
    generator, experiments = np.random.default_rng(11), 400
    found = 0
    for number in range(experiments):
        easy = generator.beta(3, 2, 300)
        first, second = generator.random((2, 300)) < easy
        difference = first.astype(float) - second
        found += estimate(difference, DIFFERENCE, resamples=600, seed=number).over_questions.p < 0.05
    assert found / experiments == pytest.approx(0.05, abs=0.033)


def test_ten_thousand_questions_and_resamples_take_little_memory():
    scores = np.random.default_rng(0).random((9, 10_000)) < 0.6
    tracemalloc.start()
    found = estimate(scores, resamples=2000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # 2000 x 10000 weights at once would be 160 MB
    width = found.over_questions.high - found.over_questions.low
    assert width == pytest.approx(2 * 1.96 * scores.mean(axis=0).std() / 100, rel=0.06)  # the normal approximation


def test_a_resample_in_which_both_do_equally_well_counts_for_both_sides():
    difference = np.array([0.1, 0.2, -0.3] * 20)  # sums to 1e-17, not to 0, in most orders
    found = estimate(difference, DIFFERENCE, resamples=4000).over_questions
    means = resampled_means(difference[None], 4000, 0)[:, 0]
    assert np.count_nonzero(means == 0) > 50
    assert np.count_nonzero((means != 0) & (abs(means) < 1e-9)) == 0
    assert found.p > 0.9


def test_scores_that_cannot_be_averaged_are_refused():
    with pytest.raises(ValueError, match="no question to resample"):
        estimate(np.empty((2, 0)))
    with pytest.raises(ValueError, match=r"some are not in 0..1"):
        estimate([0.5, float("nan")])
    with pytest.raises(ValueError, match=r"some are not in -1..1"):
        estimate([0.5, -1.5], DIFFERENCE)


def test_mcnemar_is_a_fair_coin_for_the_questions_on_which_the_models_differ():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert mcnemar(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert mcnemar(300, 200) == pytest.approx(stats.chi2.sf((100 - 1) ** 2 / 500, 1), rel=0.1)  # the usual formula


def test_holm_s_p_values_are_those_of_its_definition():
    values = [0.01, 0.04, 0.03, 0.005, 0.9]
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.9), "holm")
    assert holm(values) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []
