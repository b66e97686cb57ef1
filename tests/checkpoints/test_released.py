"""Released models, imported: every family whole against transformers' own model, and what cannot be imported by name.

The checkpoints are tiny and random, written by transformers; ``benchmarks.parity`` makes them for the page of the
documentation, too.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file
from said import messages
from transformers import AutoModelForImageTextToText, AutoProcessor

import dslight
from benchmarks import parity
from benchmarks.parity import CASES, IMAGE, Case, batch, compare, pictures, tokenizer
from data_prep.digits import png
from dslight.checkpoints.families.shuffled import buckets
from dslight.cli import main
from dslight.data.shards import ShardWriter
from dslight.errors import WeightsError
from dslight.recipe.errors import RecipeError
from dslight.run.release import import_release
from dslight.run.release_back import released_form


def checkpoint(case: Case, folder: Path) -> Any:
    """One in ``folder``, and the model that wrote it, where the installed transformers has its class."""
    if not hasattr(transformers, f"{case.name}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {case.name}")
    return parity.checkpoint(case, folder)


def imported(name: str, folder: Path, **config: Any) -> tuple[Any, Any, list[str]]:
    """Their model, ours, and what the import said."""
    case = replace(CASES[name], config={**CASES[name].config, **config})
    theirs = checkpoint(case, folder / "released")
    said = import_release(str(folder / "released"), folder / "imported")
    return theirs, dslight.load(folder / "imported", device="cpu").eval(), said


def rewritten(folder: Path, change: Any) -> None:
    """Its tensors, changed."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


