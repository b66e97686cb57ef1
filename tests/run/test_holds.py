"""A checkpoint holds what trains; the rest is read again from its file, which has to be what it was."""

import shutil

import numpy as np
import pytest
import tiny_world
import torch
from safetensors.torch import load_file, save_file

import dslight
from dslight.cli import main
from dslight.recipe.compose import compose, to_yaml

STEPS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_world.write(root)
    return root


@pytest.fixture(scope="module")
def recipe(world):
    """Stage 1: the projector beside two pretrained parts."""
    values = {
        "model": {
            "vision_encoder": {"class_path": "dslight.HFVisionEncoder", "init_args": {"pretrained": tiny_world.CLIP}},
            "projector": {"class_path": "dslight.MLPProjector"},
            "stacking": {"class_path": "dslight.DeepStackL", "init_args": {"crops": 4}},
            "language_model": {"class_path": "dslight.HFCausalLM", "init_args": {"pretrained": tiny_world.LM}},
        },
        "stage": {"train": {"projector": {"lr": 0.01}}, "warmup_steps": 0},
        "data": {"train": ["data/mine"], "val": {"textvqa": "data/eval/textvqa"}, "global_batch_size": 4},
        "trainer": {**tiny_world.QUICK, "max_steps": STEPS, "log_every_n_steps": 1},
        "checkpoint_every": 1,
        "checkpoint_keep": STEPS,
    }
    (world / "stage1.yaml").write_text(to_yaml(values))
    return "stage1.yaml"


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    monkeypatch.chdir(world)


def fit(recipe, folder, *arguments) -> None:
    assert main(["fit", str(recipe), f"run_dir={folder}", *arguments]) == 0


def content(folder, step=STEPS):
    return torch.load(folder / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)


def parts(state) -> set[str]:
    return {name.partition(".")[0] for name in state}


