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
  compare: [[deepstack-l, low-repeated]]
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
    assert made.markdown in capsys.readouterr().out
    assert made.markdown == Path("out/table.md").read_text()
    assert len(Path("out/table.csv").read_text().splitlines()) == 9
    text = read("out").text
    for words in (
        "Tokens & <stacks>",
        "4 arms, 2 runs each",
        "A toy It shows the mechanism",
        "SVM svm.json: high.accuracy 91.6",
        "gone there is no no.json –",
        "deepstack-l − low-repeated",
        "dslight sweep effect.yaml 'b=[1, 2]'",
        "0123456789abcdef",
        "2.15.0",
        "Learning curves",
    ):
        assert words in text
    assert "Not in this report" not in text
    assert Path("out/report.html").read_text().count("<svg") == 4


def test_missing_runs_are_listed(ablation):
    shutil.rmtree(ablation.runs[7].run_dir)
    (ablation.runs[5].run_dir / "result.json").unlink()
    made = report(ablation, Path("out"))
    assert len(made.results) == 6
    assert "4 arms, 1 or 2 runs each" in read("out").text
    for text in (read("out").text, made.markdown):
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
    assert "question by question: 4 pages in out/diffs" in capsys.readouterr().out
    assert [row.mark for row in made.table] == ["", "", "‡", "‡"]
    page = read("out")
    # three arms next to the baseline, and a pair of the ablation's own
    assert len(page.leads) == 4
    assert len(set(page.leads)) == 4
    for address in page.leads:
        diff = read("out", address)
        assert diff.leads == ["../report.html"]
        assert "both right" in diff.text
    for text in (page.text, made.markdown):
        for words in ("mean score [95 %]", "‡: also when other seeds", "Two seeds say very little", "+41.7‡"):
            assert words in text
    assert "Benchmarks" not in page.text  # there is only one, which the first table has
    assert Path("out/table.tex").read_text().count(" \\\\\n") == 5
    assert len(Path("out/benchmarks.csv").read_text().splitlines()) == 5


def test_pairs_of_arms_that_the_ablation_asks_for_get_intervals_and_a_page(answered):
    report(answered, Path("out"))
    text = read("out").text
    pair = text[text.index("Differences, seed by seed") :]
    assert "deepstack-l − low-repeated" in pair
    assert re.search(r"\+40.0 2 seed 0: \+40.0, seed 1: \+40.0 \+40.0 \[\+2\d.\d, \+5\d.\d\] <0.001", pair)
    diff = read("out", "diffs/deepstack_l-low_repeated-digits.html").text
    assert "deepstack-l is better: 25 questions" in diff
    assert "low-repeated is better: 0 questions" in diff


def test_the_pages_of_questions_can_be_shorter_or_left_out(answered):
    report(answered, Path("out"), settings={"baseline": "low", "diffs": 5})
    assert "The 5 with the largest difference are shown" in read("out", "diffs/deepstack_l-low-digits.html").text
    report(answered, Path("none"), settings={"baseline": "low", "diffs": 0})
    assert not Path("none/diffs").exists()
    assert read("none").leads == []
    assert "mean score [95 %]" in read("none").text
    with pytest.raises(RecipeError, match=r"report.diffs: 'all' must be a number of questions, 0 for no pages"):
        report(answered, Path("out"), settings={"diffs": "all"})


def test_several_benchmarks_stand_side_by_side(answered, answer):
    for run in answered.runs:
        answer(run.run_dir, "docvqa", [float(i % 3 == 0) for i in range(30)])
    made = report(answered, Path("out"))
    page = read("out")
    assert "In parentheses: the difference to the baseline." in page.text
    assert len(page.leads) == 7  # two benchmarks of three arms, and the pair
    assert re.search(r"\| Method +\| Vis. tok. \| Cxt. len. \| +digits \| +DocVQA \|", made.markdown)
    assert made.markdown.count(" 33.3 (+0.0) ") == 3  # all alike, so none is the best


def test_a_report_with_pages_needs_no_torch(answered):
    program = (
        "import sys; from dslight.cli import main\n"
        "assert main(['report', 'effect.yaml', 'b=[1, 2]', '--out', 'out']) == 0\n"
        "print('heavy:', sorted({'torch', 'lightning', 'transformers', 'torchmetrics'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"
    assert len(list(Path("out/diffs").iterdir())) == 4


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
    assert "Every bar is a single run." in text
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
        ({"titel": "x"}, "report.titel: no such setting; there are title, baseline, text, compare, references, diffs"),
        ({"compare": [["low"]]}, r"report.compare: \['low'\] must be a pair of arms"),
        ({"compare": [["low", "lwo"]]}, "report.compare: there is no arm 'lwo'; there are low, low-repeated"),
        ({"baseline": "lo"}, "report.baseline: there is no arm 'lo'"),
        ({"references": [{"label": "SVM"}]}, "report.references: .* must have a label and a value"),
    ],
)
def test_a_bad_setting_is_refused(ablation, settings, message):
    with pytest.raises(RecipeError, match=message):
        report(ablation, Path("out"), settings=settings)


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


def test_prose_becomes_html_and_everything_else_is_escaped():
    html = prose(
        "# Head & *co*\nFirst line\nsecond `a*b*c` line:\n- one\n  more\n- **two** <script>\n\nLast 2 * 3 * 4."
    )
    assert html.split("\n") == [
        "<h3>Head &amp; <em>co</em></h3>",
        "<p>First line second <code>a*b*c</code> line:</p>",
        "<ul><li>one more</li><li><strong>two</strong> &lt;script&gt;</li></ul>",
        "<p>Last 2 * 3 * 4.</p>",
    ]