WEIGHTS = Path(__file__).parents[2] / "docs" / "weights.md"
SLOW = ("llava (SigLIP, Qwen 2, two layers)", "paligemma", "qwen2_vl", "cosmos3_omni", "qwen3_omni_moe_thinker")
"""Families that share all of their code with others here."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES])
@torch.no_grad()
def test_a_family_is_its_own_model(name, tmp_path):
    """Logits and greedy ids, for left-padded batches: one image, three and none; and, where it has them, a video, an
    image and a video, none, two videos."""
    theirs, ours, said = imported(name, tmp_path)
    found = compare(CASES[name], theirs, ours)
    assert found.spread > 0.1
    assert found.difference < 1e-5
    assert found.same
    assert len({token for row in found.ids[0] for token in row}) > 3
    made = batch(ours)
    assert made.views is not None
    mirrored = replace(made.views, pixels=made.views.pixels.flip(-1))
    moved = (ours(replace(made, views=mirrored)) - ours(made)).abs().amax((1, 2))
    assert moved[:2].min() > 1e-3  # it does look at the images, and only where there are some
    assert moved[2] == 0
    if CASES[name].watcher:
        watched = parity.compare_clips(CASES[name], theirs, ours)
        assert watched.difference < 1e-5
        assert watched.same
        theirs_say = parity.watcher(CASES[name]).size
        video = yaml.safe_load((tmp_path / "imported" / "dslight.yaml").read_text())["data"]["video"]
        assert (video["min_pixels"], video["max_pixels"]) == (theirs_say["shortest_edge"], theirs_say["longest_edge"])
    assert not [line for line in said if line.startswith("not in the recipe") and not line.endswith(")")]


def test_a_mapped_patch_grid_keeps_the_rows_that_the_release_reads(tmp_path):
    """Idefics 3 sorts places into buckets in floats; with 19 patches a side, one falls into the bucket before."""
    assert torch.equal(buckets(26), torch.arange(26 * 26))
    assert not torch.equal(buckets(19), torch.arange(19 * 19))
    vision = {**CASES["idefics3"].config["vision_config"], "image_size": 57, "patch_size": 3}
    theirs, ours, _ = imported("idefics3", tmp_path, vision_config=vision, scale_factor=19)
    assert compare(CASES["idefics3"], theirs, ours).difference < 1e-5


def test_two_streams_at_a_layer_of_granite_are_refused(tmp_path):
    """The release overwrites the first by the second; here both would be added."""
    checkpoint(CASES["granite4_vision"], tmp_path / "released")
    file = tmp_path / "released" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "spatial_target_layers": [1, 2, 3, 4]}))
    with pytest.raises(RecipeError, match=r"granite4_vision: deepstack_layer_map, .*: two streams enter at layer 4"):
        import_release(str(tmp_path / "released"), tmp_path / "imported")
    file.write_text(json.dumps({**json.loads(file.read_text()), "deepstack_layer_map": None}))
    with pytest.raises(RecipeError, match="granite4_vision: deepstack_layer_map: missing"):
        import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_the_mean_and_the_std_of_a_checkpoint_are_its_own(tmp_path):
    checkpoint(CASES["llava"], tmp_path / "released")
    pixels = {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.25]}
    (tmp_path / "released" / "preprocessor_config.json").write_text(json.dumps(pixels))
    said = import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert not any("preprocessor_config.json" in line for line in said)
    encoder = dslight.load(tmp_path / "imported", device="cpu").vision_encoder
    assert [list(encoder.mean), list(encoder.std)] == [*pixels.values()]


def test_what_a_file_holds_beyond_the_recipe_is_named(tmp_path):
    checkpoint(CASES["llava"], tmp_path / "released")
    rewritten(tmp_path / "released", lambda held: {**held, "model.aligner.weight": torch.zeros(2)})
    said = import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert "not in the recipe: model.aligner.weight" in said
    assert any(line.startswith("no preprocessor_config.json beside it: images have the sizes") for line in said)
    assert "model.aligner.weight" in (tmp_path / "imported" / "README.md").read_text()


def test_what_a_file_lacks_is_an_error_and_leaves_nothing(tmp_path):
    checkpoint(CASES["llava"], tmp_path / "released")
    lost = "multi_modal_projector.linear_2.bias"
    rewritten(tmp_path / "released", lambda held: {name: one for name, one in held.items() if not name.endswith(lost)})
    with pytest.raises(WeightsError, match=r"missing projector.net.2.bias \(48,\)"):
        import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_pickled_weights_are_not_opened(tmp_path):
    checkpoint(CASES["llava"], tmp_path / "released")
    (tmp_path / "released" / "model.safetensors").unlink()
    (tmp_path / "released" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(WeightsError, match="only safetensors are imported"):
        import_release(str(tmp_path / "released"), tmp_path / "imported")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "mllama",
            r"model type 'mllama' is not known; known: .*granite_docling, idefics3, internvl, .*",
        ),
    ],
)
def test_other_kinds_are_refused_by_name(kind, message, tmp_path, capsys):
    (tmp_path / "released").mkdir()
    (tmp_path / "released" / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(RecipeError, match=f"released: {message}"):
        import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert main(["import", str(tmp_path / "released"), "--out", str(tmp_path / "imported")]) == 1
    (said,) = messages(capsys.readouterr().err).splitlines()
    assert re.match(f"dslight: {re.escape(str(tmp_path))}/released: {message}", said)


def broken(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"preprocessor_config": "[]"}, r"preprocessor_config.json: the whole: must be an object, not \[\]"),
        ({"preprocessor_config": "{"}, r"preprocessor_config.json: not JSON"),
        ({"processor_config": '{"image_processor": [1]}'}, r"processor_config.json: image_processor: \[1\]"),
        (
            {"preprocessor_config": '{"image_mean": [0, 0, 0], "image_std": [0, 0.0, 0]}'},
            r"vision_encoder.*std: \[0.*divided",
        ),
        ({"tokenizer": "{}"}, r"tokenizer: a file of .*released is not built as it should be \(KeyError"),
        ({"config": '{"model_type": "llava", "text_config": {"num_hidden_layers": "four"}}'}, "expected int, got str"),
    ],
)
def test_a_damaged_file_of_a_release_is_a_sentence(files, message, tmp_path, capsys):
    checkpoint(CASES["llava"], tmp_path / "released")
    broken(tmp_path / "released", **files)
    assert main(["import", str(tmp_path / "released"), "--out", str(tmp_path / "imported")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "imported").exists()


def test_weights_are_written_in_shards_of_the_size_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("dslight.run.release.SHARD", 40_000)
    theirs, ours, _ = imported("llava", tmp_path)
    assert len([*(tmp_path / "imported").glob("model-*.safetensors")]) > 3
    assert compare(CASES["llava"], theirs, ours).same


def shards(root: Path) -> Path:
    """Four conversations about pictures of several shapes."""
    generator = np.random.default_rng(0)
    with ShardWriter(root) as writer:
        for i, (height, width) in enumerate([(40, 64), (60, 30), (48, 48), (30, 90)]):
            turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {i}."}]
            picture = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
            writer.write(f"m{i}", [png(picture)], {"conversations": turns})
    return root


def test_an_ablation_of_an_imported_model_takes_its_stack_away(tmp_path, capsys):
    """Qwen3-VL through the commands, with images of several sizes: import, sweep of the arms that the documentation
    shows, and the two that a release can say opened again.
    """
    checkpoint(CASES["qwen3_vl"], tmp_path / "released")
    assert main(["import", str(tmp_path / "released"), "--out", str(tmp_path / "imported")]) == 0
    said = capsys.readouterr().out
    assert "its mergers (visual.merger, visual.deepstack_merger_list) are the projector" in said
    (shown,) = (one for one in re.findall(r"```yaml\n(.*?)```", WEIGHTS.read_text(), re.S) if "variants:" in one)
    made = {
        **yaml.safe_load(shown),
        "bases": [str(tmp_path / "imported" / "dslight.yaml")],
        "name": "arms",
        "run_dir": str(tmp_path / "arms"),
        "data": {
            "train": [str(shards(tmp_path / "data"))],
            "val": {"held_out": {"root": str(tmp_path / "data"), "loss": True}},
            "global_batch_size": 2,
            "template": "bare",
        },
        "stage": {"train": {"projector": {"lr": 1e-2}}},
        "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(made))
    assert main(["sweep", str(tmp_path / "ablation.yaml")]) == 0
    runs = sorted((tmp_path / "arms").iterdir())
    scores = [json.loads((run / "result.json").read_text())["scores"]["val/held_out/loss"] for run in runs]
    assert [run.name.partition(".")[0] for run in runs] == ["gates", "none", "own", "sites"]
    assert len(set(scores)) == 4
    before = load_file(tmp_path / "imported" / "model.safetensors")
    for run, sites in zip(runs, [(1, 2, 3), (), (1, 2, 3), (0, 1, 3)], strict=True):
        model = dslight.load(run, device="cpu")
        assert (model.stacking.sites, model.stacking.base_taps) == (sites, [-1])
        assert model.language_model.axes == 3
        gates = {name: gate for name, gate in model.stacking.state_dict().items() if name.endswith("gate")}
        assert len(gates) == (run.name == "gates")
        assert all((gate != 1).all() for gate in gates.values())  # they train
        state = {f"projector.{name}": tensor for name, tensor in model.projector.state_dict().items()}
        assert {name for name in before if name.startswith("projector.")} >= set(state)
        assert not any(torch.equal(tensor, before[name]) for name, tensor in state.items())  # all mergers train
        tower = model.vision_encoder.state_dict()
        assert all(torch.equal(tensor, before[f"vision_encoder.{name}"]) for name, tensor in tower.items())
        if run.name not in ("none", "own"):
            continue
        out = tmp_path / "out" / run.name  # as what it is here, the stack and the marks around images included
        assert main(["export", str(run), str(out)]) == 0
        again: Any = AutoModelForImageTextToText.from_pretrained(out)
        given = AutoProcessor.from_pretrained(out).of_batch(asked := batch(model))
        with torch.no_grad():
            expected = model.eval()(asked)
            assert torch.equal(dslight.load(out, device="cpu")(asked), expected)
            torch.testing.assert_close(again.eval()(**given).logits, expected, atol=1e-5, rtol=1e-5)
        back = tmp_path / "back" / run.name
        assert main(["export", str(run), str(back), "--release"]) == 0
        assert capsys.readouterr().out.endswith(f"{back}: Qwen3VLForConditionalGeneration opens it\n")
        assert reopened(back, "qwen3_vl", model.eval()).config.vision_config.deepstack_visual_indexes == (
            [0, 2, 3] if sites else []
        )


def test_an_export_needs_no_checkpoint_that_the_run_began_with(tmp_path):
    """Parts of any size, and with positions of several axes, too; the run's own checkpoint leaves them out."""
    released, made = tmp_path / "released", tmp_path / "imported"
    checkpoint(CASES["qwen3_vl"], released)
    import_release(str(released), made)
    recipe = {
        "bases": [str(made / "dslight.yaml")],
        "run_dir": str(tmp_path / "run"),
        "model": {
            "vision_encoder": {"NativeVisionEncoder": {"pretrained": str(released), "config": None}},
            "language_model": {"HFCausalLM": {"pretrained": str(released), "config": None}},
        },
        "weights": {"model": None, "projector": str(made)},
        "data": {"train": [str(shards(tmp_path / "data"))], "global_batch_size": 2, "template": "bare"},
        "stage": {"train": {"projector": 1e-2}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["fit", str(tmp_path / "recipe.yaml")]) == 0
    (kept,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = torch.load(kept, weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in state} == {"projector"}
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    run = dslight.load(tmp_path / "run", device="cpu").eval()
    shutil.rmtree(released)
    asked = batch(run)
    assert torch.equal(dslight.load(tmp_path / "out", device="cpu").eval()(asked), run(asked))
    assert "released" not in (tmp_path / "out" / "config.json").read_text()


def reopened(folder: Path, name: str, ours: Any) -> Any:
    """What transformers opens, with our logits and answers."""
    opened: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    theirs, report = opened
    assert not any(report.values())
    found = compare(CASES[name], theirs.eval(), ours)
    assert found.difference < 1e-5
    assert found.same
    return theirs


@pytest.mark.parametrize(
    "name",
    [
        "granite4_vision",
        "cohere_compass",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl_moe")),
    ],
)
def test_an_import_goes_back_into_its_own_class(name, tmp_path):
    checkpoint(CASES[name], tmp_path / "released")
    import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "back"), "--release"]) == 0
    theirs = reopened(tmp_path / "back", name, dslight.load(tmp_path / "imported", device="cpu").eval())
    assert type(theirs).__name__ == f"{CASES[name].name}ForConditionalGeneration"
    assert theirs.config.image_token_id == IMAGE
    narrow = tmp_path / "narrow"
    assert main(["export", str(tmp_path / "imported"), str(narrow), "--release", "--dtype", "bfloat16"]) == 0
    opened = AutoModelForImageTextToText.from_pretrained(narrow)
    assert {one.dtype for one in opened.parameters()} == {torch.bfloat16}


