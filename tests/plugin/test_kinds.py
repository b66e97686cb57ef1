"""Whatever a recipe names may be a stranger's: each kind goes through the command line and comes back from its run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from said import messages
from stranger import kinds
from stranger.encoder import Dinov2Encoder

import dslight
from dslight.cli import main
from dslight.recipe.compose import compose
from dslight.testing import TemplateContract, ViewPolicyContract

HERE = Path(__file__).parent
KINDS = "stranger.kinds"
TEMPLATE = {f"{KINDS}.Dialogue": {"word": " Q :"}}
EVERYTHING: dict[str, Any] = {
    "diagnostics": {"heat_maps": 1},
    "model": {f"{KINDS}.ScaledVLM": {"scale": 3.0}},
    "data": {
        f"{KINDS}.ShortData": {
            "shorter": 7,
            "template": TEMPLATE,
            "views": {f"{KINDS}.Above": {"rows": 2}},
            "val": {"pages": {"metric": {f"{KINDS}.Lenient": {}}, "max_new_tokens": 3}},
        }
    },
    "stage": {
        "schedule": {f"{KINDS}.halving": {"every": 1}},
        "optimizer": {f"{KINDS}.PlainSGD": {"momentum": 0.5}},
    },
}
"""The plugin's recipe with everything but the parts named anew, each short, as a layer over it."""


class TestDialogue(TemplateContract):
    def make(self) -> dslight.Template:
        return kinds.Dialogue()


class TestAbove(ViewPolicyContract):
    def make(self) -> dslight.ViewPolicy:
        return kinds.Above()


@pytest.fixture
def folder(pages, tmp_path, monkeypatch) -> Path:
    (tmp_path / "data").symlink_to(pages)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refusal(folder, capsys) -> Callable[[dict[str, Any]], str]:
    """What ``dslight plan`` says against the plugin's recipe under these values."""

    def run(values: dict[str, Any]) -> str:
        assert main(["plan", written(folder, values), "--no-cost"]) == 1
        return messages(capsys.readouterr().err).removeprefix("dslight: ").strip()

    return run


def written(folder: Path, values: dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"bases": [str(HERE / "recipe.yaml")], "run_dir": "runs/mine", **values}))
    return str(path)


def test_a_run_of_strangers_classes_alone_trains_scores_and_loads(folder):
    assert main(["fit", written(folder, EVERYTHING)]) == 0
    result = json.loads((folder / "runs/mine/result.json").read_text())
    assert "val/pages/exact_match" in result["scores"]
    made = compose(folder / "runs/mine/recipe.yaml")
    assert made["model"]["class_path"] == f"{KINDS}.ScaledVLM"
    assert made["model"]["stacking"]["init_args"]["crops"] == 4  # of the recipe below
    assert made["stage"]["schedule"] == {"name": f"{KINDS}.halving", "every": 1}
    model = dslight.load("runs/mine")
    assert (type(model), model.scale) == (kinds.ScaledVLM, 3.0)
    rows = model.processor.rows
    assert (type(rows.template), rows.template.word, type(rows.views)) == (kinds.Dialogue, " Q :", kinds.Above)
    assert model.processor.max_length == 2048 - 7
    assert main(["fit", written(folder, EVERYTHING), "data.shorter=8"]) == 1  # another run than the folder's
    assert main(["validate", written(folder, EVERYTHING)]) == 0


