"""MMLongBench-Doc against the numbers of its own evaluator and of lmms-eval's."""

import pytest

from dslight.metrics.functional.mmlongbench import mmlongbench_score

pytestmark = pytest.mark.golden_metrics


def test_scores_equal_those_of_both_evaluators(golden):
    for case in golden("mmlongbench_doc"):
        asked = (case["prediction"], case["answers"][0], case["extra"]["answer_format"])
        if case["score"] is not None:  # else their code raised
            assert mmlongbench_score(*asked) == pytest.approx(case["score"]), case["id"]
        assert mmlongbench_score(*asked, protocol="lmms_eval") == pytest.approx(case["extra"]["lmms_eval"]), case["id"]
