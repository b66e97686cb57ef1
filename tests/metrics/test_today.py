"""The rules of the benchmarks of 2024 and later, by hand-checked cases."""

import pytest

from dslight.metrics.boxes import BoxAccuracy
from dslight.metrics.charts import ChartQAProAccuracy
from dslight.metrics.functional.boxes import inside, iou, parse_place
from dslight.metrics.functional.chartqapro import chartqapro_match
from dslight.metrics.functional.exact_match import exact_match
from dslight.metrics.functional.mathvista import extract_mathvista, mathvista_match
from dslight.metrics.functional.multiple_choice import parse_choice
from dslight.metrics.multiple_choice import CVBenchAccuracy, MultipleChoiceAccuracy
from dslight.metrics.yes_no_groups import YesNoAccuracy
from dslight.types import Question

OPTIONS = dict(zip("ABCD", ("run", "sit", "eat", "cry"), strict=True))


@pytest.mark.parametrize(
    ("protocol", "answer", "letter"),
    [
        ("videomme", "The best answer is B.", "B"),
        ("videomme", "Answer: C", "A"),  # the A of "Answer"
        ("videomme", "it sits", None),
        ("lmms_eval", "The answer is (B).", "B"),
        ("lmms_eval", "B", "B"),
        ("lmms_eval", "Not A. I choose C", "C"),
        ("lmms_eval", "(A) or (D)?", "D"),
        ("lmms_eval", "정답은 C 입니다", "C"),
        ("lmms_eval", "BAD", "D"),  # it ends with a letter behind a letter, so only the last anywhere is left
        ("lmms_eval", "none", None),
    ],
)
def test_letters(protocol, answer, letter):
    assert parse_choice(answer, OPTIONS, protocol) == letter


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("<|box_start|>(120,400),(500,900)<|box_end|>", (0.12, 0.4, 0.5, 0.9)),
        ('```json\n[{"bbox_2d": [120, 400, 500, 900], "label": "dog 3"}]\n```', (0.12, 0.4, 0.5, 0.9)),
        ('{"point_2d": [120, 400]}', (0.12, 0.4)),
        ("<ref>dog</ref><box>[[120, 400, 500, 900]]</box>", (0.12, 0.4, 0.5, 0.9)),
        ("<loc0512><loc0256><loc1023><loc0768> dog", (0.25, 0.5, 0.75, 1023 / 1024)),
        ("[0.12, 0.4, 0.5, 0.9]", (0.12, 0.4, 0.5, 0.9)),
        ("It is at (500, 250).", (0.5, 0.25)),
        ("I see no dog.", None),
        ("one 5", None),
    ],
)
def test_places_in_the_forms_of_several_models(answer, place):
    assert parse_place(answer) == (place if place is None else pytest.approx(place))


def test_places_in_pixels():
    assert parse_place("[64, 24, 128, 48]", (128, 48)) == pytest.approx((0.5, 0.5, 1.0, 1.0))


def test_answers_in_pixels_are_judged_in_those_of_the_picture_that_was_shown():
    for pixels, right in ((None, 0.0), ((200, 100), 1.0)):
        metric = BoxAccuracy(pixels=pixels)
        metric.update(["[20, 10, 100, 50]"], [["[0.1, 0.1, 0.5, 0.5]"]])
        assert float(metric.compute()["accuracy"]) == right


def test_overlap():
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == iou((0, 0, 0, 1), (0, 0, 1, 1)) == 0.0
    assert inside((0.5, 0.5), (0.5, 0.4, 0.6, 0.5))
    assert not inside((0, 0, 0.2, 0.2), (0.2, 0.2, 1, 1))


def test_a_box_is_right_from_the_threshold_on_and_a_point_where_it_lies():
    metric = BoxAccuracy()
    metric.update(["[0, 0, 500, 1000]", "[0, 0, 499, 1000]", "none"], [["[0, 0, 1, 1]"]] * 3)
    assert [verdict.score for verdict in metric.verdicts] == [1.0, 0.0, 0.0]
    assert metric.verdicts[2].unresolved
    metric = BoxAccuracy("point")
    metric.update(["(50, 50)", "[0, 0, 400, 400]"], [["[0, 0, 0.1, 0.1]"]] * 2)
    assert [verdict.score for verdict in metric.verdicts] == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"target: a box \[x1, y1, x2, y2\] in 0\.\.1 is needed, got 'left'"):
        metric.update(["(1, 1)"], [["left"]])