def test_options_that_mean_nothing_are_refused_before_a_model_is_read(tmp_path, capsys):
    for options, said in ((["--dtype", "int8"], "--dtype: 'int8'"), (["--shard-size", "many"], "--shard-size: 'many'")):
        assert main(["export", str(tmp_path / "no"), str(tmp_path / "out"), "--release", *options]) == 1
        assert said in capsys.readouterr().err


def test_a_stack_that_no_release_has_does_not_go_back(tmp_path, capsys):
    checkpoint(CASES["qwen3_vl"], tmp_path / "released")
    import_release(str(tmp_path / "released"), tmp_path / "imported")
    recipe = {
        "bases": [str(tmp_path / "imported" / "dslight.yaml")],
        "model": {"stacking": {"init_args": {"sites": [0, 1, 3]}}},
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe))
    given = [str(tmp_path / "imported"), str(tmp_path / "back"), "--release", "--recipe", str(tmp_path / "other.yaml")]
    assert main(["export", *given]) == 1
    said = capsys.readouterr().err
    assert "--release: model.stacking: stacks: [(1, 0, 'base', 'identity')" in said
    assert not (tmp_path / "back").exists()


def test_a_projector_that_no_release_has_does_not_go_back(tmp_path, capsys):
    checkpoint(CASES["granite_docling"], tmp_path / "released")
    import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert main(["export", str(tmp_path / "imported"), str(tmp_path / "back"), "--release"]) == 1
    said = capsys.readouterr().err
    assert "--release: no release is known here with a HFVisionEncoder, a PerLevelProjector and a granite;" in said
    _, ours, _ = imported("qwen3_vl", tmp_path / "qwen")
    ours.projector = dslight.PerLevelProjector(ours.projector.in_widths, 48, [dslight.PixelShuffleMLPProjector])
    with pytest.raises(ValueError, match=r"^model\.projector: the release's is .*, this one's .*PerLevelProjector"):
        released_form(ours, {"image_token_id": IMAGE})


