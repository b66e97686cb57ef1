"""Intervals of F1 and of MME's points, computed from a run's answers as the metrics compute the numbers."""

import json

import numpy as np
import pytest

from dslight.metrics.yes_no import MMEScore, POPEMetric
from dslight.report import report
from dslight.report.corpus import interval
from dslight.report.questions import read_answers
from dslight.types import Question


def pope(seed):
    """(question, answer) about 120 pictures, six questions each, and the metric's own F1."""
    generator = np.random.default_rng(seed)
    asked = []
    for i in range(720):
        label = "yes" if generator.random() < 0.5 else "no"
        said = label if generator.random() < 0.8 else "yes"
        kind = ("random", "popular", "adversarial")[i % 3]
        asked.append((Question(f"q{i}", "?", (label,), kind, key=f"page-{i // 6}"), said))
    return asked


def mme(seed):
    generator = np.random.default_rng(seed)
    asked = []
    for image in range(30):
        for which, label in enumerate(("yes", "no")):
            said = label if generator.random() < 0.7 else "neither"
            asked.append((Question(f"{image}/{which}/count", "?", (label,), "count", key=f"page-{image}"), said))
    return asked


def lines(asked, metric):
    verdicts = metric.update_questions([said for _, said in asked], [question for question, _ in asked])
    return {
        "question_id": [question.question_id for question, _ in asked],
        "type": [question.type for question, _ in asked],
        "references": [list(question.references) for question, _ in asked],
        "key": [question.key for question, _ in asked],
        "unresolved": [verdict.unresolved for verdict in verdicts],
    }, [verdict.score for verdict in verdicts]


@pytest.fixture
def run(tmp_path, finish, answer):
    """``run(asked, metric)``: a run's folder whose number is the metric's own."""

    def make(asked, metric, name="arm-0", seed=0):
        folder = finish(tmp_path / name, name.split("-")[0], seed)
        fields, scores = lines(asked, metric)
        answer(folder, "digits", scores, **fields)
        return folder, float(metric.compute()[metric.headline])

    return make


def test_f1_has_the_spread_of_fresh_samples(run):
    folder, value = run(pope(0), POPEMetric())
    low, high = interval([read_answers(folder)["digits"]], "val/digits/f1", value)
    assert low < value < high
    fresh = []
    for seed in range(1, 200):
        metric = POPEMetric()
        lines(pope(seed), metric)
        fresh.append(float(metric.compute()["f1"]))
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(fresh), rel=0.2)


def test_mme_has_an_interval_of_points(run):
    folder, value = run(mme(0), MMEScore())
    low, high = interval([read_answers(folder)["digits"]], "val/digits/total", value)
    assert low < value < high
    fresh = []
    for seed in range(1, 200):
        metric = MMEScore()
        lines(mme(seed), metric)
        fresh.append(float(metric.compute()["total"]))
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(fresh), rel=0.25)


def test_a_number_that_is_not_that_of_the_answers_has_none(run):
    folder, value = run(pope(0), POPEMetric())
    answers = read_answers(folder)["digits"]
    assert interval([answers], "val/digits/f1", value + 0.01) is None
    assert interval([answers], "val/digits/anls", value) is None
    assert interval([], "val/digits/f1", value) is None


def test_the_report_gives_it(run, tmp_path):
    folder, value = run(pope(0), POPEMetric())
    result = json.loads((folder / "result.json").read_text())
    result |= {"headline": "val/digits/f1", "accuracy": value}
    result["scores"] = {"val/digits/f1": value}
    result["sources"]["digits"] = {"headline": "val/digits/f1"}
    (folder / "result.json").write_text(json.dumps(result))
    text = report([folder], tmp_path / "out").markdown
    assert f"Its own 95 %, other pictures: arm {100 * value:.1f} [" in text
