"""The table's numbers against numpy's, and what its notes admit."""

import csv
import io

import numpy as np
import pytest

from dslight.report.page import Table, table_to_markdown
from dslight.report.rows import Unit, rows, unit_of
from dslight.report.runs import collect
from dslight.report.table import arms_table, notes, run_record, runs_table, to_csv


@pytest.fixture
def results(tmp_path, finish):
    """``results((arm, seed, score, changes), ...)``: finished runs, read back."""

    def make(*runs):
        folders = []
        for arm, seed, score, *changes in runs:
            folders.append(tmp_path / f"{len(list(tmp_path.iterdir())):02}")
            finish(folders[-1], arm, seed, score, **(changes[0] if changes else {}))
        return collect(folders)[0]

    return make


def shown(table, baseline=None):
    return table_to_markdown(arms_table(table, baseline))


def test_mean_and_spread_are_numpy_s(results):
    scores = [0.909, 0.916, 0.902]
    row = rows(results(*[("deepstack", seed, score) for seed, score in enumerate(scores)]))[0]
    assert row.mean == pytest.approx(np.mean(scores))
    assert row.spread == pytest.approx(np.std(scores, ddof=1))


def test_a_single_seed_has_no_spread_and_the_notes_say_so(results):
    table = rows(results(("low", 0, 0.738), ("low", 1, 0.740), ("deepstack", 0, 0.909)), "low")
    assert table[1].spread is None
    said = " ".join(notes(table, "low"))
    assert "Rows without ± are a single run" in said
    assert "two seeds tell little" in said
    alone = notes(rows(table[1].results), None)
    assert alone[0].startswith("Every row is a single run")
    assert not any("±" in line for line in alone)


def test_a_difference_is_taken_over_the_seeds_that_both_have(results):
    table = rows(results(("low", 0, 0.70), ("low", 1, 0.80), ("deepstack", 1, 0.95), ("deepstack", 2, 0.10)), "low")
    assert table[1].delta == pytest.approx(0.15)
    assert len(table[1].pairs) == 1
    assert "+15.0 (over 1)" in shown(table, "low")


def test_arms_without_a_common_seed_are_not_compared(results):
    row = rows(results(("low", 0, 0.70), ("deepstack", 1, 0.95)), "low")[1]
    assert (row.delta, row.pairs) == (None, {})


def test_grid_keys_make_rows_of_their_own_each_next_to_the_baseline_there(results):
    runs = [
        (arm, seed, score + 0.1 * (arm == "deepstack"), {"point": {"seed": seed, "stage.lr": lr}})
        for arm in ("low", "deepstack")
        for lr, score in ((0.1, 0.5), (0.2, 0.6))
        for seed in (0, 1)
    ]
    table = rows(results(*runs), "low")
    assert [row.label for row in table] == ["low lr=0.1", "low lr=0.2", "deepstack lr=0.1", "deepstack lr=0.2"]
    assert [row.delta and round(row.delta, 6) for row in table] == [None, None, 0.1, 0.1]
    assert [len(row.results) for row in table] == [2, 2, 2, 2]


def test_relative_step_time_is_over_the_baseline_s(results):
    changes = [{"step_seconds": seconds} for seconds in (0.1, 0.1, 0.15, 0.17)]
    arms = [("low", 0), ("low", 1), ("deepstack", 0), ("deepstack", 1)]
    table = rows(results(*[(*arm, 0.5, change) for arm, change in zip(arms, changes, strict=True)]), "low")
    made = arms_table(table, "low")
    assert [line[made.head.index("time vs. low")] for line in made.rows] == ["1.00×", "1.60×"]


def test_scores_of_different_metrics_are_neither_pooled_nor_subtracted(results):
    table = rows(results(("low", 0, 0.7), ("deepstack", 0, 0.9, {"headline": "val/docs/anls"})), "low")
    assert [(row.headline, row.delta) for row in table] == [("val/digits/vqa_accuracy", None), ("val/docs/anls", None)]
    assert "70.0%" in shown(table, "low")
    assert "| metric " in shown(table, "low")
    assert "different metrics" in " ".join(notes(table, "low"))


def test_a_run_on_another_scale_does_not_change_how_the_others_are_shown(results):
    table = rows(results(("low", 0, 0.738), ("mme", 0, 1385.2, {"headline": "val/mme/total"})))
    assert [row.unit.name for row in table] == ["%", ""]
    assert " 73.8% " in shown(table, None)
    assert " 1385.2 " in shown(table, None)