@pytest.mark.parametrize("indexes", [[2, 0], [3, 0, 3]])
def test_the_order_of_qwen_s_indexes_chooses_mergers_and_no_layers(indexes, tmp_path):
    """Block 0 enters first, merged by the merger that stands where its index stands; a second one is never called."""
    vision = {**CASES["qwen3_vl"].config["vision_config"], "deepstack_visual_indexes": indexes}
    theirs, ours, said = imported("qwen3_vl", tmp_path, vision_config=vision)
    assert ours.stacking.taps() == [-1, *(index + 1 for index in sorted(set(indexes)))]
    found = compare(CASES["qwen3_vl"], theirs, ours)
    assert found.difference < 1e-5
    assert found.same
    assert any("deepstack_merger_list.2" in line and "no block is merged by it" in line for line in said) == (
        len(indexes) == 3
    )


def test_of_a_release_of_several_models_the_one_that_sees_is_taken(tmp_path):
    name = "qwen3_omni_moe_thinker"
    theirs = checkpoint(CASES[name], tmp_path / "released")
    file = tmp_path / "released" / "config.json"
    file.write_text(json.dumps({"model_type": "qwen3_omni_moe", "thinker_config": json.loads(file.read_text())}))
    speech = {"talker.model.norm.weight": torch.ones(2), "code2wav.bias": torch.ones(2)}
    rewritten(tmp_path / "released", lambda held: {**{f"thinker.{key}": one for key, one in held.items()}, **speech})
    said = import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert any("talker.model.norm.weight (of another model of the release)" in line for line in said)
    assert any(re.match(r"not in the recipe: (model\.)?audio_tower\.", line) for line in said)
    ours = dslight.load(tmp_path / "imported", device="cpu").eval()
    found = compare(CASES[name], theirs, ours)
    assert found.difference < 1e-5
    assert found.same


