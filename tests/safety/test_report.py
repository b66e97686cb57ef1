"""A report survives what it finds in run folders; one bad run is named, and left out."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from broken import broken
from runs import DIAGNOSED, HEADLINE, LINE, OTHER, RESULT, SCORED, lines, run
from said import messages

from dslight.cli import main
from dslight.recipe.ablation import expand
from dslight.recipe.compose import recipe_hash, to_yaml
from dslight.report.runs import collect

SURVIVES = "a report survives what it finds, and names what it leaves out"
NAMES = "names of runs and pages are short, and each is another one"

DOCUMENTS = {
    "result.json": (RESULT, "{}"),
    "run.json": ({"arm": "low", "index": 0, "point": {"seed": 0, "lr": 0.1}}, "{}"),
    "environment.json": ({"versions": {"torch": "2.14"}, "git_commit": "012345"}, "{}"),
    "scores.json": ({"checkpoint": "a", "scores": {HEADLINE: 0.5}, "sources": {"digits": {"questions": 2}}}, "{}"),
    "diagnostics.json": (DIAGNOSED, "{}"),
    "diagnostics/questions.jsonl": (SCORED, "{}\n"),
    "questions/digits.jsonl": (LINE, lines(OTHER)[:-1] + "\n{}\n"),
}


@pytest.mark.promise(SURVIVES, "each value of a file replaced by one of another kind, in turn")
@pytest.mark.parametrize("file", DOCUMENTS)
def test_one_bad_run_is_named_and_left_out(file, tmp_path, capsys, outcome):
    document, around = DOCUMENTS[file]
    run(tmp_path / "good", "good")
    for number, (_, _, text) in enumerate(broken(document)):
        run(tmp_path / str(number), f"odd-{number}", **{file: around.replace("{}", text)})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = (tmp_path / "out" / "table.md").read_text()
    assert re.search(r"^\| good +\|", said, re.MULTILINE)
    named = [line for line in said.splitlines() if line.startswith(f"- {tmp_path}")]
    with (tmp_path / "out" / "table.csv").open(newline="") as table:
        kept = {Path(row["path"]).name for row in csv.DictReader(table)}
    left_out = {Path(line[2:].partition(": ")[0]).relative_to(tmp_path).parts[0] for line in named}
    assert named, "nothing was refused"
    assert kept | left_out == {path.name for path in tmp_path.iterdir()} - {"out"}
    assert not kept & left_out
    assert all(file.rpartition("/")[2] in line and len(line) < 500 for line in named)
    outcome(named[0].removeprefix(f"- {tmp_path}"))


@pytest.mark.promise(SURVIVES, "a file that is")
@pytest.mark.parametrize("file", [*DOCUMENTS, "metrics.csv", "recipe.yaml"])
@pytest.mark.parametrize("text", ["", "\0" * 100, "\udcff\udcfe", '"', "{", "[1, 2]", "7"], ids=repr)
def test_a_damaged_file(file, text, tmp_path, capsys):
    run(tmp_path / "good", "good")
    bad = run(tmp_path / "bad", "bad", **{file: text})
    results, unfinished = collect([tmp_path])
    assert [result.arm for result in results if result.path != bad] == ["good"]
    if len(results) == 1:
        assert unfinished
        assert str(bad) in unfinished[0]
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0


CURVES = {
    "of words": "step,loss\na,b\n",
    "with cells that are missing, and more than there are names": "step,loss\n1\n2,0.1,3,4\n",
    "without a step": "loss\n1\n",
    "of infinite numbers": "step,loss,val/digits/vqa_accuracy\n1,nan,inf\n2,inf,-inf\n1e400,1,2\n",
    "that goes back": "step,loss\n-5,1e308\n-5,-1e308\n0,1e-320\n",
    "with one cell of a megabyte": "step,loss\n1," + "9" * (1 << 20) + "\n",
    "whose names are odd": 'step,"<b>$x^2$\n|",=1+1\n1,2,3\n2,3,4\n',
    "whose names are twice": "step,step,loss,loss\n1,2,3,4\n",
}


@pytest.mark.promise(SURVIVES, "a metrics.csv")
@pytest.mark.parametrize("name", CURVES)
def test_odd_curves(name, tmp_path, capsys):
    run(tmp_path / "good", "good")
    bad = run(tmp_path / "bad", "bad", **{"metrics.csv": CURVES[name]})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = (tmp_path / "out" / "table.md").read_text()
    assert re.search(r"^\| bad +\|", said, re.MULTILINE) or f"- {bad}/metrics.csv: " in said


@pytest.mark.promise("an impossible score is refused by name", "a question with the score")
@pytest.mark.parametrize("score", ["73.5", "-0.1", "NaN", "Infinity", "-Infinity", "1e999", "true", '"1"', "[1]"])
def test_questions_with_impossible_scores(score, tmp_path, capsys, outcome):
    run(tmp_path / "good", "good")
    text = lines(OTHER, LINE).replace('"score": 1.0', f'"score": {score}')
    bad = run(tmp_path / "bad", "bad", **{"questions/digits.jsonl": text})
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    said = (tmp_path / "out" / "table.md").read_text()
    (named,) = [line for line in said.splitlines() if str(bad) in line and line.startswith("- ")]
    assert f"{bad}/questions/digits.jsonl:2: score: must " in named
    assert not re.search(r"^\| bad +\|", said, re.MULTILINE)
    outcome(named.removeprefix(f"- {tmp_path}"))


ARMS = [
    "$x^2$ $", "<script>alert(1)</script>", "a|b", "a\nb", "a b", "a/b", "../../up", "..", ".", "-rf", "=1+1",
    "%s{}{{ 7 }}", "\x1b[31mred", "\u202eleft", "\u6f22\u5b57", "\u00e9" * 300, "x" * 5000, "\\alpha_1 & #", "CON",
    "NUL.txt", "Low", "LOW", "![x](http://example.org/x.png)", "[x](javascript:alert(1))", "\ud800", "", " ", "_",
    "\u2028", "'\"", "`code`",
]  # fmt: skip


@pytest.mark.promise(SURVIVES, "arms called by any character")
def test_arms_of_any_name(tmp_path, capsys):
    for number, arm in enumerate(ARMS):
        run(tmp_path / "runs" / str(number), arm)
    out = tmp_path / "deep" / "out"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "deep"}
    with (out / "table.csv").open(newline="") as table:
        assert len(list(csv.DictReader(table))) == len(ARMS) - 1
    assert "/run.json: not JSON" in (out / "table.md").read_text()  # half a character
    pages = [path.name for path in (out / "answers").iterdir()]
    assert len({name.casefold() for name in pages}) == len(pages) == len({arm or "low" for arm in ARMS} - {"\ud800"})
    assert max(len(name.encode()) for name in pages) <= 125


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.timeout(60)
@pytest.mark.promise(SURVIVES, "a pipe, or a folder, under the name of")
@pytest.mark.parametrize("file", [*DOCUMENTS, "metrics.csv", "recipe.yaml"])
@pytest.mark.parametrize("kind", [fifo, folder])
def test_what_is_no_file(kind, file, tmp_path, outcome):
    run(tmp_path / "good", "good")
    kind(run(tmp_path / "bad", "bad") / file)
    results, (named,) = collect([tmp_path])
    assert [result.arm for result in results] == ["good"]
    assert str(tmp_path / "bad" / file) in named
    outcome(named.removeprefix(f"{tmp_path}"))


@pytest.mark.promise(SURVIVES, "runs of one arm of which different things were measured, one of them impossible")
def test_runs_of_an_arm_that_were_measured_differently(tmp_path, capsys):
    many = {"parts": {"stacking": {"gate": 1.0}}, "norms": DIAGNOSED["norms"] * 2}
    found = [DIAGNOSED, {"stacks": [], "parts": {}, "comparisons": {}}, DIAGNOSED | many]
    found += [DIAGNOSED | {"norms": [DIAGNOSED["norms"][0] | {"relative": float("nan"), "cosine": float("inf")}]}]
    found += [DIAGNOSED | {"heat_maps": [{"file": "a.png"}]}]
    for number, (one, first) in enumerate((one, first) for first in range(len(found)) for one in found):
        result = RESULT | {"seed": number, "accuracy": 1e308, "step_seconds": 1e308, "steps": 1e300, "scores": None}
        files = {"diagnostics.json": json.dumps(one), "result.json": json.dumps(result)}
        place = run(tmp_path / "runs" / f"{first}-{(number + first) % len(found)}", f"arm-{first}", **files)
        (place / "diagnostics" / "a.png").write_bytes(b"none")
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert "Not in this report" not in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.promise("what the system refuses is a sentence", "a report into")
@pytest.mark.parametrize("out", ["file", "file/out", "x" * 300, "a\0b"], ids=lambda name: repr(name[:20]))
def test_places_that_are_none(out, tmp_path, capsys, outcome):
    (tmp_path / "file").write_text("somebody's")
    run(tmp_path / "runs" / "good", "good")
    assert main(["report", str(tmp_path / "runs"), "--out", f"{tmp_path}/{out}"]) == 1
    said = messages(capsys.readouterr().err)
    assert said.startswith("dslight: ")
    assert (tmp_path / "file").read_text() == "somebody's"
    outcome(said.strip().replace(str(tmp_path), ""))


@pytest.mark.promise(NAMES, "a grid over classes with many settings")
def test_a_grid_over_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [{"class_path": "dslight.components.DeepStackL", "init_args": {"crops": n, "x" * n: n}} for n in (4, 9)]
    settings += [{"class_path": "dslight.components.Plain", "init_args": {"name": "x" * 500}}]
    grid = {"model.stacking": settings, "model.projector": settings, "seed": [0, 1]}
    file = tmp_path / "classes.yaml"
    file.write_text(json.dumps({"name": "classes", "variants": {"one": {}, "two": {"x": 1}}, "grid": grid}))
    ablation = expand(file)
    for made in ablation.runs:
        result = json.dumps(RESULT | {"seed": made.recipe["seed"], "recipe_hash": recipe_hash(made.recipe)})
        about = json.dumps({"arm": made.arm, "index": made.index, "point": made.point})
        run(made.run_dir, **{"result.json": result, "run.json": about, "recipe.yaml": to_yaml(made.recipe)})
    folders = {str(made.run_dir).casefold() for made in ablation.runs}
    assert len(folders) == 2 * 3 * 3 * 2
    assert max(map(len, folders)) < 120
    assert main(["report", str(file), "--baseline", "one"]) == 0
    report = ablation.run_dir
    assert len(list((report / "answers").iterdir())) == 2 * 3 * 3
    for folder in ("answers", "diffs"):
        names = [path.name for path in (report / folder).iterdir()]
        assert max(map(len, names)) <= 125
        assert all(f"{folder}/{name}" in (report / "report.html").read_text() for name in names)
    said = (report / "table.md").read_text()
    assert max(map(len, said.splitlines())) < 1500
