"""What is written can be opened: in a browser, in a spreadsheet, in a viewer of markdown, on a terminal."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from runs import DIAGNOSED, LINE, OTHER, RESULT, lines, run
from said import messages

from data_prep.inspect import main as inspect
from data_prep.llava import main as llava
from dslight.cli import main
from dslight.errors import UserError
from dslight.files.sheets import cell
from dslight.recipe.compose import compose, to_yaml
from dslight.run.folder import RunFolder
from dslight.texts import LONGEST, inert, printable

OPEN = "what is written is safe to open"
EVIL = "<img src=x onerror=alert(1)><script>alert(1)</script> ![x](http://example.org/x.png) \x1b[31m\u202e\x00|=1+1"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class Loaded(html.parser.HTMLParser):
    """What a browser would run or load: (tag, attribute, value)."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "base"):
            self.found.append((tag, "", ""))
        for name, value in attrs:
            own = (value or "").startswith(("data:image/", "#"))
            local = name in ("href", "xlink:href") and not re.match(r"\s*[a-z]+:", value or "", re.IGNORECASE)
            if name.startswith("on") or (
                name in ("src", "srcset", "href", "xlink:href", "action") and not own and not local
            ):
                self.found.append((tag, name, value or ""))


def loaded(page: str) -> list[tuple[str, str, str]]:
    """What a page fetches by itself, or runs; a link to the web is neither."""
    links = ("a", "href", "http")
    found = [one for one in Loaded(page).found if not one[2].startswith("http://www.w3.org/")]
    return [one for one in found if (*one[:2], one[2][:4]) != links]


@pytest.fixture
def reported(tmp_path) -> Path:
    """The report of runs in which every text is evil."""
    for number, arm in enumerate([f"{EVIL} a", f"{EVIL} b"]):
        line = LINE | dict.fromkeys(("type", "question", "prompt", "prediction"), EVIL) | {"references": [EVIL]}
        result = RESULT | {"versions": {EVIL: EVIL}, "git_commit": EVIL}
        result["scores"] = {**RESULT["scores"], f"val/{EVIL}/x": 0.5, "=1+1": 0.5}
        way = [{"name": "all", "title": EVIL}]
        found = DIAGNOSED | {"comparisons": {"digits": way}, "heat_maps": [{"file": None, "note": EVIL}]}
        run(
            tmp_path / "runs" / str(number),
            arm,
            **{
                "questions/digits.jsonl": lines(line, OTHER),
                "result.json": json.dumps(result),
                "diagnostics.json": json.dumps(found),
                "run.json": json.dumps({"arm": arm, "point": {"seed": 0, "=x": EVIL, "@y": number}}),
                "metrics.csv": f'step,"{EVIL}"\n1,2\n2,3\n'.replace("\x00", ""),
            },
        )
    run(tmp_path / "runs" / "bad", **{"result.json": json.dumps(RESULT | {"seed": EVIL})})
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    return tmp_path / "out"


@pytest.mark.promise(
    OPEN, "a report of runs with HTML, pictures from elsewhere, formulas and control characters in every text"
)
def test_reports(reported, capsys):
    said = capsys.readouterr()
    for file in filter(Path.is_file, reported.rglob("*")):
        text = file.read_text()
        assert not CONTROL.search(text), file
        if file.suffix == ".html":
            assert loaded(text) == [], file
            assert "&lt;img" in text, file
        if file.suffix == ".md":
            assert loaded(MarkdownIt("commonmark", {"html": True}).enable("table").render(text)) == []
        if file.suffix == ".csv":
            cells = [one for row in csv.reader(io.StringIO(text)) for one in row]
            assert [one for one in cells if one.startswith(tuple("=+@\t\r"))] == []
    assert {file.suffix for file in reported.iterdir() if file.is_file()} == {".html", ".md", ".csv", ".tex"}
    assert not CONTROL.search(said.out + said.err)


@pytest.mark.promise(OPEN, "a cell that is")
@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1+1", "=cmd|' /C calc'!A0"], ids=repr
)
def test_cells_of_sheets(text):
    assert cell(text) == f"'{text}"


@pytest.mark.promise(OPEN, "cells that are numbers, or plain texts: they stay what they are")
def test_cells_that_stay():
    for value in (-1.5, 3, None, True, "-1.5", "+3e-4", "-inf", "a=b", "", "low-repeated"):
        assert cell(value) is value


