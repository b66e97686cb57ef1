"""Questions about one picture, and what a difference needs to be seen."""

import math

import numpy as np
import pytest

from dslight.cli import main
from dslight.errors import UserError
from dslight.report.benchmarks import benchmarks
from dslight.report.power import Z, clustered_error, lines, needed
from dslight.report.questions import read_answers
from dslight.report.runs import collect
from dslight.report.statistics import estimates


def pictures(count, questions, seed=0):
    """Scores of questions that share three quarters of their luck with the others of their picture; and pictures."""
    generator = np.random.default_rng(seed)
    shared = generator.random(count) < 0.6
    own = generator.random((count, questions)) < 0.6
    scores = np.where(generator.random((count, questions)) < 0.75, shared[:, None], own).astype(float)
    return scores.ravel(), np.repeat(np.arange(count), questions)


def test_the_clustered_error_is_that_of_the_formula():
    """Miller 2024, equation 4: the usual variance, and the covariances within clusters."""
    scores, clusters = pictures(40, 3)
    count, mean = len(scores), scores.mean()
    usual = ((scores - mean) ** 2).sum() / count**2
    within = sum(
        (scores[i] - mean) * (scores[j] - mean)
        for i in range(count)
        for j in range(count)
        if i != j and clusters[i] == clusters[j]
    )
    assert clustered_error(scores, clusters) == pytest.approx(math.sqrt(usual + within / count**2))
    assert clustered_error(scores, np.arange(count)) == pytest.approx(scores.std() / math.sqrt(count))


def test_the_cluster_bootstrap_has_the_clustered_error():
    scores, clusters = pictures(400, 5)
    (alone,) = estimates([scores[None]])
    (together,) = estimates([scores[None]], clusters=clusters)
    width = together.over_questions.high - together.over_questions.low
    assert width / (2 * 1.96) == pytest.approx(clustered_error(scores, clusters), rel=0.05)
    assert width > 1.5 * (alone.over_questions.high - alone.over_questions.low)
    assert (together.clusters, alone.clusters) == (400, 2000)
    assert together.value == alone.value


def test_clusters_of_one_question_change_nothing():
    scores, _ = pictures(60, 1)
    assert estimates([scores[None]], clusters=np.arange(60)) == estimates([scores[None]])


def test_clusters_of_different_sizes_keep_the_mean_over_questions():
    scores = np.array([[1.0] * 6 + [0.0] * 2])
    (found,) = estimates([scores], clusters=[0, 0, 0, 0, 0, 1, 2, 3])
    assert found.value == 0.75
    assert found.over_questions.low <= 0.75 <= found.over_questions.high


@pytest.fixture
def runs(tmp_path, finish, answer):
    """Two arms with three seeds, asked five questions about each of 80 pictures."""
    scores, clusters = pictures(80, 5)
    for arm, shift in (("low", 0.0), ("stacked", 0.15)):
        for seed in range(3):
            folder = finish(tmp_path / f"{arm}-{seed}", arm, seed)
            noise = np.random.default_rng([seed, len(arm)]).random(len(scores))
            own = np.where(noise < 0.1 + shift, 1.0, scores)
            answer(folder, "digits", list(own), key=[f"page-{one}" for one in clusters])
    return tmp_path


def test_the_report_draws_questions_of_a_picture_together(runs):
    results, _ = collect([runs])
    made = benchmarks(results, "low", resamples=200)
    assert {cell.estimate.clusters for cells in made.cells for cell in cells.values()} == {80}
    answers = read_answers(results[0].path)["digits"]
    assert answers.clusters(answers.ids[:7]).tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_what_a_difference_needs(runs):
    results, _ = collect([runs])
    (comparison,) = benchmarks(results, "low", resamples=200).comparisons
    one, two = needed(comparison, 0.02), needed(comparison, 0.04)
    assert (one.questions, one.seeds) == (400, 3)
    assert one.wanted_questions == pytest.approx(4 * two.wanted_questions, rel=0.02)
    assert one.wanted_seeds >= two.wanted_seeds >= 2
    at_smallest = needed(comparison, one.smallest)
    assert at_smallest.wanted_questions == pytest.approx(400, abs=1)


def test_a_difference_of_that_size_is_seen_as_often_as_is_said():
    """80 %, of 1,000 repetitions with questions that vary as these do."""
    generator = np.random.default_rng(0)
    questions, deviation = 400, 0.5
    difference = Z * deviation / math.sqrt(questions)
    means = generator.normal(difference, deviation / math.sqrt(questions), 1000)
    seen = np.abs(means) / (deviation / math.sqrt(questions)) > 1.959964
    assert seen.mean() == pytest.approx(0.8, abs=0.03)


def test_the_verb_says_it_and_refuses_what_is_no_difference(runs, tmp_path, capsys):
    arguments = ["report", str(runs), "--baseline", "low", "--out", str(tmp_path / "out"), "--power"]
    assert main([*arguments, "1"]) == 0
    said = capsys.readouterr().out
    assert "What it takes to see a difference of 1 points in 80% of repetitions" in said
    assert "- stacked against low, digits: " in said
    assert "Questions about one picture are drawn together." in (tmp_path / "out" / "report.html").read_text()
    results, _ = collect([runs])
    with pytest.raises(UserError, match="--power: 0; a difference in points"):
        lines(benchmarks(results, "low", resamples=50), 0)
    assert lines(benchmarks(results, None, resamples=50), 1) == [
        "--power: there is nothing to compare; name the arm that others are compared with by --baseline"
    ]
