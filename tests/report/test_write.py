"""The whole report, from run folders to one HTML file."""

import random
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dslight.recipe.ablation import expand
from dslight.recipe.errors import RecipeError
from dslight.report import report
from dslight.report.page import prose

ABLATION = """
name: effect
variants: {low: {a: 1}, low-repeated: {a: 2}, deepstack-l: {a: 3}, all-tokens: {a: 4}}
grid: {seed: [0, 1]}
report:
  title: Tokens & <stacks>
  baseline: low
  claims:
    - {say: "Stacks *help* & more.", arm: deepstack-l, minus: low-repeated, at_least: 10}
    - {say: They cost nothing., arm: deepstack-l, relative_to: low, score: step_seconds, at_most: 1.1}
  references:
    - {label: SVM, file: svm.json, key: high.accuracy}
    - {label: chance, value: 0.1}
    - {label: gone, file: no.json, key: x}
  text: |
    # A toy
    It shows the **mechanism**.
"""


FILES = ["table.md", "table.csv", "table.tex", "benchmarks.csv", "report.html"]


class Reader(HTMLParser):
    """The words of a page, and everything that it would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.loads: list[str] = []
        self.leads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img", "link", "use", "path", "rect"):
            self.open.append(tag)
        self.handle_startendtag(tag, attrs)

    def handle_startendtag(self, tag, attrs):
        links = [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        links = [link for link in links if not link.startswith(("#", "data:"))]
        if tag == "a":
            self.leads += links
        else:
            self.loads += links

    def handle_endtag(self, tag):
        if tag not in ("use", "path", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.words))


@pytest.fixture
def ablation(tmp_path, monkeypatch, finish_all):
    monkeypatch.chdir(tmp_path)
    Path("effect.yaml").write_text(ABLATION)
    Path("svm.json").write_text('{"high": {"accuracy": 0.916}}')
    ablation = expand("effect.yaml", ["b=[1, 2]"])
    finish_all(ablation)
    return ablation


def read(folder: str | Path, name: str = "report.html") -> Reader:
    page = Reader((Path(folder) / name).read_text(encoding="utf-8"))
    assert page.open == []
    assert page.loads == []
    return page


def test_an_ablation_gets_a_table_a_csv_and_a_page_that_loads_nothing(ablation, capsys):
    made = report(ablation, Path("out"))
    assert [file.name for file in made.files] == FILES
    printed = capsys.readouterr().out
    assert made.markdown == Path("out/table.md").read_text()
    assert made.markdown[: made.markdown.index("## All runs")] in printed
    assert "- ❌ **NOT HELD**: They cost nothing.\n" in printed
    assert "\x1b" not in printed
    assert [one.held for one in made.outcomes] == [True, False]
    assert len(Path("out/table.csv").read_text().splitlines()) == 9
    text = read("out").text
    for words in (
        "Tokens & <stacks>",
        "4 arms, 2 runs each",
        "A toy It shows the mechanism",
        "SVM svm.json: high.accuracy 91.6",
        "gone there is no no.json –",
        "of training in all. 1 of 2 claims held.",
        "HELD Stacks help & more.",
        "NOT HELD They cost nothing. step_seconds: deepstack-l / low, claimed to be at most 1.1×: 1.77×",
        "Training loss",
        "dslight sweep effect.yaml 'b=[1, 2]'",
        "0123456789abcdef",
        "2.15.0",
        "Learning curves",
    ):
        assert words in text
    assert "Not in this report" not in text
    assert Path("out/report.html").read_text().count("<svg") == 5


def test_a_claim_about_runs_that_are_missing_is_not_checked(ablation):
    for run in ablation.runs[2:4]:
        shutil.rmtree(run.run_dir)
    made = report(ablation, Path("out"))
    assert [one.held for one in made.outcomes] == [None, False]
    assert "- ❔ **NOT CHECKED**: Stacks *help* & more.\n  - deepstack-l − low-repeated, claimed" in made.markdown
    assert 'class="claim not-checked"' in Path("out/report.html").read_text()


def test_missing_runs_are_listed(ablation):
    shutil.rmtree(ablation.runs[7].run_dir)
    (ablation.runs[5].run_dir / "result.json").unlink()
    made = report(ablation, Path("out"))
    assert len(made.results) == 6
    assert "4 arms, 1 or 2 runs each" in read("out").text
    for text in (read("out").text, made.markdown):
        assert "Not in this report: 2 runs" in text
        assert "runs/effect/deepstack-l/seed=1: started, not finished" in text
        assert "runs/effect/all-tokens/seed=1: not started" in text


@pytest.fixture
def answered(ablation, answer):
    """The runs of the ablation with answers to 60 questions; deepstack-l is right more often than low."""
    for run in ablation.runs:
        right = {"low": 20, "low-repeated": 21, "deepstack-l": 45, "all-tokens": 50}[run.arm] + run.recipe["seed"]
        answer(run.run_dir, "digits", [float(i * 37 % 60 < right) for i in range(60)])
    return ablation


def test_per_question_files_bring_intervals_marks_and_pages_that_the_report_leads_to(answered, capsys):
    made = report(answered, Path("out"))
    assert "question by question: 8 pages in out/answers and out/diffs" in capsys.readouterr().out
    assert [row.mark for row in made.table] == ["", "", "‡", "‡"]
    page = read("out")
    # four arms, three next to the baseline, and the pair of a claim
    assert len(set(page.leads)) == 8
    for address in set(page.leads):
        questions = read("out", address)
        assert questions.leads == ["../report.html"]
        assert ("both right" in questions.text) == address.startswith("diffs/")
    for text in (page.text, made.markdown):
        for words in ("mean score [95 %]", "‡: also when other seeds", "Two seeds say very little", "+41.7‡"):
            assert words in text
    assert "Benchmarks" not in page.text  # there is only one, which the first table has
    assert Path("out/table.tex").read_text().count(" \\\\\n") == 5
    assert len(Path("out/benchmarks.csv").read_text().splitlines()) == 5


def test_a_claim_about_two_arms_has_intervals_and_leads_to_their_questions(answered):
    report(answered, Path("out"))
    page = read("out")
    assert re.search(
        r"HELD Stacks help & more. deepstack-l − low-repeated , claimed to be at least 10 points: \+40.0 points "
        r"\(seed 0: \+40.0, seed 1: \+40.0\), 95 % over other questions \[\+2\d.\d, \+5\d.\d\], and other seeds \[\+",
        page.text,
    )
    assert "diffs/deepstack_l-low_repeated-digits.html" in page.leads
    diff = read("out", "diffs/deepstack_l-low_repeated-digits.html").text
    assert "deepstack-l is better: 25 questions" in diff
    assert "low-repeated is better: 0 questions" in diff


def test_a_broken_claim_is_red_in_the_page_and_on_a_terminal_alone(ablation, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    report(ablation, Path("out"))
    assert "\x1b[1;31m- ❌ **NOT HELD**: They cost nothing.\x1b[0m\n" in capsys.readouterr().out
    assert "\x1b" not in Path("out/table.md").read_text()
    html = Path("out/report.html").read_text()
    assert html.count('class="claim not-held"') == html.count('class="claim held"') == 1
    assert html.index('class="claim not-held"') < html.index("They cost nothing.")
    monkeypatch.setenv("NO_COLOR", "1")
    report(ablation, Path("out"))
    assert "\x1b" not in capsys.readouterr().out


def test_the_pages_of_questions_can_be_shorter_or_left_out(answered):
    report(answered, Path("out"), settings={"baseline": "low", "questions": 5})
    assert "5 of them are shown" in read("out", "diffs/deepstack_l-low-digits.html").text
    report(answered, Path("none"), settings={"baseline": "low", "questions": 0})
    assert not Path("none/diffs").exists()
    assert not Path("none/answers").exists()
    assert read("none").leads == []
    assert "mean score [95 %]" in read("none").text


def test_no_two_columns_of_a_table_have_the_same_name(answered, answer):
    for run in answered.runs:
        answer(run.run_dir, "docvqa", [float(i % 3 == 0) for i in range(30)], type=["a", "b"] * 15)
    report(answered, Path("out"))
    files = [Path("out/report.html"), *Path("out").glob("*/*.html")]
    heads = [
        re.findall(r"<th[^>]*>(.*?)</th>", head)
        for file in files
        for head in re.findall(r"<thead>(.*?)</thead>", file.read_text(), re.DOTALL)
    ]
    assert len(heads) > 20
    for head in heads:
        assert len(set(head)) == len(head), head


def test_several_benchmarks_stand_side_by_side(answered, answer):
    for run in answered.runs:
        answer(run.run_dir, "docvqa", [float(i % 3 == 0) for i in range(30)])
    made = report(answered, Path("out"))
    page = read("out")
    assert "In parentheses: the difference to the baseline." in page.text
    assert len(set(page.leads)) == 15  # two benchmarks of four arms, three of which are compared, and a claim's pair
    assert re.search(r"\| Method +\| Vis. tok. \| Cxt. len. \| +digits \| +DocVQA \|", made.markdown)
    assert made.markdown.count(" 33.3 (+0.0) ") == 3  # all alike, so none is the best


def test_a_report_with_pages_needs_no_torch(answered):
    program = (
        "import sys; from dslight.cli import main\n"
        "assert main(['report', 'effect.yaml', 'b=[1, 2]', '--out', 'out']) == 0\n"
        "print('heavy:', sorted({'torch', 'lightning', 'transformers', 'torchmetrics'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert len(list(Path("out/diffs").iterdir())) == 4
    assert len(list(Path("out/answers").iterdir())) == 4


def test_a_report_on_many_questions_takes_seconds(tmp_path, finish, answer):
    generator = random.Random(0)
    for arm in range(9):
        for seed in range(3):
            run = finish(tmp_path / f"arm{arm}" / str(seed), f"arm{arm}", seed)
            answer(run, "digits", [float(generator.random() < 0.5 + arm / 50) for _ in range(1000)])
    start = time.process_time()
    report([tmp_path], tmp_path / "out", baseline="arm0")
    assert time.process_time() - start < 10  # 5,000 questions of each take about twice as long
    assert len(list((tmp_path / "out/diffs").iterdir())) == 8


def test_a_single_run_outside_a_sweep_gets_a_page_too(tmp_path, finish):
    folder = finish(tmp_path / "only", None, 3, 0.5)
    made = report([folder], tmp_path / "out")
    assert [(row.label, row.spread) for row in made.table] == [("only", None)]
    text = read(tmp_path / "out").text
    assert "1 arm, 1 run each" in text
    assert "Every row is a single run" in text
    assert f"dslight fit {folder}/recipe.yaml" in text


def test_a_run_that_recorded_next_to_nothing_gets_a_page_too(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/result.json").write_text('{"name": "bare"}')
    made = report([tmp_path / "run"], tmp_path / "out")
    assert made.table[0].label == "bare"
    text = read(tmp_path / "out").text
    assert "bare" in text
    assert "not recorded" in text
    assert "Learning curves" not in text


def test_runs_of_different_metrics_share_a_page_but_no_axis(tmp_path, finish):
    for arm, headline in (("a", None), ("b", None), ("c", "val/docs/anls")):
        finish(tmp_path / arm, arm, 0, 0.6, **({"headline": headline} if headline else {}))
    report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "Rows judged by another metric than val/digits/vqa_accuracy are left out." in html
    bars = html[html.index("<svg") : html.index("</svg>")]
    assert re.findall(r">([abc])</text>", bars) == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"titel": "x"}, "report.titel: there is no such argument; did you mean title"),
        ({"claims": [{"say": "x", "arm": "lwo", "at_least": 1}]}, "report.claims.0.arm: there is no arm 'lwo'"),
        (
            {"claims": [{"say": "x", "arm": "low", "at_least": 1, "score": "val/digits/f1"}]},
            "report.claims.0.score: no finished run has 'val/digits/f1'; did you mean val/digits/exact_match",
        ),
    ],
)
def test_a_bad_setting_is_refused(ablation, settings, message):
    with pytest.raises(RecipeError, match=message):
        report(ablation, Path("out"), settings=settings)
    assert not Path("out").exists()


def test_a_baseline_that_no_folder_is_of_is_refused(tmp_path, finish):
    for arm in ("low", "high"):
        finish(tmp_path / arm, arm, 0, 0.6)
    with pytest.raises(RecipeError, match="--baseline: there is no finished run of 'lo'; there are high, low"):
        report([tmp_path], tmp_path / "out", baseline="lo")


def test_without_a_finished_run_there_is_no_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("effect.yaml").write_text(ABLATION)
    with pytest.raises(RecipeError, match="no finished run to report on\n  runs/effect/low/seed=0: not started"):
        report(expand("effect.yaml"), Path("out"))
    assert not Path("out").exists()


def test_the_ablation_file_will_do_and_the_page_lies_with_its_runs(ablation):
    Path("again.yaml").write_text("bases: [effect.yaml]\nb: [1, 2]\n")
    made = report(["again.yaml"], baseline="low-repeated")
    assert [str(file) for file in made.files][-1] == "runs/effect/report.html"
    assert "Δ to low-repeated" in made.markdown
    assert [str(file) for file in report(["runs/effect"]).files][-1] == "runs/effect/report.html"
    assert str(report(["runs/effect/low", "runs/effect/all-tokens"]).files[-1]) == "report/report.html"


def test_prose_is_markdown_in_which_html_is_shown_as_it_stands():
    html = prose("# Head & *co*\n\nsecond `a*b*c` line:\n- **two** <script>\n\n| a | b |\n| - | - |\n| 1 | 2 |\n")
    assert "<h1>Head &amp; <em>co</em></h1>" in html
    assert "<code>a*b*c</code> line:" in html
    assert "<li><strong>two</strong> &lt;script&gt;" in html
    assert "<td>2</td>" in html
    assert "javascript:" not in prose("[x](javascript:alert(1))").replace("[x](javascript:alert(1))", "")