def test_the_same_in_python_is_the_same_recipe(folder):
    said = compose(written(folder, EVERYTHING))
    decoder = said["model"]["language_model"]["init_args"]
    model = kinds.ScaledVLM(
        vision_encoder=Dinov2Encoder(image_size=16, patch_size=4, hidden_size=32, depth=3, heads=2),
        projector=dslight.MLPProjector,
        stacking=dslight.DeepStackL(crops=4, start=0, tap=-2),
        language_model=dslight.HFCausalLM(**decoder),
        scale=3.0,
    )
    data = kinds.ShortData(shorter=7, train=["data/train"], template=kinds.Dialogue(" Q :"), views=kinds.Above(2))
    learns = dslight.PartTraining(1e-2)
    stage = dslight.Stage({"projector": learns}, optimizer=kinds.PlainSGD, schedule=kinds.halving)
    quick = {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False}
    run = dslight.fit(model, data, stage, quick, "runs/python")
    made = compose(run.path / "recipe.yaml")
    assert made["model"] == said["model"]
    for key in ("class_path", "shorter", "template", "views"):
        assert made["data"][key] == said["data"][key], key
    assert made["stage"]["schedule"] == f"{KINDS}.halving"
    assert made["stage"]["optimizer"]["class_path"] == f"{KINDS}.PlainSGD"
    assert type(dslight.load(run.path).processor.rows.template) is kinds.Dialogue


def test_a_data_module_of_lightning_trains_under_a_recipe(folder):
    own = {f"{KINDS}.OwnData": {"root": "./data/train"}}
    text = yaml.safe_load((HERE / "recipe.yaml").read_text()) | {"data": own, "run_dir": "runs/own"}
    (folder / "own.yaml").write_text(yaml.safe_dump(text))
    assert main(["plan", "own.yaml", "--no-cost"]) == 0
    assert main(["fit", "own.yaml"]) == 0
    assert json.loads((folder / "runs/own/result.json").read_text())["steps"] == 2
    assert dslight.load("runs/own").answer("A1", max_new_tokens=2) is not None


WRONG = {
    "model.scal": ({"model": {f"{KINDS}.ScaledVLM": {"scal": 2.0}}}, "did you mean scale?"),
    "data.shortr": ({"data": {f"{KINDS}.ShortData": {"shortr": 2}}}, "did you mean shorter?"),
    "data.train": ({"data": {f"{KINDS}.OwnData": {"root": "x"}}}, "it takes root; where it comes from a recipe under"),
    f"model.{KINDS}.Dialogue": ({"model": {f"{KINDS}.Dialogue": {}}}, "no subclass of dslight.vlm.VLM"),
    "data.template.Dialogue": ({"data": {"template": "Dialogue"}}, "named with its package: my_package.Dialogue"),
    "model.stacking.init_args.position": (
        {"model": {"stacking": {"init_args": {"position": None}}}},
        "expected a number, got null; its default is 0.0",
    ),
    "data.template": ({"data": {"template": {f"{KINDS}.PlainSGD": {}}}}, "is no Template"),
    f"data.template.{KINDS}.Dialogue.words": (
        {"data": {"template": {f"{KINDS}.Dialogue": {"words": ""}}}},
        "no such argument; did you mean word?",
    ),
    f"data.{KINDS}.ScaledVLM": ({"data": {f"{KINDS}.ScaledVLM": {}}}, "no subclass of lightning.LightningDataModule"),
    f"model.{KINDS}.PlainSGD": ({"model": {f"{KINDS}.PlainSGD": {}}}, "no subclass of dslight.vlm.VLM"),
    f"model.{KINDS}.Scaled": ({"model": {f"{KINDS}.Scaled": {}}}, "did you mean ScaledVLM?"),
    "model.scale": ({"model": {f"{KINDS}.ScaledVLM": {"scale": "much"}}}, "expected a number, got 'much'"),
    "model.stacking.init_args.crop": (
        {"model": {f"{KINDS}.ScaledVLM": {"stacking": {"init_args": {"crop": 4}}}}},
        "did you mean crops?",
    ),
    "stage.schedule": (
        {"stage": {"schedule": {"torch.optim.lr_scheduler.StepLR": {"step_size": 3}}}},
        "make a torch.optim.lr_scheduler.LambdaLR",
    ),
    "stage.schedule.evry": ({"stage": {"schedule": {f"{KINDS}.halving": {"evry": 1}}}}, "halving takes every"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_class_that_does_not_belong_there_is_refused_by_its_key(key, refusal):
    values, why = WRONG[key]
    said = refusal(values)
    assert said.startswith(f"{key}")
    assert why in said
    assert "\n" not in said
