"""The pictures: well-formed SVG that shows every run."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from dslight.report.plots import against, bars, curves, differences, losses
from dslight.report.rows import rows
from dslight.report.runs import collect
from dslight.report.statistics import Estimate, Interval


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
    for svg in (bars(table), curves(table), losses(table), against(table, "context_length", "tokens")):
        assert svg is not None
        assert {"low", "deepstack", "all <tokens>"} <= set(texts(svg))
        assert "var(--ink)" in svg
        assert not any(stand_in in svg for stand_in in ("#010101", "#020202", "#030303", "#040404"))
        assert "#ffffff" not in svg


def test_bars_show_the_means_and_the_references(table):
    svg = bars(table, [("SVM, high", 0.916), ("SVM, low", 0.766)])
    assert {"74.5", "91.5", "92.5", "SVM, high 91.6", "SVM, low 76.6"} <= set(texts(svg))
    assert count(svg, "PathCollection") == 3


def nodes(svg: str | None, tag: str) -> list[ET.Element]:
    return [node for node in ET.fromstring(svg or "").iter() if node.tag.endswith("}" + tag)]


@pytest.mark.parametrize("score", [0.0, 0.004, 0.93])
def test_a_score_stands_beside_the_bars_where_no_dot_can_hide_it(tmp_path, finish, score):
    for arm, own in (("low", score), ("deepstack", 0.9)):
        finish(tmp_path / arm, arm, 0, own)
    svg = bars(rows(collect([tmp_path])[0]), [("SVM", 0.8)])
    at = {"".join(node.itertext()): float(node.get("x", 0)) for node in nodes(svg, "text")}
    assert at[f"{100 * score:.1f}"] == at["90.0"] > max(float(node.get("x", 0)) for node in nodes(svg, "use"))


def lines(svg: str | None, width: str) -> list[list[tuple[float, float]]]:
    """The points of the lines of a width."""
    paths = [node for node in nodes(svg, "path") if f"stroke-width: {width};" in node.get("style", "") + ";"]
    points = [re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", node.get("d", "")) for node in paths]
    return [[(float(x), float(y)) for x, y in line] for line in points]


def test_a_curve_has_a_thin_line_per_run_and_a_bold_one_that_does_not_lead_to_the_final_score(table):
    svg = curves(table)
    assert (svg or "").count("stroke-opacity: 0.5") == 6
    *bold, _, _, _ = lines(svg, "2.2")  # and three in the legend
    finals = [node for node in nodes(svg, "use") if "fill: var(--card)" in node.get("style", "")]
    ends = [(float(node.get("x", 0)), float(node.get("y", 0))) for node in finals]
    assert len(bold) == len(ends) == 3
    for line, (x, y) in zip(bold, ends, strict=True):  # of other questions: no cliff leads from one to the other
        assert line[-1][0] == x
        assert line[-1][1] > y + 3
    single = [replace(row, results=row.results[:1]) for row in table]
    assert (curves(single) or "stroke-opacity: 0.5").count("stroke-opacity: 0.5") == 0


def test_the_training_loss_has_a_line_per_arm(table):
    svg = losses(table)
    assert [len(line) for line in lines(svg, "2.2")] == [50, 50, 50, 3, 3, 3]  # and those of the legend
    assert {"training loss", "training step"} <= set(texts(svg))
    quiet = [replace(row, results=tuple(replace(one, curves={}) for one in row.results)) for row in table]
    assert losses(quiet) is None


def test_more_arms_than_colours_differ_in_dashes_and_markers(tmp_path, finish):
    for i in range(11):
        finish(tmp_path / str(i), f"arm{i}", 0, 0.5 + i / 50, context_length=10 + i)
    made = rows(collect([tmp_path])[0])
    for svg, group in ((curves(made), "line2d"), (against(made, "context_length", "tokens"), "PathCollection")):
        entries = ET.tostring(next(node for node in nodes(svg, "g") if node.get("id", "").startswith("legend")))
        drawn = re.findall(r'<ns0:(?:path|use)[^>]*style="([^"]*)"|d="([^"]*)"', entries.decode())
        assert len(set(drawn)) >= 11, group


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


def sure(value: float, near: tuple[float, float], far: tuple[float, float] | None) -> Estimate:
    return Estimate(value, Interval(*near, 0.5), None if far is None else Interval(*far, 0.5), 2, 100)


def test_differences_show_both_intervals_where_there_are_two():
    svg = differences(
        [("deepstack", sure(0.1, (0.05, 0.15), (-0.1, 0.3))), ("one <seed>", sure(-0.02, (-0.03, -0.01), None))], "low"
    )
    assert {"deepstack", "one <seed>", "difference to low (points)"} <= set(texts(svg))
    assert (svg or "").count("stroke-width: 5") == 2
    assert (svg or "").count("stroke-width: 1.2") == 1
    assert differences([], "low") is None


def test_an_interval_that_says_nothing_does_not_flatten_the_others():
    narrow, wide = sure(0.004, (-0.004, 0.012), (-0.02, 0.02)), sure(0.0, (-0.004, 0.004), (-1.0, 1.0))
    svg = differences([("narrow", narrow), ("wide", wide)], "low")
    (left, _), (right, _) = lines(svg, "5")[0]
    assert right - left > 60  # of 410 points of the picture; on an axis from -100 to 100 it would be 3
    arrows = [node for node in nodes(svg, "use") if "fill: #0072b2" in node.get("style", "").lower()]
    assert len(arrows) == 2
