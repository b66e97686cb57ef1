"""Arms by benchmarks: which runs are compared on which questions, and what is said of it."""

import csv
import io
import json
import shutil
import subprocess

import numpy as np
import pytest
from scipy import stats

from dslight.report.benchmarks import benchmarks
from dslight.report.certainty import said_of_intervals, said_of_marks, said_of_rescored
from dslight.report.certainty import table as certainties
from dslight.report.latex import to_latex
from dslight.report.page import table_to_markdown
from dslight.report.paper import paper_table, records, title_of
from dslight.report.rows import rows
from dslight.report.runs import collect
from dslight.report.table import to_csv

QUESTIONS = 200


@pytest.fixture
def arms(tmp_path, finish, answer):
    """``arms({arm: gain}, seeds, sources)``: runs with answers; call what it gives to read them."""

    def make(gains, seeds=(0, 1, 2), sources=("textvqa", "docvqa")):
        generator = np.random.default_rng(1)
        hard = generator.random(QUESTIONS)
        for number, (arm, gain) in enumerate(gains.items()):
            for seed in seeds:
                run = finish(tmp_path / f"{number}{arm.strip('/')}" / str(seed), arm, seed, None, visual_tokens=576)
                for source in sources:
                    luck = generator.normal(0, 0.05, QUESTIONS) + generator.normal(0, 0.01)
                    answer(run, source, (hard < 0.5 + gain + luck).astype(float).tolist())
        return lambda: collect([tmp_path])[0]

    return make


def latex_of(made, title):
    return to_latex(paper_table(made), title, said_of_marks(made, "low"))


def change(folder, **values):
    file = folder / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_cell_is_the_mean_over_seeds_with_the_difference_over_common_seeds(arms, tmp_path):
    table = arms({"low": 0.0, "deepstack": 0.2})
    shutil.rmtree(tmp_path / "0low" / "2")
    made = benchmarks(table(), "low")
    files = {
        (arm, seed): tmp_path / arm / str(seed) / "questions/textvqa.jsonl"
        for arm in ("0low", "1deepstack")
        for seed in range(3)
    }
    scores = {
        key: np.array([json.loads(line)["score"] for line in file.read_text().splitlines()])
        for key, file in files.items()
        if file.exists()
    }
    low, deepstack = (row["textvqa"] for row in made.cells)
    assert low.mean == pytest.approx(np.mean([scores["0low", 0], scores["0low", 1]]))
    own = np.array([scores["1deepstack", seed] for seed in range(3)])
    assert deepstack.mean == pytest.approx(own.mean())
    assert deepstack.spread == pytest.approx(own.mean(axis=1).std(ddof=1))
    assert deepstack.estimate is not None
    assert deepstack.comparison is not None
    assert (deepstack.estimate.seeds, deepstack.comparison.seeds) == (3, (0, 1))
    pairs = np.array([scores["1deepstack", seed] - scores["0low", seed] for seed in (0, 1)])
    assert deepstack.delta == pytest.approx(pairs.mean())
    difference = deepstack.comparison.difference
    assert difference.value == pytest.approx(pairs.mean())
    theirs = stats.bootstrap(
        (pairs.mean(axis=0),), np.mean, n_resamples=10_000, batch=500, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (difference.over_questions.low, difference.over_questions.high) == pytest.approx(theirs, abs=0.004)


def test_every_point_of_a_grid_is_compared_with_the_baseline_there(tmp_path, finish, answer):
    scores = {("low", 1): 0.25, ("low", 2): 0.5, ("deepstack", 1): 0.75, ("deepstack", 2): 1.0}
    for (arm, lr), score in scores.items():
        run = finish(tmp_path / arm / str(lr), arm, 0, None, point={"seed": 0, "stage.lr": lr})
        answer(run, "textvqa", [float(i < 40 * score) for i in range(40)])
    made = benchmarks(collect([tmp_path])[0], "low")
    found = {(one.arm, one.base): one.difference.value for one in made.comparisons}
    assert found == {("deepstack lr=1", "low lr=1"): 0.5, ("deepstack lr=2", "low lr=2"): 0.5}


def test_marks_tell_other_questions_from_other_seeds(arms):
    results = arms({"low": 0.0, "same": 0.0, "sure": 0.2})()
    assert [cells["textvqa"].mark for cells in benchmarks(results, "low").cells] == ["", "", "‡"]
    single = [result for result in results if result.arm in ("low", "sure") and result.seed == 0]
    cell = benchmarks(single, "low").cells[1]["textvqa"]
    assert cell.mark == "†"
    assert cell.comparison is not None
    assert cell.comparison.difference.over_seeds is None


def test_seeds_that_disagree_take_the_second_mark_away(arms, tmp_path, answer):
    table = arms({"low": 0.0, "lucky": 0.0})
    for seed, gain in enumerate((0.02, 0.05, 0.4)):
        ours = (np.arange(QUESTIONS) < QUESTIONS * (0.5 + gain)).astype(float).tolist()
        answer(tmp_path / "0low" / str(seed), "textvqa", (np.arange(QUESTIONS) < QUESTIONS / 2).astype(float).tolist())
        answer(tmp_path / "1lucky" / str(seed), "textvqa", ours)
    cell = benchmarks(table(), "low").cells[1]["textvqa"]
    assert cell.mark == "†"
    assert cell.comparison is not None
    assert cell.comparison.difference.over_questions.p < 0.001
    again = cell.comparison.difference.over_seeds
    assert again is not None
    gains = stats.t.interval(0.95, 2, np.mean((0.02, 0.05, 0.4)), stats.sem((0.02, 0.05, 0.4)))
    assert (again.low, again.high) == pytest.approx(gains, rel=0.1)


def test_a_number_that_is_no_mean_over_questions_gets_no_mark_and_the_page_says_what_the_interval_is_of(arms, tmp_path):
    table = arms({"low": 0.0, "deepstack": 0.3}, sources=("pope",))
    for file in tmp_path.rglob("result.json"):
        result = json.loads(file.read_text())
        change(
            file.parent,
            scores={"val/pope/f1": result["scores"]["val/pope/exact_match"] + 0.02},
            sources={"pope": {"headline": "val/pope/f1"}},
        )
    made = benchmarks(table(), "low")
    cell = made.cells[1]["pope"]
    assert cell.comparison is not None
    assert cell.comparison.difference.over_questions.p < 0.001
    assert (cell.is_mean, cell.mark) == (False, "")
    assert cell.estimate is not None
    assert cell.mean == pytest.approx(cell.estimate.value + 0.02)
    assert "POPE: its number, f1, is no mean over questions" in " ".join(said_of_intervals(made))
    assert said_of_marks(made, "low") == []


def test_p_values_are_adjusted_over_all_arms_and_benchmarks(arms):
    made = benchmarks(arms({"low": 0.0, "a": 0.01, "b": 0.02})(), "low")
    raw = [one.difference.over_questions.p for one in made.comparisons]
    assert len(raw) == 4
    order = np.argsort(raw)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (4 - rank) * raw[index]))
        assert made.comparisons[index].p_holm == pytest.approx(worst)


