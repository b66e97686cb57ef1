"""``dslight export``: transformers opens what is a LLaVA and refuses the rest, which opens here bit for bit."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

import dslight
from dslight.cli import main
from dslight.data.images import SingleView
from dslight.data.sample import parse_sample
from dslight.data.shards import ShardReader
from dslight.recipe.build import build
from dslight.recipe.compose import compose, to_yaml
from dslight.run.evaluate import predict
from dslight.run.export import _without_files
from dslight.written import written

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 16, "patch_size": 4,
}  # fmt: skip
MEAN = (0.7, 0.6, 0.5)


@pytest.fixture(scope="module")
def llava(fit, recipe, tmp_path_factory) -> Any:
    """A trained run without stacks, of parts that transformers has."""
    folder = tmp_path_factory.mktemp("llava")
    values: Any = compose(recipe)
    values["model"]["vision_encoder"] = {
        "class_path": "dslight.components.HFVisionEncoder",
        "init_args": {"config": VISION, "mean": list(MEAN), "std": [0.2, 0.2, 0.2]},
    }
    values["model"]["stacking"] = {"class_path": "dslight.components.LowResolution", "init_args": {"tap": -2}}
    values["data"]["views"] = {"class_path": "dslight.data.images.SingleView", "init_args": {"resample": "box"}}
    (folder / "recipe.yaml").write_text(to_yaml(values))
    return fit(folder / "run", file=folder / "recipe.yaml")


@pytest.fixture(scope="module")
def page(pages, tmp_path_factory) -> Path:
    """A picture of the validation set."""
    reader = ShardReader(pages / "val")
    file = tmp_path_factory.mktemp("page") / "page.png"
    file.write_bytes(parse_sample(reader.locate(0)[1], reader.read(0)).images[0])
    return file


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    newest = sorted((run.path / "checkpoints").iterdir())[-1]
    return torch.load(newest, weights_only=True)["state_dict"]


def exported(source: Path, out: Path, *options: str) -> Path:
    assert main(["export", str(source), str(out), *options]) == 0
    return out


def reopened(folder: Path) -> Any:
    return build(compose(folder / "dslight.yaml"), opens=None).model


# --- stacked --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--shard-size", "200KB")], ids=["one file", "shards"])
def test_a_stacked_model_opens_here_bit_for_bit(whole, tmp_path, options, capsys):
    out = exported(whole.path, tmp_path / "out", *options)
    assert "opens in transformers wherever dslight is imported; plain transformers would" in capsys.readouterr().out
    ours, before = reopened(out).state_dict(), weights_of(whole)
    assert set(ours) == set(before)
    assert all(torch.equal(ours[name], before[name]) for name in before)
    assert (out / "model.safetensors.index.json").exists() == bool(options)


def test_a_stacked_model_opens_in_transformers_as_the_card_says(whole, page, tmp_path):
    out = exported(whole.path, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["architectures"] == ["DslightForConditionalGeneration"]
    card = (out / "README.md").read_text()
    assert "Without dslight transformers refuses it: plain transformers would drop the 4 stacks" in card
    said = io.StringIO()
    code = re.search(r"```python\n(.*?)```", card, re.S)[1].replace("What is it?", "B2")
    with contextlib.redirect_stdout(said):
        exec(code, {"picture": Image.open(page)})  # our own card, as a reader would
    assert dslight.load(whole.path).answer("B2", page) in said.getvalue()
    assert f"| val/pages/vqa_accuracy | {whole.json('result.json')['scores']['val/pages/vqa_accuracy']:.4f} |" in card
    assert len(AutoTokenizer.from_pretrained(out)) == 30


def test_an_exported_model_scores_and_answers_as_the_run_does(whole, page, tmp_path, capsys):
    out = exported(whole.path, tmp_path / "out")
    capsys.readouterr()
    ask = ["--image", str(page), "--question", "B2"]
    answers = []
    for recipe, options in ((whole.path / "recipe.yaml", []), (out / "dslight.yaml", ["--ckpt", str(out)]), (out, [])):
        assert main(["predict", str(recipe), *options, *ask]) == 0
        answers.append(capsys.readouterr().out)
    assert len(set(answers)) == 1
    scores = tmp_path / "scores"
    assert main(["validate", str(out / "dslight.yaml"), "--ckpt", str(out), f"run_dir={scores}"]) == 0
    assert json.loads((scores / "scores.json").read_text())["scores"] == whole.json("result.json")["scores"]


def test_a_checkpoint_is_exported_with_the_recipe_of_its_run_or_a_named_one(whole, recipe, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole.path, run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    content = torch.load(newest, weights_only=True)
    content["state_dict"] = {name: tensor + 1 for name, tensor in content["state_dict"].items()}
    older = run / "checkpoints" / "step-00000001.ckpt"
    torch.save(content, older)
    beside = exported(older, tmp_path / "beside")
    assert all(
        torch.equal(tensor, content["state_dict"][name]) for name, tensor in reopened(beside).state_dict().items()
    )
    assert "vqa_accuracy" not in (beside / "README.md").read_text()  # the scores are the last step's
    alone = tmp_path / "alone.ckpt"
    shutil.move(older, alone)
    assert main(["export", str(alone), str(tmp_path / "no")]) == 1
    assert "--recipe: " in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    named = exported(alone, tmp_path / "named", "--recipe", str(recipe))
    assert (named / "model.safetensors").read_bytes() == (beside / "model.safetensors").read_bytes()


def test_a_sharded_checkpoint_is_exported_whole(whole, tmp_path, recipe):
    from torch.distributed.checkpoint import save

    before = weights_of(whole)
    save({"state_dict": before}, checkpoint_id=tmp_path / "step-00000009.ckpt", no_dist=True)
    out = exported(tmp_path / "step-00000009.ckpt", tmp_path / "out", "--recipe", str(recipe))
    assert all(torch.equal(tensor, before[name]) for name, tensor in reopened(out).state_dict().items())


def test_what_encoders_side_by_side_were_read_from_is_not_named(tmp_path):
    dslight.HFVisionEncoder(config=VISION).model.save_pretrained(tmp_path / "clip")
    both = dslight.FusedEncoder([dslight.HFVisionEncoder(str(tmp_path / "clip")) for _ in range(2)])
    arguments = _without_files(both, written(both)["init_args"])
    assert "pretrained" not in str(arguments)
    for made, one in zip(arguments["encoders"], both.encoders, strict=True):
        again = dslight.HFVisionEncoder(**made["init_args"])
        assert (again.mean, again.std) == (one.mean, one.std)
        assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in one.state_dict().items()}


# --- LLaVA ----------------------------------------------------------------------------------------------------------


def test_transformers_opens_a_llava_with_equal_logits_and_answers(llava, page, tmp_path, capsys):
    out = exported(llava.path, tmp_path / "out")
    assert "LlavaForConditionalGeneration and dslight open it" in capsys.readouterr().out
    opened: Any = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    theirs, report = opened
    assert not any(report.values())
    theirs.eval()
    processor: Any = AutoProcessor.from_pretrained(out, backend="pil")
    picture = Image.open(page).convert("RGB")
    given = processor(images=picture, text="<image>B2", return_tensors="pt")

    experiment = build({k: v for k, v in compose(llava.path / "recipe.yaml").items() if k != "weights"}, opens=None)
    ours: Any = experiment.model
    ours.load_state_dict(weights_of(llava))
    ours.eval()
    batch = experiment.data.processor.ask("B2", page.read_bytes())
    assert torch.equal(given["input_ids"] == theirs.config.image_token_index, batch.visual_mask)
    assert torch.equal(given["input_ids"][~batch.visual_mask], batch.input_ids[~batch.visual_mask])
    seen = ours.vision_encoder.normalise(batch.views.pixels)
    torch.testing.assert_close(given["pixel_values"], seen, atol=1e-5, rtol=0)
    with torch.no_grad():
        exact = theirs(**given).logits
        logits = ours(batch)
    torch.testing.assert_close(exact[..., : logits.shape[-1]], logits, atol=1e-5, rtol=1e-5)

    new = theirs.generate(**given, max_new_tokens=8)[:, given["input_ids"].shape[1] :]
    reply = processor.tokenizer.decode(new[0], skip_special_tokens=True).strip()
    assert reply == predict(compose(llava.path / "recipe.yaml"), "B2", [page], max_new_tokens=8)


def test_a_llava_opens_here_too_whether_or_not_the_placeholder_is_new(llava, tmp_path, monkeypatch):
    before = weights_of(llava)
    known = exported(llava.path, tmp_path / "known")  # the tokenizer has <image> already
    assert all(torch.equal(before[name], tensor) for name, tensor in reopened(known).state_dict().items())

    for module in ("export", "export_llava", "export_card"):
        monkeypatch.setattr(f"dslight.run.{module}.IMAGE_TOKEN", "<picture>")
    out = exported(llava.path, tmp_path / "new")
    after = reopened(out).state_dict()
    assert AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<picture>") == 30
    assert all(torch.equal(after[name][: len(tensor)], tensor) for name, tensor in before.items())
    longer = [name for name in before if len(after[name]) == len(before[name]) + 1]
    assert longer == ["language_model.model.model.embed_tokens.weight", "language_model.model.lm_head.weight"]
    assert json.loads((out / "generation_config.json").read_text())["suppress_tokens"] == [30]
    theirs: Any = LlavaForConditionalGeneration.from_pretrained(out)
    processor: Any = AutoProcessor.from_pretrained(out, backend="pil")
    given = processor(images=Image.new("RGB", (20, 10)), text="<picture>B2", return_tensors="pt")
    assert int((given["input_ids"] == theirs.config.image_token_index).sum()) == 16
    assert theirs(**given).logits.shape[-1] == 31


@pytest.mark.parametrize("mean", [True, False], ids=["the mean's colour", "another colour"])
def test_padded_pictures_are_padded_by_transformers_as_here(llava, tmp_path, mean):
    values: Any = compose(llava.path / "recipe.yaml")
    color = [int(value * 255) for value in MEAN] if mean else [1, 2, 3]
    values["data"]["views"]["init_args"] = {"resample": "bicubic", "fit": "pad", "pad_color": color}
    file = tmp_path / "recipe.yaml"
    file.write_text(to_yaml(values))
    newest = sorted((llava.path / "checkpoints").iterdir())[-1]
    out = exported(newest, tmp_path / "out", "--recipe", str(file))
    if not mean:
        assert not (out / "processor_config.json").exists()
        assert "no class of transformers pads with (1, 2, 3)" in (out / "README.md").read_text()
        return
    picture = Image.effect_noise((40, 24), 80).convert("RGB")
    ours, _ = SingleView("bicubic", "pad", (color[0], color[1], color[2]))(picture, (16, 16))
    seen = reopened(out).vision_encoder.normalise(ours)
    processor: Any = AutoProcessor.from_pretrained(out, backend="pil")
    given = processor(images=picture, text="<image>B2", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(given, seen, atol=1e-5, rtol=0)


def test_another_dtype_is_written_and_opened(llava, tmp_path):
    out = exported(llava.path, tmp_path / "out", "--dtype", "bfloat16")
    assert LlavaForConditionalGeneration.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_exported_is_refused_by_the_argument(whole, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    out = str(tmp_path / "out")
    for arguments, message in (
        ([str(whole.path), str(full)], f"OUT: {full} exists and is not empty"),
        ([str(tmp_path / "none"), out], f"RUN_OR_CKPT: there is no {tmp_path / 'none'}"),
        ([str(full), out], "is neither a run's folder (no recipe.yaml) nor a checkpoint"),
        ([str(whole.path), out, "--dtype", "float31"], "--dtype: 'float31' is no torch dtype"),
    ):
        assert main(["export", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert not Path(out).exists()
