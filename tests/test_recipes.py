"""Every shipped recipe goes through the real command line: all are planned, those of the quickstart are trained.

Those of the paper are planned in ``test_paper``, which knows what they have to be.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dslight.cli import main
from dslight.recipe.ablation import expand
from dslight.recipe.build import check

ROOT = Path(__file__).parent.parent / "recipes"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))
PAPER = [name for name in FILES if name.startswith("paper/")]
"""Driven by ``test_paper``."""
PARTS = [name for name in FILES if name.startswith("parts/")]
"""Not recipes by themselves."""
ABLATIONS = [name for name in FILES if name.startswith("ablations/")]
ENCODERS = ["quickstart/encoder.yaml", "quickstart/encoder_low.yaml"]
ARMS = [name for name in FILES if name.startswith("quickstart/") and name not in ENCODERS]
VARIANTS = [name for name in FILES if name.startswith("variants/")]


def test_every_file_is_known_to_these_tests():
    """A new file changes these numbers: then see that it is planned (and trained, if it is tiny) below."""
    assert set(FILES) == {*PAPER, *PARTS, *ABLATIONS, *ENCODERS, *ARMS, *VARIANTS}
    assert (len(ABLATIONS), len(ENCODERS), len(ARMS), len(PAPER), len(VARIANTS)) == (3, 2, 7, 60, 0)


def test_every_part_is_used():
    used = {(path.parent / base).resolve() for path in ROOT.rglob("*.yaml") for base in bases(path)}
    assert [name for name in PARTS if (ROOT / name).resolve() not in used] == []


def bases(path: Path) -> list[str]:
    document = yaml.safe_load(path.read_text())
    variants = [variant for variant in document.get("variants", {}).values() if variant]
    return [base for node in [document, *variants] for base in node.get("bases", [])]


@pytest.mark.parametrize("name", [*ENCODERS, *ARMS])
def test_a_quickstart_recipe_can_be_planned(name, capsys):
    assert main(["plan", str(ROOT / name)]) == 0
    assert capsys.readouterr().out.startswith(name.removesuffix(".yaml") + "\n")


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_run_of_an_ablation_is_a_recipe(name, capsys):
    assert main(["sweep", str(ROOT / name), "--list"]) == 0
    listed = capsys.readouterr().out
    runs = expand(ROOT / name).runs
    assert len(runs) > 1
    for run in runs:
        assert run.arm in listed
        check(run.recipe)


@pytest.fixture(scope="module")
def trained(pages, tmp_path_factory) -> dict[str, list[str]]:
    """Recipe name -> the arguments that ``dslight fit`` was called with."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    calls: dict[str, list[str]] = {}
    short = ["trainer.max_steps=2", "data.global_batch_size=8", "data.val_batch_size=8", "trainer.accelerator=cpu"]
    quiet = ["trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"]
    data = [f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}"]
    for name in [*ENCODERS, *ARMS]:
        run = root / Path(name).stem
        calls[name] = [str(ROOT / name), *short, *quiet, *data, f"run_dir={run}"]
        if name in ARMS:
            encoder = root / ("encoder_low" if "own_encoder" in name else "encoder")
            weights = encoder / "weights" / "vision_encoder.safetensors"
            tokenizer = f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}"
            calls[name] += [f"weights.vision_encoder={weights}", tokenizer]
        assert main(["fit", *calls[name]]) == 0
    return calls


def _result(call: list[str]) -> tuple[Path, dict[str, Any]]:
    run = next(Path(text.removeprefix("run_dir=")) for text in call if text.startswith("run_dir="))
    return run, json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_the_quickstart_trains_and_is_scored_again(name, trained, capsys):
    run, result = _result(trained[name])
    assert result["steps"] == 2
    scores = result["scores"]
    assert ("val/crop_accuracy" in scores) == (name == "quickstart/encoder.yaml")
    assert 0 <= scores["val/base_accuracy"] <= 1
    assert main(["validate", *trained[name]]) == 0
    assert json.loads((run / "scores.json").read_text())["scores"] == pytest.approx(scores)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_of_the_quickstart_trains_is_scored_again_and_answers(name, trained, capsys, tmp_path):
    run, result = _result(trained[name])
    assert result["steps"] == 2
    assert result["context_length"] == (16 * 5 if name == "quickstart/sequence.yaml" else 16) + 33
    assert result["visual_tokens"] == (16 if Path(name).stem in ("low", "low_own_encoder", "repeated") else 80)
    assert main(["validate", *trained[name]]) == 0
    assert json.loads((run / "scores.json").read_text())["scores"] == result["scores"]
    capsys.readouterr()
    Image.new("L", (32, 32), 255).save(tmp_path / "page.png")
    asked = ["--image", str(tmp_path / "page.png"), "--question", "B3", "--max-new-tokens", "2"]
    assert main(["predict", *trained[name], *asked]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()[-1].split()) <= 2