def test_a_score_that_was_validated_later_replaces_the_one_of_the_training(arms, tmp_path):
    table = arms({"low": 0.0}, seeds=(0,))
    scores = {"checkpoint": "other.ckpt", "scores": {"val/pope/f1": 0.875, "val/pope/accuracy": 0.9}}
    (tmp_path / "0low/0/scores.json").write_text(json.dumps(scores))
    (result,) = table()
    assert result.headlines["pope"] == "val/pope/f1"
    assert result.judged_by("val/pope/f1").accuracy == 0.875
    assert said_of_rescored([result]) == [
        f"Validated again after training, so with the scores of scores.json: {tmp_path}/0low/0."
    ]
    cell = benchmarks([result]).cells[0]["pope"]
    assert (cell.mean, cell.estimate) == (0.875, None)


def test_a_headline_that_was_validated_later_is_the_one_of_the_table_too(tmp_path, finish):
    finish(tmp_path / "a", "a", 0, 0.5)
    (tmp_path / "a/scores.json").write_text(json.dumps({"scores": {"val/digits/vqa_accuracy": 0.75}}))
    (row,) = rows(collect([tmp_path])[0])
    assert row.mean == 0.75


def test_without_per_question_files_there_are_scores_and_differences_alone(tmp_path, finish):
    for arm, score in (("low", 0.5), ("deepstack", 0.75)):
        finish(tmp_path / arm, arm, 0, score)
    made = benchmarks(collect([tmp_path])[0], "low")
    assert made.sources == ("digits",)
    assert certainties(made, {}) is None
    assert "75.0** (+25.0)" in table_to_markdown(paper_table(made))


def test_the_best_of_a_column_is_bold_and_ties_as_shown_are_both_best(arms, tmp_path):
    table = arms({"low": 0.0, "a": 0.1, "b": 0.1}, seeds=(0,), sources=("textvqa",))
    for arm, score in (("0low", 0.5), ("1a", 0.70001), ("2b", 0.70004)):
        change(tmp_path / arm / "0", scores={"val/textvqa/exact_match": score})
    made = benchmarks(table(), "low")
    assert made.best("textvqa") == {"a", "b"}
    assert table_to_markdown(paper_table(made)).count("**70.0**") == 2
    assert paper_table(made).rows[1][-1].startswith('<strong>70.0</strong> <span class="small">(+20.0')


def test_the_csv_has_a_line_per_arm_and_benchmark_with_every_interval(arms):
    made = benchmarks(arms({"low": 0.0, "deepstack": 0.2})(), "low")
    lines = list(csv.DictReader(io.StringIO(to_csv(records(made)))))
    assert [(line["method"], line["benchmark"]) for line in lines] == [
        (arm, source) for arm in ("low", "deepstack") for source in ("textvqa", "docvqa")
    ]
    low, deepstack = lines[1], lines[3]
    cell = made.cells[1]["docvqa"]
    assert cell.comparison is not None
    assert (low["seeds"], low["visual_tokens"], low["questions"]) == ("3", "576.0", "200")
    assert (low["delta"], low["difference_p"]) == ("", "")
    assert float(deepstack["score"]) == cell.mean
    assert float(deepstack["difference_low"]) == cell.comparison.difference.over_questions.low
    assert float(deepstack["p_holm"]) == cell.comparison.p_holm