def test_the_budget_of_pixels_is_the_checkpoint_s(tmp_path):
    checkpoint(CASES["qwen2_vl"], tmp_path / "released")
    size = {"size": {"shortest_edge": 256, "longest_edge": 1024}}
    (tmp_path / "released" / "preprocessor_config.json").write_text(json.dumps(size))
    import_release(str(tmp_path / "released"), tmp_path / "imported")
    views = dslight.load(tmp_path / "imported", device="cpu").processor.rows.views
    assert (views.min_pixels, views.max_pixels) == (256, 1024)


TEXTS = "{% if m.content is string %}{{ m.content }}{% else %}"
BODY = (
    "{% for c in m.content %}{% if c.type == 'image' %}<start><image><end>{% else %}{{ c.text }}{% endif %}{% endfor %}"
)
ASKS = "</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
BEGIN = "{% for m in messages %}<s>{{ m.role }}\n"
CHAT, PARTS = BEGIN + TEXTS + BODY + "{% endif %}" + ASKS, BEGIN + BODY + ASKS


@pytest.mark.parametrize("written", [CHAT, PARTS], ids=["texts or parts", "parts alone"])
def test_a_question_is_written_as_the_release_writes_it(written, tmp_path):
    """Also where its chat template takes lists of parts alone, as those of multimodal models may."""
    checkpoint(CASES["qwen3_vl"], tmp_path / "released")
    theirs = tokenizer()
    theirs.chat_template = written
    theirs.save_pretrained(tmp_path / "released")
    said = import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert "around an image stand '<start>' and '<end>' (data.image_marks)" in said
    ours = dslight.load(tmp_path / "imported", device="cpu")
    asked = ours.processor.ask("What is it?", pictures()[0])
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = theirs(text.replace("<image>", "<image>" * int(asked.visual_mask.sum()))).input_ids
    assert asked.input_ids.masked_fill(asked.visual_mask, IMAGE).tolist() == [expected]
    assert ours.processor.to_recipe()["image_marks"] == ["<start>", "<end>"]


def test_what_a_processor_puts_around_an_image_is_there_too(tmp_path):
    checkpoint(CASES["smolvlm"], tmp_path / "released")
    said = import_release(str(tmp_path / "released"), tmp_path / "imported")
    marks = ["<fake_token_around_image><global-img>", "<fake_token_around_image>"]
    assert said[-1].startswith(f"around an image stand {marks[0]!r} and {marks[1]!r} (data.image_marks); its chat")
    assert dslight.load(tmp_path / "imported", device="cpu").processor.to_recipe()["image_marks"] == marks


def test_a_folder_without_a_tokenizer_says_where_one_is_named(tmp_path):
    checkpoint(CASES["llava"], tmp_path / "released")
    for file in (tmp_path / "released").glob("tokenizer*"):
        file.unlink()
    said = import_release(str(tmp_path / "released"), tmp_path / "imported")
    assert f"name one in {tmp_path}/imported/dslight.yaml: model.language_model.init_args.tokenizer" in said[-1]
    assert len(tokenizer()) == 263


def test_the_order_of_granite_docling_s_indexes_means_nothing(tmp_path):
    """Layers enter shallow to deep, the i-th by merger i; of a layer named twice the last merger is never called.

    What belongs to the fine route and to the choice between the routes is named.
    """
    vision = {**CASES["granite_docling"].config["vision_config"], "deepstack_visual_indexes": [3, 0, 3]}
    theirs, ours, said = imported("granite_docling", tmp_path, vision_config=vision)
    assert (ours.stacking.taps(), ours.stacking.sites) == (["final", 1, 4], (1, 2))
    found = compare(CASES["granite_docling"], theirs, ours)
    assert found.difference < 1e-5
    assert found.same
    left = [line for line in said if line.startswith("not in the recipe")]
    for name in ("connector.fine.", "density_router.", "coarse.deepstack_mergers.2."):
        assert any(name in line for line in left)
    assert all(line.endswith(")") for line in left)
