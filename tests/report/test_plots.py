"""The pictures: well-formed SVG that shows every run."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest

from dslight.report.plots import against, apart, bars, curves, differences
from dslight.report.runs import collect
from dslight.report.table import rows


@pytest.fixture
def table(tmp_path, finish):
    for arm, score, context in (("low", 0.74, 32), ("deepstack", 0.91, 32), ("all <tokens>", 0.92, 96)):
        for seed in (0, 1):
            finish(tmp_path / arm / str(seed), arm, seed, score + seed / 100, context_length=context)
    return rows(collect([tmp_path])[0], "low")


def texts(svg: str | None) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ET.fromstring(svg or "").iter() if node.tag.endswith("}text")]


def count(svg: str | None, group: str) -> int:
    return sum((node.get("id") or "").startswith(group) for node in ET.fromstring(svg or "").iter())


def test_every_picture_is_svg_with_the_arms_names_as_text_in_the_page_s_colours(table):
    for svg in (bars(table), curves(table), against(table, "context_length", "tokens")):
        assert svg is not None
        assert {"low", "deepstack", "all <tokens>"} <= set(texts(svg))
        assert "var(--ink)" in svg
        assert not any(stand_in in svg for stand_in in ("#010101", "#020202", "#030303", "#040404"))
        assert "#ffffff" not in svg


def test_bars_show_the_means_and_the_references(table):
    svg = bars(table, [("SVM, high", 0.916), ("SVM, low", 0.766)])
    assert {"74.5", "91.5", "92.5", "SVM, high 91.6", "SVM, low 76.6"} <= set(texts(svg))
    assert count(svg, "PathCollection") == 3


def test_curves_have_a_thin_line_per_run_and_a_bold_one_per_arm(table):
    svg = curves(table) or ""
    assert svg.count("stroke-width: 2.2") == 3
    assert svg.count("stroke-opacity: 0.5") == 6
    single = [replace(row, results=row.results[:1]) for row in table]
    assert (curves(single) or "stroke-opacity: 0.5").count("stroke-opacity: 0.5") == 0


def test_there_is_no_picture_where_there_is_nothing_to_draw(tmp_path, finish):
    folder = finish(tmp_path / "run", "low", 0, None)
    table = rows(collect([folder])[0])
    assert bars(table) is None
    assert curves(table) is None
    assert against(table, "context_length", "tokens") is None


def test_arms_of_the_same_cost_get_no_picture_of_score_against_it(table):
    assert against([row for row in table if row.arm in ("low", "deepstack")], "context_length", "tokens") is None
    assert against(table, "context_length", "tokens") is not None


def test_the_same_runs_give_the_same_picture(table):
    assert bars(table) == bars(table)


def test_labels_are_moved_apart_and_no_further_than_needed():
    wanted = [3.0, 1.0, 1.1, 1.2, 9.0]
    placed = apart(wanted, 0.5)
    order = np.argsort(wanted)
    assert np.all(np.diff(np.array(placed)[order]) >= 0.5 - 1e-9)
    assert placed[0] == 3.0
    assert placed[4] == 9.0
    assert sum(placed[1:4]) == pytest.approx(sum(wanted[1:4]))
    assert apart([], 1.0) == []


def test_differences_show_both_intervals_where_there_are_two():
    svg = differences(
        [("deepstack", 0.1, (0.05, 0.15), (-0.1, 0.3)), ("one <seed>", -0.02, (-0.03, -0.01), None)], "low"
    )
    assert {"deepstack", "one <seed>", "difference to low (points)"} <= set(texts(svg))
    assert (svg or "").count("stroke-width: 5") == 2
    assert (svg or "").count("stroke-width: 1.2") == 1
    assert differences([], "low") is None
