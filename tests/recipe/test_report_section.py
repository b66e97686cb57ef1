"""The report section of an ablation: every wrong key, arm and combination by its path, before anything is computed."""

import re
from pathlib import Path

import pytest
import yaml

from dslight.recipe.errors import RecipeError
from dslight.recipe.report_section import Claim, Reference, ReportSection, report_section

ARMS = ["low", "deepstack", "sequence", "repeated", "upsampled"]


def claim(**keys):
    return {"claims": [{"say": "So it is.", **keys}]}


def test_nothing_said_is_a_section_of_defaults():
    assert report_section({}, ARMS) == ReportSection()


def test_a_section_is_read_into_objects_with_numbers():
    values = claim(arm=["low", "repeated"], minus="deepstack", at_most="3") | {
        "title": "T",
        "baseline": "low",
        "questions": 3,
        "references": [{"label": "SVM", "file": "a.json", "key": "b.c"}, {"label": "chance", "value": 1}],
    }
    made = report_section(values, ARMS)
    assert made.claims == [Claim("So it is.", ["low", "repeated"], minus="deepstack", at_most=3.0)]
    assert made.references == [Reference("SVM", file="a.json", key="b.c"), Reference("chance", 1.0)]
    assert (made.title, made.baseline, made.questions, made.text) == ("T", "low", 3, "")


@pytest.mark.parametrize(
    ("keys", "bounds"),
    [
        ({"at_least": 10}, (10, float("inf"))),
        ({"at_most": 0}, (-float("inf"), 0)),
        ({"at_least": 1, "at_most": 2}, (1, 2)),
        ({"within": 2}, (-2, 2)),
    ],
)
def test_bounds_are_the_lowest_and_the_highest_number(keys, bounds):
    (made,) = report_section(claim(arm="deepstack", minus="low", **keys), ARMS).claims
    assert made.bounds == bounds


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"titel": "x"}, "report.titel: there is no such argument; did you mean title?"),
        ({"baseline": "lwo"}, "report.baseline: there is no arm 'lwo'; did you mean low?; there are low, deepstack"),
        ({"questions": "all"}, "report.questions: expected a whole number, got 'all'"),
        ({"questions": -1}, "report.questions: -1"),
        ({"references": [{"label": "SVM"}]}, "report.references.0: 'SVM' needs either a value, or a file with a key"),
        ({"references": [{"label": "SVM", "file": "x"}]}, "report.references.0: 'SVM' needs either"),
        (
            {"references": [{"label": "x", "value": 1, "file": "x", "key": "y"}]},
            "report.references.0: 'x' needs either",
        ),
        ({"references": [{"value": 1}]}, "report.references.0.label: missing"),
        ({"claims": [{"arm": "low", "at_least": 1}]}, "report.claims.0.say: missing"),
        (claim(at_least=1), "report.claims.0.arm: missing"),
        (claim(arm="low", at_leest=1), "report.claims.0.at_leest: there is no such argument; did you mean at_least?"),
        (claim(arm="low", at_least="much"), "report.claims.0.at_least: expected a number or null, got 'much'"),
        (claim(arm="lwo", at_least=1), "report.claims.0.arm: there is no arm 'lwo'; did you mean low?"),
        (claim(arm=["low", "lwo"], at_least=1), "report.claims.0.arm: there is no arm 'lwo'"),
        (claim(arm=[], at_least=1), "report.claims.0.arm: [] names no arm"),
        (claim(arm="low", minus="deep", at_least=1), "report.claims.0.minus: there is no arm 'deep'"),
        (claim(arm="low", relative_to="deep", at_most=1), "report.claims.0.relative_to: there is no arm 'deep'"),
        (claim(arm="low", minus="low", at_least=1), "report.claims.0.minus: low would be compared with itself"),
        (claim(arm=["low", "deepstack"], relative_to="low", at_most=1), "report.claims.0.relative_to: low would be"),
        (
            claim(arm="low", minus="deepstack", relative_to="sequence", at_least=1),
            "report.claims.0.relative_to: sequence, and minus deepstack; a claim subtracts or divides",
        ),
        (claim(arm="low"), "report.claims.0.at_least: missing; a claim needs a bound"),
        (claim(arm="low", within=2), "report.claims.0.within: 2 bounds a difference"),
        (claim(arm="low", relative_to="deepstack", within=2), "report.claims.0.within: 2 bounds a difference"),
        (claim(arm="low", minus="deepstack", within=-2), "report.claims.0.within: -2 is the largest difference"),
        (claim(arm="low", minus="deepstack", within=2, at_least=1), "report.claims.0.within: 2 is the largest"),
        (claim(arm="low", at_least=3, at_most=2), "report.claims.0.at_least: 3 is more than at_most: 2"),
        (claim(arm="low", without="each_stack", minus="deepstack", at_most=-1), "report.claims.0.minus: deepstack, an"),
        (claim(arm="low", without="stack_1", at_most=-1), "report.claims"),
        (claim(arm="low", at_least=float("nan")), "report.claims.0.at_least: nan bounds nothing"),
        (claim(arm="low", at_most=float("inf")), "report.claims.0.at_most: inf bounds nothing"),
    ],
)
def test_what_is_wrong_is_refused_by_its_path(values, start):
    with pytest.raises(RecipeError) as caught:
        report_section(values, ARMS)
    assert str(caught.value).startswith(start)


def test_the_example_of_the_documentation_is_a_section():
    page = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    (example,) = re.findall(r"```yaml\n(report:.*?)```", page, re.DOTALL)
    assert len(report_section(yaml.safe_load(example)["report"], ARMS).claims) == 5
