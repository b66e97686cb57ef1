"""Diagnostics of a model that is sharded over two ranks are those of one process: of every question, once."""

import csv
import json

import pytest

LOOK = {"drop": True, "shuffle": True, "heat_maps": 3, "limit": 7}


def found(done):
    return json.loads((done.folder / "run" / "diagnostics.json").read_text())


def rows(done):
    text = (done.folder / "run" / "diagnostics" / "questions.jsonl").read_text()
    return {row["question_id"]: row for row in map(json.loads, text.splitlines())}


def numbers(norm):
    return {key: value for key, value in norm.items() if not isinstance(value, str)}


@pytest.mark.parametrize("stacking", ["DeepStackL", pytest.param("DeepStackV", marks=pytest.mark.slow)])
def test_two_ranks_find_what_one_process_finds(recipe, fit, tmp_path, stacking):
    """Seven questions do not divide by two ranks, and one of them has no picture."""
    file = recipe(stacking, diagnostics=LOOK)
    one, two = fit(file, tmp_path / "one"), fit(file, tmp_path / "two", ranks=2)
    assert one.code == 0, one.output
    assert two.code == 0, two.output
    assert list(rows(one)) == list(rows(two)) == ["q0", "q1", "q2", "q3", "q4", "q6"]
    ours, theirs = found(two), found(one)
    for our, their in zip(ours["norms"], theirs["norms"], strict=True):
        assert numbers(our) == pytest.approx(numbers(their), rel=1e-3)
    assert len(ours["norms"]) == 4
    for our, their in zip(ours["heat_maps"], theirs["heat_maps"], strict=True):
        assert our["question_id"] == their["question_id"]
        assert our["log_likelihood"] == pytest.approx(their["log_likelihood"], rel=1e-3)
        for a, b in zip(our["totals"], their["totals"], strict=True):
            assert a == pytest.approx(b, rel=2e-2, abs=1e-4)
        assert (two.folder / "run" / "diagnostics" / our["file"]).exists()
    assert [row["question_id"] for row in ours["heat_maps"]] == ["q0", "q3", "q6"]
    with (two.folder / "run" / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["diagnostics/stack_1/relative_norm"]]
    assert float(logged[-1]["diagnostics/stack_1/relative_norm"]) == pytest.approx(ours["norms"][0]["relative"])
