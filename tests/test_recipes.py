"""Every shipped recipe goes through the real command line: all are planned, those of the quickstart are trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dslight.cli import main
from dslight.recipe.ablation import expand
from dslight.recipe.build import check

ROOT = Path(__file__).parent.parent / "recipes"
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.yaml"))
PARTS = [name for name in FILES if name.startswith("parts/")]
ABLATIONS = [name for name in FILES if name.startswith("ablations/")]
RECIPES = [name for name in FILES if name not in PARTS + ABLATIONS]
ENCODERS = ["quickstart/encoder.yaml", "quickstart/encoder_low.yaml"]
ARMS = [name for name in RECIPES if name.startswith("quickstart/") and name not in ENCODERS]

PAPER = {
    "llava_1_5_7b_align.yaml": ("7B", 576, 576),
    "llava_1_5_7b_finetune.yaml": ("7B", 576, 576),
    "llava_1_5_13b_align.yaml": ("13B", 576, 576),
    "llava_1_5_13b_finetune.yaml": ("13B", 576, 576),
    "deepstack_l_7b_finetune.yaml": ("7B", 2880, 576),
    "deepstack_l_13b_finetune.yaml": ("13B", 2880, 576),
    "deepstack_v_7b_finetune.yaml": ("7B", 2880, 576),
}
"""Language model, Vis.Tok and Cxt.Len of the paper's Table 1."""
PARAMETERS = {
    "7B": 6_738_415_616,  # the checkpoint lmsys/vicuna-7b-v1.5, as its safetensors index counts (in float16, 13.48 GB)
    "13B": 13_015_864_320,
    "CLIP-L/336": 303_507_456,  # openai/clip-vit-large-patch14-336's vision model
    "projector": {"7B": 1024 * 4096 + 4096 + 4096 * 4096 + 4096, "13B": 1024 * 5120 + 5120 + 5120 * 5120 + 5120},
}


def test_every_file_is_known_to_these_tests():
    """A new file changes these numbers: then see that it is planned (and trained, if it is tiny) below."""
    assert (len(PARTS), len(ABLATIONS), len(ENCODERS), len(ARMS), len(PAPER)) == (7, 3, 2, 7, 7)
    assert set(RECIPES) == {*ENCODERS, *ARMS, *PAPER}


@pytest.mark.parametrize("name", [*ENCODERS, *ARMS])
def test_a_quickstart_recipe_can_be_planned(name, capsys):
    assert main(["plan", str(ROOT / name)]) == 0
    assert capsys.readouterr().out.startswith(name.removesuffix(".yaml") + "\n")


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_of_the_paper_has_the_papers_tokens_and_the_checkpoints_parameters(name, capsys):
    size, visual_tokens, context = PAPER[name]
    assert main(["plan", str(ROOT / name), "--world-size", "8", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["visual_tokens"], plan["context_length"]) == (visual_tokens, context)
    parameters = {part["name"]: part["parameters"] for part in plan["parts"]}
    assert parameters["language_model"] == PARAMETERS[size]
    assert parameters["projector"] == PARAMETERS["projector"][size]
    assert parameters["vision_encoder"] == pytest.approx(PARAMETERS["CLIP-L/336"], rel=1e-4)
    trained = {part["name"] for part in plan["parts"] if part["trainable"]}
    stage = {"projector"} if "align" in name else {"projector", "language_model"}
    assert trained == stage | ({"vision_encoder"} if "deepstack_v" in name else set())
    stacks = [(part, layer) for part, layer, what in plan["placements"] if "stack" in what]
    expected = {"deepstack_l": ("language_model", range(1, 5)), "deepstack_v": ("vision_encoder", range(20, 24))}
    part, layers = expected.get(name[:11], ("", range(0)))
    assert stacks == [(part, layer) for layer in layers]


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