@pytest.fixture(scope="module")
def runs(recipe, world, tmp_path_factory):
    """The run, and the same one whose checkpoints hold all."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        fit(recipe, root / "trained")
        fit(recipe, root / "all", "checkpoint_holds=all")
    return root / "trained", root / "all"


def test_it_holds_what_trains_and_says_where_the_rest_is(runs):
    trained, whole = map(content, runs)
    assert parts(trained["state_dict"]) == {"projector"}
    assert parts(whole["state_dict"]) == {"projector", "vision_encoder", "language_model"}
    assert set(trained["elsewhere"]) == {"vision_encoder", "language_model"}
    assert "elsewhere" not in whole
    named = {*trained["state_dict"], *(n for one in trained["elsewhere"].values() for n in one["dtypes"])}
    assert named == set(whole["state_dict"])


def test_a_run_is_continued_bit_by_bit(runs, recipe, tmp_path):
    cut = tmp_path / "run"
    shutil.copytree(runs[0], cut)
    (cut / "result.json").unlink()
    for step in (3, 4):
        (cut / "checkpoints" / f"step-{step:08d}.ckpt").unlink()
    fit(recipe, cut)
    ours, theirs = (load_file(folder / "weights" / "projector.safetensors") for folder in (cut, runs[1]))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (cut / "questions/textvqa.jsonl").read_text() == (runs[1] / "questions/textvqa.jsonl").read_text()


def test_whoever_opens_it_has_the_whole_model(runs, recipe, tmp_path, capsys):
    """By Python, validate, predict and export: what a checkpoint that holds all gives."""
    models = [dslight.load(folder, device="cpu") for folder in runs]
    ours, theirs = (model.state_dict() for model in models)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    alone = tmp_path / "alone.ckpt"
    shutil.copy(runs[0] / "checkpoints" / f"step-{STEPS:08d}.ckpt", alone)
    assert torch.equal(
        dslight.load(alone, device="cpu").state_dict()["language_model.model.lm_head.weight"],
        theirs["language_model.model.lm_head.weight"],
    )
    said = []
    for folder in runs:
        capsys.readouterr()
        assert main(["validate", recipe, f"run_dir={folder}"]) == 0
        assert main(["predict", recipe, f"run_dir={folder}", "--question", "What?", "--image", "page.png"]) == 0
        said.append("\n".join(line for line in capsys.readouterr().out.splitlines() if "questions/s" not in line))
        assert main(["export", str(folder), str(tmp_path / folder.name)]) == 0
    assert said[0] == said[1]
    ours, theirs = (load_file(tmp_path / folder.name / "model.safetensors") for folder in runs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_next_stage_begins_with_it(runs, recipe, tmp_path):
    weights = f"weights.model={runs[0] / 'checkpoints' / f'step-{STEPS:08d}.ckpt'}"
    fit(recipe, tmp_path / "run", weights, "trainer.max_steps=1", "stage.train.language_model.lr=0.001")
    held = content(tmp_path / "run", 1)
    assert parts(held["state_dict"]) == {"projector", "language_model"}  # the decoder trains now
    first = load_file(runs[0] / "weights" / "projector.safetensors")
    now = held["state_dict"]["projector.net.0.weight"]
    assert 0 < (now - first["net.0.weight"]).abs().max() < 0.02  # a step from there


def test_a_file_that_weights_named_is_read_again(runs, recipe, tmp_path, world):
    """Other weights than the part's own `pretrained`, from a file of the recipe's `weights`."""
    lm = world / tiny_world.LM / "model.safetensors"
    other = {name: tensor + 0.01 for name, tensor in load_file(lm).items()}
    save_file(other, tmp_path / "lm.safetensors", {"format": "pt"})
    fit(recipe, tmp_path / "run", f"weights.language_model={tmp_path / 'lm.safetensors'}", "trainer.max_steps=1")
    held = content(tmp_path / "run", 1)
    assert held["elsewhere"]["language_model"]["file"] == str(tmp_path / "lm.safetensors")
    norm = dslight.load(tmp_path / "run", device="cpu").state_dict()["language_model.model.model.norm.weight"]
    assert torch.equal(norm, other["model.norm.weight"])
    (tmp_path / "lm.safetensors").rename(tmp_path / "gone.safetensors")
    with pytest.raises(ValueError, match=r"weights\.language_model: there is no file .*lm\.safetensors"):
        dslight.load(tmp_path / "run")


@pytest.mark.parametrize("call", ["fit", "load", "validate"])
def test_a_file_that_has_changed_is_an_error_by_name(runs, recipe, tmp_path, world, capsys, call):
    lm, kept = world / tiny_world.LM / "model.safetensors", tmp_path / "kept"
    shutil.copy(lm, kept)
    cut = tmp_path / "run"
    shutil.copytree(runs[0], cut)
    (cut / "result.json").unlink()
    changed = load_file(lm)
    changed["model.norm.weight"][0] += 1e-6
    try:
        save_file(changed, lm, {"format": "pt"})
        if call == "load":
            with pytest.raises(ValueError, match="does not hold the weights of the language_model") as error:
                dslight.load(cut)
            said = str(error.value)
        else:
            assert main([call, recipe, f"run_dir={cut}"]) == 1
            said = capsys.readouterr().err
    finally:
        shutil.copy(kept, lm)
    assert "step-00000004.ckpt does not hold the weights of the language_model, which did not train" in said
    assert "the checkpoint that model.language_model names (pretrained)" in said


def test_adapters_are_held_without_what_they_adapt(recipe, tmp_path):
    lora = "stage.train.language_model={lr: 0.001, lora: {r: 2}}"
    fit(recipe, tmp_path / "run", lora, "trainer.max_steps=2")
    held = {name for name in content(tmp_path / "run", 2)["state_dict"] if name.startswith("language_model")}
    assert held
    assert all(".lora_" in name for name in held)
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000002.ckpt").unlink()
    first = load_file(tmp_path / "run" / "weights" / "language_model.safetensors")
    fit(recipe, tmp_path / "run", lora, "trainer.max_steps=2")
    again = load_file(tmp_path / "run" / "weights" / "language_model.safetensors")
    assert all(np.array_equal(first[name].numpy(), again[name].numpy()) for name in first)


def test_in_half_precision_what_is_put_back_is_what_was_trained_beside(recipe, tmp_path):
    """bf16-true rounds the weights, so the file holds others than the run had."""
    half = ["trainer.precision=bf16-true", "trainer.max_steps=2"]
    fit(recipe, tmp_path / "trained", *half)
    fit(recipe, tmp_path / "all", *half, "checkpoint_holds=all")
    ours, theirs = (dslight.load(tmp_path / name, device="cpu").state_dict() for name in ("trained", "all"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (tmp_path / "trained" / "result.json").unlink()
    fit(recipe, tmp_path / "trained", *half)


def test_what_it_holds_is_one_of_two(recipe, tmp_path, capsys):
    assert main(["fit", recipe, f"run_dir={tmp_path / 'run'}", "checkpoint_holds=some"]) == 1
    assert "checkpoint_holds: 'some' is neither trained nor all" in capsys.readouterr().err


def test_what_comes_from_another_run_is_held(runs, recipe, tmp_path):
    """That run may be trained anew; its projector is here."""
    other = f"weights.projector={runs[0] / 'weights' / 'projector.safetensors'}"
    values = compose(recipe, [other, "trainer.max_steps=1"])
    values["stage"]["train"] = {"language_model": {"lr": 0.001}}
    (tmp_path / "next.yaml").write_text(to_yaml(values))
    fit(tmp_path / "next.yaml", tmp_path / "run")
    held = content(tmp_path / "run", 1)
    assert parts(held["state_dict"]) == {"projector", "language_model"}
    assert set(held["elsewhere"]) == {"vision_encoder"}


def test_a_trainer_of_ones_own_says_that_it_lacks_weights(runs):
    parts = tiny_world.parts()
    model = dslight.VLM(parts["encoder"], dslight.MLPProjector, dslight.DeepStackL(crops=4), parts["lm"])
    with pytest.raises(ValueError, match="does not hold the weights of the vision_encoder and the language_model"):
        model.on_load_checkpoint(content(runs[0]))
