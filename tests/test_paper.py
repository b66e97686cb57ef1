"""The paper's tables as recipes: every row is planned by the real command line and compared with what the paper prints.

``golden/paper_tables.yaml`` is the paper, typed; nothing in it comes from this code.
"""

import inspect
import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import yaml

from dslight.cli import main
from dslight.recipe.ablation import expand
from dslight.recipe.compose import compose
from dslight.run.plan import plan
from dslight.train.optim import Stage

ROOT = Path(__file__).parent.parent / "recipes" / "paper"
PAPER = yaml.load((Path(__file__).parent / "golden" / "paper_tables.yaml").read_text(), yaml.BaseLoader)
HYPER_PARAMETERS, MISPRINTS = PAPER.pop("table10"), PAPER.pop("misprints")
ROWS = [f"{table}/{row}" for table, content in PAPER.items() for row in content["rows"]]
ALIGN = [str(path.relative_to(ROOT).with_suffix("")) for path in sorted(ROOT.glob("align/*.yaml"))]
FIGURES = ["figure3/interval", "figure3/layers", "figure3/start"]
ABLATION = ["GQA", "POPE", "SEED", "TextVQA", "DocVQA", "ChartQA", "InfoVQA"]
DESCRIPTION = ["LLM", "Eff.Res", "Vis.Tok", "Cxt.Len", "PT", "SFT", "N layers", "FT Enc", "Consistent", "Sampling"]
DESCRIPTION += ["Stack tok", "N tok", "Eff.tok"]
"""Columns that say what was trained; the others are scores."""
NEWLINES = {"llava_next": 48, "deepstack_l_hd": 48}
"""One newline token behind each of the 2 x 24 rows of the crops' mosaic. The paper's Cxt.Len does not count them."""
PARAMETERS = {
    "Vicuna-7B": 6_738_415_616,  # as the safetensors index of lmsys/vicuna-7b-v1.5 counts (in float16, 13.48 GB)
    "Vicuna-13B": 13_015_864_320,
    "Phi-3": 3_821_079_552,  # microsoft/Phi-3-mini-4k-instruct
    "CLIP-L/336": 303_507_456,  # openai/clip-vit-large-patch14-336's vision model
}
SAMPLERS = {"2d Spatial": "2d", "2d Grid": "block", "1d Sequential": "1d"}
DATA = {
    "558K": "data/llava_pretrain_558k",
    "665K": "data/llava_mix_665k",
    "748K": "data/deepstack_mix_748k",
    "765K": "data/deepstack_mix_748k",  # LLaVA-NeXT's own is not public
}
BENCHMARK = {"SEED": "seed", "NextQA Acc": "nextqa"}
NOT_SCORED = {"MM-Vet", "MultiDocVQA", "AVG", "MSVD Acc", "MSVD Score", "ActivityNet Acc", "ActivityNet Score"}
NOT_SCORED |= {"NextQA Cas.", "NextQA Des.", "NextQA Tem."}  # parts of NextQA


def cells(row: str) -> dict[str, str]:
    """What the paper means: as printed, but for the misprints."""
    table, name = row.split("/")
    printed = dict(zip(PAPER[table]["columns"], PAPER[table]["rows"][name], strict=True))
    return printed | MISPRINTS.get(row, {})


def scores(row: str) -> dict[str, str]:
    return {column: cell for column, cell in cells(row).items() if column not in DESCRIPTION}


def model_of(row: str) -> str:
    return row.split("/")[1].removesuffix("_ft_encoder").removesuffix("_7b").removesuffix("_13b")


@cache
def recipe_of(name: str) -> dict[str, Any]:
    return compose(ROOT / f"{name}.yaml")


@pytest.fixture(scope="module")
def planned():
    """Plans as ``dslight plan FILE --no-cost --json`` prints them, by recipe; each is made once."""
    made: dict[str, Any] = {}

    def get(name: str, capsys) -> Any:
        if name not in made:
            assert main(["plan", str(ROOT / f"{name}.yaml"), "--no-cost", "--json"]) == 0
            made[name] = json.loads(capsys.readouterr().out)
        return made[name]

    return get


def test_every_file_is_a_row_of_the_paper_and_every_row_has_a_file():
    files = {str(path.relative_to(ROOT).with_suffix("")) for path in ROOT.rglob("*.yaml")}
    assert files == {*ROWS, *ALIGN, *FIGURES}
    assert (len(ROWS), len(ALIGN), len(FIGURES)) == (53, 4, 3)