def test_fractions_are_shown_in_percent_and_other_scales_as_they_are(results):
    assert unit_of(results(("a", 0, 0.7), ("b", 0, 1.0))) == Unit(100.0, "%")
    assert unit_of(results(("c", 0, 1385.2, {"headline": "val/mme/total"}))).name == ""
    assert Unit(1.0, "")(-3.04, signed=True) == "−3.0"
    assert Unit(1.0, "")(None) == "–"


def test_the_markdown_is_a_table_with_aligned_columns(results):
    lines = shown(rows(results(("low", 0, 0.7), ("deepstack", 0, 0.91)), "low"), "low").splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
    row = dict(zip(heads, cells, strict=True))
    assert row["vqa accuracy (%)"] == "91.0"
    assert row["Δ to low"] == "+21.0"
    assert (row["visual tokens"], row["context length"], row["time vs. low"]) == ("16", "32", "1.00×")


def test_every_column_of_markdown_has_a_rule_that_every_reader_takes_for_one():
    lines = table_to_markdown(Table(["arm", "p"], [["a|b", "–"]])).splitlines()
    assert lines == ["| arm  |   p |", "| ---- | --: |", r"| a\|b |   – |"]


def test_every_run_has_a_line_of_its_own(results):
    made = runs_table(rows(results(("low", 0, 0.7), ("low", 1, 0.8), ("deepstack", 0, 0.91)), "low"))
    seen = [dict(zip(made.head, line, strict=True)) for line in made.rows]
    assert [(one["arm"], one["seed"], one["vqa accuracy (%)"]) for one in seen] == [
        ("low", "0", "70.0"),
        ("low", "1", "80.0"),
        ("deepstack", "0", "91.0"),
    ]
    assert [one["folder"][-3:] for one in seen] == ["/00", "/01", "/02"]
    assert seen[0]["training"] == "48 s"


def test_an_arm_s_name_leads_to_its_page(results):
    made = arms_table(rows(results(("low", 0, 0.7), ("a|b", 0, 0.7))), None, {"a|b": "answers/a.html"})
    assert [line[0] for line in made.rows] == ["low", '<a href="answers/a.html">a|b</a>']
    assert r"| a\|b |" in table_to_markdown(made)


def test_no_two_columns_have_the_same_name(results):
    made = results(("low", 0, 0.7), ("deepstack", 0, 0.91, {"steps": 9, "point": {"seed": 0, "steps": 3}}))
    for table in (arms_table(rows(made, "low"), "low"), runs_table(rows(made, "low"))):
        assert len(set(table.head)) == len(table.head)


def test_columns_without_any_value_are_left_out(results):
    nothing = dict.fromkeys(
        ("visual_tokens", "stacked_tokens", "context_length", "step_seconds", "steps", "parameters")
    )
    table = rows(results(("low", 0, 0.7, nothing | {"point": {}})))
    assert shown(table, None).splitlines()[0] == "| arm | seeds | vqa accuracy (%) |"


def test_unequal_training_is_said(results):
    table = rows(results(("low", 0, 0.7), ("long", 0, 0.7, {"steps": 1200})), "low")
    assert "not trained for the same number of steps" in " ".join(notes(table, "low"))
    assert "steps" in shown(table, "low").splitlines()[0]


def test_a_baseline_without_a_run_is_admitted(results):
    said = notes(rows(results(("upsampled", 0, 0.7), ("deepstack", 0, 0.7)), "low"), "low")
    assert "There is no finished run of low to compare with, so no differences are given." in said


def test_a_baseline_that_no_row_can_be_compared_with_is_admitted(results):
    said = notes(rows(results(("low", 1, 0.7), ("deepstack", 0, 0.7)), "low"), "low")
    assert "No row shares a metric and a seed with low, so no differences are given." in said


def test_the_csv_has_a_line_per_run_with_the_whole_precision_and_every_grid_key(results):
    made = results(
        ("low", 0, 0.73812345, {"point": {"seed": 0, "lr": 0.1}}),
        ("deepstack", 1, None, {"point": {"seed": 1, "lr": {"class_path": "A"}}}),
    )
    lines = list(csv.DictReader(io.StringIO(to_csv([run_record(one) for one in made]))))
    assert [(line["arm"], line["seed"], line["lr"]) for line in lines] == [
        ("low", "0", "0.1"),
        ("deepstack", "1", '{"class_path": "A"}'),
    ]
    assert float(lines[0]["accuracy"]) == float(lines[0]["val/digits/exact_match"]) == 0.73812345
    assert lines[1]["accuracy"] == ""
    assert {"visual_tokens", "context_length", "step_seconds", "steps", "parameters.total"} <= set(lines[0])
