"""What README and docs/ show is understood: every recipe, every file, every choice of a table."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml
from PIL import Image

from data_prep.llava import main as convert
from dslight.cli import main
from dslight.data.datamodule import ShardData
from dslight.data.shards import ShardReader
from dslight.recipe.ablation import expand
from dslight.recipe.build import check
from dslight.recipe.compose import Layer, compose, merge
from dslight.recipe.spelling import check_spelling
from dslight.testing import TemplateContract

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```yaml\n(.*?)```", re.S)
HERE = re.compile(r"cat > (\S+\.yaml) <<'EOF'\n(.*?)EOF\n", re.S)


def recipes() -> list[tuple[str, str]]:
    """(page and file, text) of every recipe on a page that is whole: it has a name and bases."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for block in [*BLOCK.findall(text), *(body for _, body in HERE.findall(text))]:
            if "bases:" in block and "name:" in block:
                found.append((f"{page.stem}-{re.search('name: (.*)', block)[1]}", block))
    return found


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in recipes()])
def test_a_recipe_on_a_page_is_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "my_package").mkdir()
    code = re.search(r"```python\n# my_package/encoder.py\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "my_package" / "encoder.py").write_text(code[1])
    own = re.search(r"```yaml\n# mine.yaml\n(.*?)```", (ROOT / "docs" / "own_data.md").read_text(), re.S)
    (tmp_path / "mine.yaml").write_text(own[1])
    (tmp_path / "page.yaml").write_text(text)
    made = [run.recipe for run in expand("page.yaml").runs] if "variants:" in text else [compose("page.yaml")]
    for recipe in made:
        check_spelling(recipe)
        check(recipe)


def test_the_classes_of_the_page_on_ones_own_classes_are_taken(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "own_parts.md").read_text()
    classes = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "test_mine" not in block]
    (tmp_path / "on_the_page.py").write_text("\n\n".join(classes))
    monkeypatch.syspath_prepend(str(tmp_path))
    whole = compose(ROOT / "recipes" / "quickstart" / "deepstack_l.yaml")
    recipe = {key: value for key, value in whole.items() if key != "weights"}
    own = "on_the_page"
    for base, values in (
        (recipe, {"model": {f"{own}.ScaledVLM": {"scale": 2.0}}}),
        (recipe, {"data": {"template": {f"{own}.Dialogue": {"word": ":"}}}}),
        (recipe | {"data": {}}, {"data": {f"{own}.OwnData": {"root": "data"}}}),
        (recipe, {"stage": {"schedule": {f"{own}.halving": {"every": 9}}}}),
        (recipe, yaml.safe_load(BLOCK.findall(page)[0])),
    ):
        made = merge(base, Layer("page", values).values)
        check_spelling(made)
        check(made)
    make = importlib.import_module(own).Dialogue
    contract = type("OfThePage", (TemplateContract,), {"make": lambda self: make()})()
    for clause in (name for name in dir(TemplateContract) if name.startswith("test_")):
        getattr(contract, clause)()


def test_the_way_from_your_own_files_to_a_scored_run_is_open(tmp_path):
    page = (ROOT / "docs" / "own_data.md").read_text()
    conversations, questions = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.S))
    for entry in (*conversations, *questions):
        Image.new("RGB", (40, 30), "red").save(tmp_path / entry["image"])
    for name, entries, records in (("mine", conversations, 1), ("questions", questions, 1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(entries))
        arguments = ["--json", str(tmp_path / f"{name}.json"), "--images", str(tmp_path), "--workers", "1"]
        convert([*arguments, "--out", str(tmp_path / "data" / name)])
        assert len(ShardReader(tmp_path / "data" / name)) == records

    rows = re.findall(r"^\| `(\{.*\})` \|", page, re.M)
    assert len(rows) == 12
    for row in rows:
        if "my_package" not in row:
            source = row.replace("..., ", "root: x, ")
            base = ROOT / "recipes" / "quickstart" / "low.yaml"
            (tmp_path / "row.yaml").write_text(f"bases: [{base}]\nname: row\ndata: {{val: {{own: {source}}}}}\n")
            data = check(compose(tmp_path / "row.yaml")).data
            assert isinstance(data, ShardData)
            assert "own" in data.val_sources


def test_the_recipe_for_your_own_data_runs_as_it_is_printed_in_an_empty_folder(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "own_data.md").read_text()
    monkeypatch.chdir(tmp_path)
    for name, block in zip(("train", "questions"), re.findall(r"```json\n(.*?)```", page, re.S), strict=True):
        Path(f"{name}.json").write_text(block)
        for entry in json.loads(block):
            Image.new("RGB", (40, 30), "red").save(entry["image"])
        convert(["--json", f"{name}.json", "--images", ".", "--workers", "1", "--out", f"data/{OUT[name]}"])
    for name, block in re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", page, re.S):
        Path(name).write_text(block)
    exec(Path("make_tokenizer.py").read_text(), {})
    assert main(["fit", "mine.yaml", "trainer.max_steps=2", "trainer.accelerator=cpu"]) == 0
    assert json.loads(Path("runs/mine/result.json").read_text())["headline"] == "val/questions/exact_match"
    assert main(["report", "runs/mine", "--out", "runs/mine/report"]) == 0
    assert main(["sweep", "my_ablation.yaml", "--list"]) == 0


OUT = {"train": "mine", "questions": "questions"}
NOTEBOOK = ROOT / "docs" / "first.ipynb"


def cells() -> list[dict[str, Any]]:
    """The notebook's cells of code."""
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_the_page_of_the_notebook_is_the_notebook_run_from_first_to_last():
    code = ["".join(cell["source"]) for cell in cells()]
    assert re.findall(r"```python\n(.*?)\n```", NOTEBOOK.with_suffix(".md").read_text(), re.S) == code
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(code) + 1))
    assert not any(output["output_type"] == "error" for cell in cells() for output in cell["outputs"])


@pytest.mark.slow
def test_the_notebook_says_today_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    said: dict[str, Any] = {}
    for cell in cells():
        exec("".join(cell["source"]), said)
    low, deepstack = (said["runs"][name].scores["val/pages/exact_match"] for name in ("low", "deepstack"))
    assert low < 0.25 < 0.7 < deepstack