@pytest.mark.parametrize(
    ("source", "title"),
    [("textvqa", "TextVQA"), ("msvd_qa", "MSVD-QA"), ("mmvet", "MM-Vet"), ("my_own", "my_own"), ("nextqa", "NExT-QA")],
)
def test_benchmarks_are_called_as_papers_do_and_other_sources_by_their_names(source, title):
    assert title_of(source) == title


def test_the_table_of_intervals_says_both_kinds_and_with_two_seeds_that_they_say_little(arms):
    made = benchmarks(arms({"low": 0.0, "deepstack": 0.2}, seeds=(0, 1), sources=("textvqa",))(), "low")
    sure = certainties(made, {("deepstack", "low", "textvqa"): "diffs/x.html"})
    assert sure is not None
    low, deepstack = sure.rows
    assert len({len(sure.head), len(low), len(deepstack)}) == 1
    assert len(set(sure.head)) == len(sure.head)
    assert low[2:] == [low[2], *["–"] * 5]
    assert deepstack[3].startswith('<a href="diffs/x.html">+')
    assert deepstack[4] == "<0.001"
    assert "Two seeds say very little" in " ".join(said_of_intervals(made))


def test_a_single_seed_is_not_said_to_speak_for_others(arms):
    made = benchmarks(arms({"low": 0.0, "deepstack": 0.3}, seeds=(0,), sources=("textvqa",))(), "low")
    sure = certainties(made, {})
    assert sure is not None
    assert sure.head == [
        "arm",
        "questions",
        "mean score [95 %]",
        "Δ [95 %, other questions]",
        "p, other questions",
        "p (Holm)",
    ]
    assert {len(row) for row in sure.rows} == {6}
    assert "One seed says nothing about another." in said_of_intervals(made)
    assert "‡" not in " ".join(said_of_marks(made, "low"))


# LaTeX


def cells_of(latex):
    """A strict reading of the tabular: rows of cells. Every special character must be escaped or be markup."""
    body = latex[latex.index(r"\begin{tabular}") : latex.index(r"\end{tabular}")]
    found = []
    for line in body.splitlines()[1:]:
        if line.startswith("\\") and line in (r"\toprule", r"\midrule", r"\bottomrule"):
            continue
        assert line.endswith(r" \\"), line
        found.append(split(line.removesuffix(r" \\")))
    return found


def split(line):
    """Cells of a row; fails on unbalanced braces, mathematics left open, and bare special characters."""
    cells, depth, maths, i = [""], 0, False, 0
    while i < len(line):
        two = line[i : i + 2]
        if two[0] == "\\" and two[1] in "&%$#_{}":
            cells[-1] += two[1]
            i += 2
            continue
        assert two[0] not in "%#~", line
        assert two[0] not in "_^" or maths, line
        depth += {"{": 1, "}": -1}.get(two[0], 0)
        assert depth >= 0, line
        maths ^= two[0] == "$"
        if two[0] == "&":
            assert depth == 0, line
            cells.append("")
        else:
            cells[-1] += two[0]
        i += 1
    assert (depth, maths) == (0, False), line
    return [cell.strip() for cell in cells]


NASTY = {"low": 0.0, "50% & {more}_#1 ~^\\ $": 0.2, "a<b>": -0.3}


def test_the_latex_has_as_many_cells_in_every_row_and_no_bare_special_character(arms):
    made = benchmarks(arms(NASTY)(), "low")
    latex = latex_of(made, "50% of _it_ & more")
    lines = cells_of(latex)
    head = latex[latex.index(r"\begin{tabular}") :].splitlines()[0]
    assert head == r"\begin{tabular}{lrrrr}"
    assert [len(line) for line in lines] == [5, 5, 5, 5]
    assert lines[0] == ["Method", "Vis. tok.", "Cxt. len.", "TextVQA", "DocVQA"]
    assert lines[2][0] == r"50% & {more}_#1 \textasciitilde{}\textasciicircum{}\textbackslash{} $"
    assert lines[2][3].startswith(r"\textbf{")
    assert r"($-$" in lines[3][3]
    assert r"\caption{50\% of \_it\_ \& more}" in latex
    for character in "†‡−–Δ":
        assert character not in latex


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs TeX with booktabs")
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "input"])
def test_tex_sets_the_table_alone_and_within_a_document(arms, tmp_path, alone):
    (tmp_path / "table.tex").write_text(latex_of(benchmarks(arms(NASTY)(), "low"), "A & B"))
    host = r"\documentclass{article}\usepackage{booktabs}\begin{document}Before \input{table} and after.\end{document}"
    (tmp_path / "host.tex").write_text(host)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex" if alone else "host.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Output written" in done.stdout