@pytest.mark.promise(OPEN, "markdown with HTML and pictures; code stays as it is")
def test_inert_markdown():
    text = f"# <b>x</b> {EVIL}\n\n```\na <b> ![c](d)\n```\n\n1 < 2 <3 <!-- --> <?php </b>\n"
    assert loaded(MarkdownIt("commonmark", {"html": True}).render(inert(text))) == []
    assert "a <b> ![c](d)" in inert(text)
    assert "1 < 2 <3 " in inert(text)


@pytest.mark.promise(OPEN, "an error whose message holds control characters, and a megabyte")
def test_messages(outcome):
    said = str(UserError(f"{EVIL}{'x' * (1 << 20)}\n\x1b]0;title\x07 and \ud800"))
    assert not CONTROL.search(said)
    assert max(map(len, said.splitlines())) <= LONGEST
    said.encode()
    outcome(printable(said[:80]))


@pytest.mark.promise(OPEN, "control characters in an override, and in the name of a file, on the terminal")
@pytest.mark.parametrize("verb", ["plan", "fit", "validate", "export", "report", "sweep"])
def test_command_lines(verb, capsys, outcome):
    evil = f"{EVIL} gone".replace("\x00", "")
    assert main([verb, evil, *(["out"] if verb == "export" else [])]) == 1
    said = capsys.readouterr()
    assert not CONTROL.search(said.out + said.err)
    outcome(messages(said.err).strip())


@pytest.mark.promise(OPEN, "a log of a training whose columns and cells are formulas")
def test_logs(tmp_path):
    folder = tmp_path / "logs" / "attempt-0"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,train/loss,=1+1\n1,0.5,=2+2\n2,-0.5,-1e-3\n")
    RunFolder(tmp_path).join_logs()
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss,'=1+1\n1,0.5,'=2+2\n2,-0.5,-1e-3\n"


@pytest.mark.promise(OPEN, "the card of a model whose recipe, and whose scores, are called by HTML")
def test_model_cards(recipe, tmp_path):
    values: Any = compose(recipe)
    values["name"] = f"{EVIL}\n\n---\n# other".replace("\x00", "")
    values["trainer"]["max_steps"] = 1
    (tmp_path / "recipe.yaml").write_text(to_yaml(values))
    assert main(["fit", str(tmp_path / "recipe.yaml"), f"run_dir={tmp_path / 'run'}"]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    result["scores"] |= {f"{EVIL}": 0.5, "a|b": 1.0, "none": None}
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert not CONTROL.search(card)
    assert loaded(MarkdownIt("commonmark", {"html": True}).enable("table").render(card.partition("\n---\n")[2])) == []
    assert "\n# other" not in card
    assert "| a\\|b | 1.0000 |" in card


def entries(folder: Path) -> Path:
    """LLaVA's, with a good one and evil ones."""
    text = "<script>alert(1)</script><b onclick=alert(1)>x</b> \x1b[31m\u202e\x00|=1+1"  # pictures would be missed
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": text}]
    found = [{"id": EVIL, "conversations": turns, "\x1b[31m": "a"}, {"id": 2, "image": EVIL, "conversations": turns}]
    (folder / "data.json").write_text(json.dumps(found))
    return folder / "data.json"


@pytest.mark.promise(OPEN, "a conversion of entries with control characters in keys and values")
def test_conversions(tmp_path, capsys):
    out = tmp_path / "shards"
    llava(["--json", str(entries(tmp_path)), "--out", str(out), "--workers", "1", "--max-bad", "0.5"])
    said = capsys.readouterr()
    assert "keys that were not read" in said.out
    assert not CONTROL.search(said.out)
    inspect([str(out), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert not CONTROL.search(page)
    assert loaded(page) == []
    assert "&lt;script" in page


@pytest.mark.promise("a report shows no files but those of its runs", "a heat map that is called")
@pytest.mark.parametrize("name", ["../../../secret.png", "{secret}", "link.png"])
def test_pictures_of_a_report_lie_in_its_runs(name, tmp_path, outcome):
    picture = io.BytesIO()
    Image.new("RGB", (3, 3)).save(picture, "PNG")
    (tmp_path / "secret.png").write_bytes(picture.getvalue())
    maps = [{"file": name.format(secret=tmp_path / "secret.png"), "question": "?", "answer": "3"}]
    run(tmp_path / "runs" / "good", "good")
    bad = run(tmp_path / "runs" / "bad", "bad", **{"diagnostics.json": json.dumps(DIAGNOSED | {"heat_maps": maps})})
    (bad / "diagnostics" / "link.png").symlink_to(tmp_path / "secret.png")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    (named,) = [
        line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if line.startswith(f"- {bad}")
    ]
    assert "diagnostics.json: heat_maps: the name of a picture is " in named
    outcome(named.removeprefix(f"- {bad}"))