@pytest.mark.parametrize(
    ("answer", "choices", "kind", "value"),
    [
        ('The answer is "8".', [], "integer", "8"),
        ("So there are 1,204.", [], "integer", "1204"),
        ("7", [], "integer", "7"),
        ("about [1, 2] or [3, 4]", [], "list", "[3, 4]"),
        ("The correct answer is (B) 8/11.", ["3/11", "8/11"], "text", "B"),
        ("I think it is blue", ["red", "blue"], "text", "blue"),
        ("hard to say", ["red", "blue"], "text", None),
        ("none at all", [], "float", None),
    ],
)
def test_what_mathvista_extracts(answer, choices, kind, value):
    assert extract_mathvista(answer, choices, kind) == value


def test_mathvista_rounds_and_takes_the_nearest_option():
    assert mathvista_match("1.249", ["1.2"], (), "float", 1) == 1.0
    assert mathvista_match("3.9", ["3"], (), "integer") == 1.0  # int() cuts
    assert mathvista_match("B", ["blue"], ["red", "blue"]) == 1.0
    assert mathvista_match("", ["3"], (), "integer") is None


@pytest.mark.parametrize(
    ("answer", "reference", "years", "score"),
    [
        ("104", "100", (), 1.0),
        ("50%", "50", (), 1.0),
        ("2020", "2019", ("YES",), 0.0),
        ("2020", "2019", ("NO",), 1.0),
        ("['2019', 'blue']", "[2019, Blue]", ("YES", "NO"), 1.0),
        ("['2019']", "[2019, Blue]", ("YES", "NO"), 0.5),
        ("0.001", "0", (), 0.0),
        ("blur", "blue", (), 0.75),
        ("true", "blue", (), 0.0),  # half of it
        ("sky  blue", "Sky blue", (), 1.0),
        ("Yes.", "yes", (), 1.0),
    ],
)
def test_chartqapro(answer, reference, years, score):
    assert chartqapro_match(answer, reference, years) == pytest.approx(score)


def test_chartqapro_compares_exactly_by_one_protocol_only():
    for protocol, score in (("official", 0.75), ("lmms_eval", 0.0)):
        metric = ChartQAProAccuracy(protocol=protocol)
        metric.update(["true"], [["tru"]], types=["Fact Checking"])
        assert float(metric.compute()["relaxed_accuracy"]) == pytest.approx(score)


def test_numbers_as_words():
    assert exact_match("There are ten headsets.", ["10"], "number") == 1.0
    assert exact_match("010", ["10"], "number") == 1.0
    assert exact_match("often", ["10"], "number") == 0.0


def test_cv_bench_is_the_mean_of_its_parts():
    metric = CVBenchAccuracy("letter")
    metric.update(["A", "A", "B", "A"], [["A"]] * 4, types=["ADE20K", "COCO", "COCO", "Omni3D"])
    found = {key: float(value) for key, value in metric.compute().items()}
    assert found["cv_bench"] == pytest.approx(((1 + 0.5) / 2 + 1) / 2)
    assert found["accuracy"] == 0.75
    metric.reset()
    metric.update(["A"], [["A"]], types=["Omni3D"])
    assert float(metric.compute()["cv_bench"]) == 1.0


def test_questions_without_options_are_judged_by_the_answer_where_a_set_has_both():
    metric = MultipleChoiceAccuracy("mmbench", open_answers=True)
    asked = [Question("1", "Which?\nA. run\nB. sit", ("B",)), Question("2", "How many?", ("3",))]
    metric.update_questions(["(B)", "3."], asked)
    assert float(metric.compute()["accuracy"]) == 1.0


def test_yes_no_groups_need_their_numbers():
    metric = YesNoAccuracy(groups=["figure"])
    with pytest.raises(ValueError, match="question '1': has no figure_group, by which it is scored"):
        metric.update_questions(["yes"], [Question("1", "?", ("yes",))])
    with pytest.raises(ValueError, match="groups: the number of each answer's group is needed for figure"):
        metric.update(["yes"], [["yes"]])
    with pytest.raises(ValueError, match="groups: figure 30000 is not below 20000"):
        metric.update(["yes"], [["yes"]], groups=[[30000]])