@pytest.mark.parametrize("row", [row for row in ROWS if "AVG" in cells(row)])
def test_the_typed_scores_have_the_printed_mean(row):
    """The seven scores were typed; that their mean is the paper's own average says that they were typed rightly."""
    printed = cells(row)
    assert mean(float(printed[name]) for name in ABLATION) == pytest.approx(float(printed["AVG"]), abs=0.051)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_reads_as_many_tokens_as_the_paper_prints(row, planned, capsys):
    plan, printed = planned(row, capsys), cells(row)
    assert plan["newline_tokens"] == NEWLINES.get(model_of(row), 0)
    found = {
        "Eff.Res": plan["effective_resolution"][0],
        "Vis.Tok": plan["visual_tokens"],
        "Cxt.Len": plan["context_length"] - plan["newline_tokens"],
        "N tok": plan["context_length"],
        "Eff.tok": plan["visual_tokens"],
    }
    columns = [column for column in found if column in printed]
    assert {column: str(found[column]) for column in columns} == {column: printed[column] for column in columns}
    data = recipe_of(row)["data"]
    assert plan["context_length"] + 256 <= data["max_length"] <= 4096  # of Vicuna and Phi-3
    parameters = {part["name"]: part["parameters"] for part in plan["parts"]}
    assert parameters["language_model"] == PARAMETERS[printed.get("LLM", "Phi-3")]
    assert parameters["vision_encoder"] == PARAMETERS["CLIP-L/336"]


@pytest.mark.parametrize("row", ROWS)
def test_a_rows_stacks_enter_where_the_paper_says(row, planned, capsys):
    printed = cells(row)
    stacks = [(part, layer) for part, layer, what in planned(row, capsys)["placements"] if "stack" in what]
    first = {"DeepStack": 1, "Hi-Res": 1, "Dummy": 1}.get(printed.get("Stack tok", ""))
    if "deepstack_v" in row:
        start = int(printed.get("N layers", 20))
        assert stacks == [("vision_encoder", start + i) for i in range(4)]
    elif first or "deepstack" in row or printed.get("Sampling", "None") != "None":
        assert stacks == [("language_model", 1 + i) for i in range(4)]
    else:
        assert stacks == []


def trained_as(row: str) -> str:
    """The column of Table 10 that a row falls under."""
    if row.startswith("align/"):
        return "pt"
    if model_of(row) in NEWLINES:
        return "deepstack_hd"
    vit = row.endswith("_ft_encoder") or "deepstack_v" in row
    return "deepstack_v" if vit else "deepstack_l"


@pytest.mark.parametrize("row", [*ALIGN, *ROWS])
def test_a_row_trains_with_table_10s_hyper_parameters(row):
    kind = trained_as(row)
    printed = dict(zip(HYPER_PARAMETERS["columns"], HYPER_PARAMETERS["rows"][kind], strict=True))
    recipe = recipe_of(row)
    stage, data = recipe["stage"], recipe["data"]
    assert data["global_batch_size"] == int(printed["global batch"])
    assert recipe["trainer"]["max_epochs"] == int(printed["epochs"])
    assert (stage["schedule"], stage["warmup_ratio"]) == (printed["schedule"], float(printed["warm-up ratio"]))
    assert printed["optimizer"] == "AdamW"
    assert stage.get("optimizer", inspect.signature(Stage).parameters["optimizer"].default) is torch.optim.AdamW
    rates = {part: how["lr"] for part, how in stage["train"].items()}
    expected = dict.fromkeys(["projector"] if kind == "pt" else ["projector", "language_model"], float(printed["lr"]))
    if printed["backbone lr"] != "frozen":
        expected["vision_encoder"] = float(printed["backbone lr"])
    if kind == "deepstack_hd":
        expected["stacking"] = float(printed["lr"])  # the newline token
    assert rates == expected
    if "FT Enc" in (cells(row) if row in ROWS else {}):
        assert ("vision_encoder" in rates) == (cells(row)["FT Enc"] == "yes")


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_the_papers_views_data_and_benchmarks(row):
    recipe, printed = recipe_of(row), cells(row)
    arguments = recipe["model"]["stacking"]["init_args"]
    assert arguments["tap"] == -2
    views = recipe["data"]["views"]
    if printed.get("Consistent", "None") != "None":
        assert (views["init_args"].get("fit", "squash") == "squash") == (printed["Consistent"] == "yes")
        assert arguments["sampler"] == SAMPLERS[printed["Sampling"]]
    if row == "table6/dummy":
        assert (arguments["source"], views["class_path"]) == ("base", "dslight.data.images.SingleView")
    assert recipe["data"]["train"] == [DATA[printed.get("SFT", "748K" if model_of(row) in NEWLINES else "665K")]]
    scored = {BENCHMARK.get(column, column.lower()) for column in scores(row) if column not in NOT_SCORED}
    assert scored <= set(recipe["data"]["val"])
    weights = recipe["weights"]
    if model_of(row) == "deepstack_l_hd":
        assert weights == {"model": f"checkpoints/llava-v1.6-{printed['LLM'].lower()}"}
    else:  # stage 1, with the same projector
        (file,) = weights.values()
        aligned = recipe_of(file.removeprefix("runs/paper/").split("/weights/")[0])
        assert aligned["data"]["train"] == [DATA["558K"]]
        assert aligned["model"]["language_model"] == recipe["model"]["language_model"]
        assert aligned["model"]["projector"] == recipe["model"]["projector"]


