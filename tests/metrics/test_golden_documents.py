"""MMLongBench-Doc against the numbers of its own evaluator and of lmms-eval's."""

import pytest

from dslight.metrics import MMLongBenchDocScore
from dslight.metrics.functional.mmlongbench import mmlongbench_score

NONE = "Not answerable"
ROWS = [("8", "8"), ("8", "9"), ("8", NONE), (NONE, NONE), (NONE, "8"), ("17", "17"), ("17", NONE)]
"""(right answer, what is said): found, not found, not answered; and of questions without an answer."""


def test_f1_is_that_of_answering_as_the_official_evaluator_counts_it():
    """Recall is over the questions that have an answer, precision over those that were answered; of both the scores of
    questions that have an answer are added up (``eval_acc_and_f1`` of MMLongBench-Doc)."""
    metric = MMLongBenchDocScore()
    for rows in (ROWS[:3], ROWS[3:]):  # in two batches
        forms = [{"answer_format": "None" if right == NONE else "Int"} for right, _ in rows]
        metric.update([said for _, said in rows], [[right] for right, _ in rows], facts=forms)
    scores = [float(right == said) for right, said in ROWS]
    found = sum(score for (right, _), score in zip(ROWS, scores, strict=True) if right != NONE)
    recall = found / sum(right != NONE for right, _ in ROWS)
    precision = found / sum(said != NONE for _, said in ROWS)
    result = {name: value.item() for name, value in metric.compute().items()}
    assert result["accuracy"] == pytest.approx(sum(scores) / len(ROWS))
    assert result["f1"] == pytest.approx(2 * recall * precision / (recall + precision))
    assert (recall, precision) == (2 / 5, 2 / 4)


@pytest.mark.golden_metrics
def test_scores_equal_those_of_both_evaluators(golden):
    for case in golden("mmlongbench_doc"):
        asked = (case["prediction"], case["answers"][0], case["extra"]["answer_format"])
        if case["score"] is not None:  # else their code raised
            assert mmlongbench_score(*asked) == pytest.approx(case["score"]), case["id"]
        assert mmlongbench_score(*asked, protocol="lmms_eval") == pytest.approx(case["extra"]["lmms_eval"]), case["id"]