def test_rows_with_the_same_scores_are_the_same_run():
    """The paper repeats its baselines from table to table; they need not be trained again."""
    runs = defaultdict(set)
    for row in ROWS:
        runs[cells(row).get("LLM"), tuple(scores(row).values())].add(recipe_of(row)["name"])
    repeated = {key: names for key, names in runs.items() if len(names) > 1}
    assert repeated == {}
    names = {name for names in runs.values() for name in names}
    assert len(names) == 10 + 2 + 8 + 4 + 1 + 3 + 1  # of Tables 1, 11 and 4 to 8


@pytest.mark.parametrize("row", ROWS)
def test_the_head_of_a_file_says_what_the_paper_reports(row):
    lines = (ROOT / f"{row}.yaml").read_text().splitlines()
    head = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    table, name = row.split("/")
    assert head.startswith(f"Table {table.removeprefix('table')}: ")
    printed = dict(zip(PAPER[table]["columns"], PAPER[table]["rows"][name], strict=True))
    shown = [column for column in printed if column in scores(row)]
    assert f"Reported: {', '.join(f'{column} {printed[column]}' for column in shown)}." in head
    for column in ("Eff.Res", "Vis.Tok", "Cxt.Len", "N tok", "Eff.tok"):
        if column in printed:
            right = cells(row)[column]
            assert f"{column} {right}" + (f" (printed {printed[column]})" if right != printed[column] else "") in head
    if model_of(row) in NEWLINES:
        assert "newline tokens" in head


@pytest.mark.parametrize("name", ALIGN)
def test_stage_one_can_be_planned(name, planned, capsys):
    plan = planned(name, capsys)
    assert plan["context_length"] == 576
    assert [part["name"] for part in plan["parts"] if part["trainable"]] == ["projector"]


@pytest.mark.parametrize(
    ("name", "arms"),
    [
        ("start", {f"layer_{n}": [n] for n in (0, 2, 4, 8, 12, 16, 20, 24, 28)}),
        ("interval", {"none": []} | {f"interval_{n}": [1, 1 + n, 1 + 2 * n, 1 + 3 * n] for n in range(1, 6)}),
        ("layers", {"none": []} | {f"layers_{n}": list(range(1, n + 1)) for n in (2, 3, 4, 6, 9)}),
    ],
)
def test_the_arms_of_figure_3_differ_in_their_sites(name, arms, capsys):
    file = ROOT / "figure3" / f"{name}.yaml"
    assert main(["sweep", str(file), "--list"]) == 0
    listed = capsys.readouterr().out
    runs = expand(file).runs
    assert [run.arm for run in runs] == list(arms)
    for run in runs:
        assert str(run.run_dir) in listed
        made = plan(run.recipe, cost=False)
        assert [layer for _, layer, what in made.placements if "stack" in what] == arms[run.arm]
        assert made.context_length == 576
    if name == "start":
        assert {run.recipe["model"]["stacking"]["init_args"]["base"] for run in runs} == {"zero"}
