"""The door from Python: a model is asked, trained, opened again and taken apart without a recipe."""

import contextlib
import copy
import inspect
import json
import re
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning
import numpy as np
import pytest
import tiny_world
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import dslight
from dslight.cli import main
from dslight.components.component import _NAMED
from dslight.data.shards import ShardReader
from dslight.recipe.build import check
from dslight.recipe.compose import compose, recipe_hash
from dslight.texts import printable

DOCS = Path(__file__).parents[1] / "docs"
QUICK = tiny_world.QUICK


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world.write(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def here(world, monkeypatch):
    monkeypatch.chdir(world)


def make(stacking=None, **more):
    parts = tiny_world.parts() | more
    return dslight.VLM(parts["encoder"], dslight.MLPProjector, stacking or dslight.DeepStackL(crops=4), parts["lm"])


def shards(**more):
    return dslight.Data(
        **{"train": ["data/mine"], "val": {"textvqa": "data/eval/textvqa"}, "global_batch_size": 4, **more}
    )


@pytest.fixture(scope="module")
def trained(world):
    """A run, and the model that it left."""
    with contextlib.chdir(world):
        model = make()
        rates = {"projector": 1e-2, "language_model": 1e-2}
        run = dslight.fit(model, shards(), rates, {**QUICK, "max_steps": 6, "log_every_n_steps": 1}, "runs/trained")
    return run, model


# --- asked ----------------------------------------------------------------------------------------------------------


def test_a_model_is_asked_before_it_was_trained():
    answer = make().answer("What is written here?", images=["page.png"], max_new_tokens=5)
    assert isinstance(answer, str)
    assert answer


def test_every_form_of_an_image_shows_the_same():
    model, page = make(), Image.open("page.png")
    array = np.asarray(page)
    forms = [
        "page.png", Path("page.png"), Path("page.png").read_bytes(), page, page.convert("RGBA"), array,
        torch.from_numpy(array.copy()), torch.from_numpy(array.copy()).permute(2, 0, 1), array.transpose(2, 0, 1),
    ]  # fmt: skip
    seen = [model.processor.ask("?", form).views.pixels for form in forms]
    assert all(torch.equal(one, seen[0]) for one in seen)
    assert torch.equal(model.processor.ask("?", array[:, :, 0]).views.pixels[:, 0], seen[0][:, 0])  # grey


@pytest.mark.parametrize("question", ["Is <image> red?", "Does <video> move?", "<image> or <video>?"])
def test_a_question_that_names_a_picture_which_is_not_there_is_refused(question):
    with pytest.raises(ValueError, match=r"the question has 1 <(image|video)>, and there are 0"):
        make().processor.ask(question)


def test_a_batch_of_unequal_questions_has_the_answers_of_each_alone(trained):
    model = trained[1]
    questions = [
        "What is it?",
        "A much longer question, so that the first one is padded on its left?",
        "And these two?",
    ]
    images = ["page.png", None, ["page.png", Image.new("RGB", (30, 20), "red")]]
    alone = [model.answer(q, shown, max_new_tokens=6) for q, shown in zip(questions, images, strict=True)]
    assert model.answer(questions, images, max_new_tokens=6) == alone
    assert len(set(alone)) > 1
    assert model.answer(questions) == model.answer(questions, [None] * 3)
    assert model.answer(questions[:2], "page.png") == model.answer(questions[:2], ["page.png"] * 2)
    assert model.answer([questions[0]], [["page.png"]]) == [model.answer(questions[0], ["page.png"])]


@pytest.mark.parametrize(
    ("question", "images", "said"),
    [
        ("?", 3, "images[0]: a int is no image; give a picture of PIL, a file, or a uint8 array"),
        ("?", ["page.png", np.zeros((4, 4, 3))], "images[1]: an array of float64; give uint8, from 0 to 255"),
        ("?", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "images[0]: an array of shape (2, 3, 4, 4); give [height"),
        ("?", np.zeros((0, 4, 3), np.uint8), "images[0]: an array of shape (0, 4, 3)"),
        ("?", "gone.png", "images[0]: there is no file gone.png"),
        ("?", b"no picture", "images[0]: image of 10 bytes does not decode"),
        (["?", "?"], ["page.png", {}], "images[1][0]: a dict is no image"),
        (["?", "?"], ["page.png"], "images: 1 entries for 2 questions; give one for each"),
        ([], None, "question: expected a text, or a list of one or more texts, got []"),
        ("?" * 3000, None, "question question takes 30"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(question, images, said):
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        make().answer(question, images)
    assert "\n" not in str(refused.value)


def test_a_model_without_a_tokenizer_says_what_it_needs():
    config = make().language_model.model.config.to_diff_dict() | {"model_type": "llama"}
    with pytest.raises(ValueError, match=r"^tokenizer: .* needs a `tokenizer`"):
        make(lm=dslight.HFCausalLM(config=config)).answer("?")


def test_asking_leaves_every_module_in_its_mode_and_takes_the_options_of_generate():
    model = make().train()
    model.vision_encoder.freeze()
    before = {name: module.training for name, module in model.named_modules()}
    short = model.answer("?", "page.png", max_new_tokens=2)
    long = model.answer("?", "page.png", max_new_tokens=9, num_beams=2)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert set(before.values()) == {True, False}
    assert len(short) < len(long)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_is_asked_in_the_tokenizers_own_template_else_in_llavas():
    model = make()
    ids = model.processor.ask("Why?").input_ids[0]
    asked = [{"role": "user", "content": "Why?"}]
    assert model.tokenizer.decode(ids) == model.tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True
    )
    model = make()
    model.tokenizer.chat_template = None
    assert model.tokenizer.decode(model.processor.ask("Why?").input_ids[0]).endswith("USER: Why? ASSISTANT:")


NEEDS = {
    "base alone": (dslight.LowResolution, "SingleView", [(0, 0)]),
    "repeated": (partial(dslight.DeepStackL, source="base"), "SingleView", [(0, 0)]),
    "taps": (partial(dslight.DeepStackTaps, taps=[1]), "SingleView", [(0, 0)]),
    "crops": (partial(dslight.DeepStackL, crops=2), "AspectGridViews", [(2, 1), (1, 2)]),
    "one crop": (partial(dslight.DeepStackL, crops=1), "GridViews", [(1, 1)]),
    "in the encoder": (partial(dslight.DeepStackV, crops=2, start=1), "AspectGridViews", [(2, 1), (1, 2)]),
    "channels": (partial(dslight.ChannelConcat, num_crops=2), "AspectGridViews", [(2, 1), (1, 2)]),
    "attention": (partial(dslight.CrossAttention, num_layers=1, num_crops=2), "AspectGridViews", [(2, 1), (1, 2)]),
    "sequence": (dslight.SequenceConcat, "AspectGridViews", dslight.AspectGridViews(4).grids()),
    "mosaic": (partial(dslight.SequenceConcat, newline=True, unpad=True), "AnyResViews", dslight.AnyResViews().grids()),
    "merged": (
        lambda: dslight.DeepStack([dslight.Stack([1], sampler="patch_merge", merge=2)]),
        "GridViews",
        [(2, 2)],
    ),
    "fine": (dslight.DeepStackHD, "HDViews", dslight.HDViews(4, 2).grids()),
}


@pytest.mark.parametrize(("stacking", "kind", "grids"), NEEDS.values(), ids=NEEDS)
def test_the_stacking_brings_the_views_that_it_looks_at(stacking, kind, grids):
    projector = partial(dslight.MLPProjector, per_level=True)
    parts = tiny_world.parts()
    model = dslight.VLM(parts["encoder"], projector, stacking(), parts["lm"])
    data = shards()
    model.connect(data)
    assert (type(data.views).__name__, data.views.grids()) == (kind, grids)
    assert data.views.fine == model.stacking.fine
    assert model.answer("?", "page.png", max_new_tokens=1) is not None


def test_views_that_are_named_win_and_must_fit():
    model = make(dslight.DeepStackL(crops=2))
    data = shards(views=dslight.GridViews(1, 2))
    model.connect(data)
    assert model.processor.ask("?", "page.png").views.grids == [(1, 2)]
    with pytest.raises(ValueError, match=r"^stacking\.crops: 2 stacks cannot take the 6 crops"):
        model.connect(shards(views=dslight.GridViews(2, 3)))


# --- trained --------------------------------------------------------------------------------------------------------


def test_a_fit_leaves_a_run_and_the_model_its_weights(trained):
    run, _ = trained
    assert run.scores == json.loads((run.path / "result.json").read_text())["scores"]
    assert set(run.scores) == {"val/textvqa/vqa_accuracy", "val/textvqa/unresolved"}
    losses = [row["train/loss"] for row in run.history if "train/loss" in row]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    left, right = run.plot().axes
    assert [len(line.get_ydata()) for line in left.lines] == [6]
    assert [line.get_label() for line in right.lines] == ["val/textvqa/vqa_accuracy"]
    files = {"recipe.yaml", "metrics.csv", "checkpoints", "weights", "questions", "optimizer.txt", "environment.json"}
    assert files <= {path.name for path in run.path.iterdir()}
    assert "6 steps" in repr(run)


def test_a_run_from_python_is_the_run_of_a_recipe(trained, tmp_path, capsys):
    """Its recipe is the one that somebody would have written, and the commands understand the folder."""
    run, _ = trained
    sizes = json.dumps(tiny_world.SIZES)
    (tmp_path / "same.yaml").write_text(f"""
name: trained
run_dir: runs/trained
seed: 0
model:
  vision_encoder: {{TimmEncoder: {{name: vit_tiny_patch16_224, model_args: {sizes}}}}}
  projector: MLPProjector
  stacking: {{DeepStackL: {{crops: 4}}}}
  language_model: {{HFCausalLM: {{pretrained: {tiny_world.LM}}}}}
stage: {{train: {{projector: {{lr: 0.01}}, language_model: {{lr: 0.01}}}}}}
data: {{train: [data/mine], val: {{textvqa: data/eval/textvqa}}, global_batch_size: 4}}
trainer: {{max_steps: 6, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1}}
""")
    theirs = compose(tmp_path / "same.yaml")
    assert compose(run.path / "recipe.yaml") == theirs
    assert run.result["recipe_hash"] == recipe_hash(theirs)
    check(theirs)
    assert main(["fit", str(tmp_path / "same.yaml")]) == 0  # finished: nothing to do
    assert main(["validate", str(run.path / "recipe.yaml")]) == 0
    assert json.loads((run.path / "scores.json").read_text())["scores"] == run.scores
    assert main(["report", str(run.path), "--out", str(tmp_path)]) == 0
    assert "trained" in (tmp_path / "report.html").read_text()


def pictures_of(source):
    reader = ShardReader(f"data/eval/{source}")
    return [reader.read(i)["png"] for i in range(len(reader))]


def test_it_answers_as_the_validation_loop_and_predict_do(trained, capsys):
    run, model = trained
    rows = tiny_world.lines(run.path / "questions/textvqa.jsonl")
    shown = pictures_of("textvqa")
    said = [row["prediction"] for row in rows]
    asked = [row["prompt"] for row in rows]
    assert model.answer(asked, shown, max_new_tokens=16) == said
    assert len(set(said)) > 1
    Path("asked.png").write_bytes(shown[1])
    capsys.readouterr()
    call = ["--image", "asked.png", "--question", asked[1], "--max-new-tokens", "16"]
    assert main(["predict", str(run.path / "recipe.yaml"), *call]) == 0
    assert capsys.readouterr().out.rstrip("\n").split("\n")[-1] == printable(said[1])


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_answers_in_the_precision_that_it_was_validated_in(precision):
    model, rates = make(), {"projector": 1e-2, "language_model": 1e-2}
    run = dslight.fit(model, shards(), rates, {**QUICK, "precision": precision}, f"runs/{precision}")
    rows = tiny_world.lines(run.path / "questions/textvqa.jsonl")
    asked, said = [row["prompt"] for row in rows], [row["prediction"] for row in rows]
    shown = pictures_of("textvqa")
    opened = dslight.load(run.path)
    assert opened.answer(asked, shown, max_new_tokens=16) == said
    logits = {}
    for name, one in {"theirs": model, "opened": opened}.items():
        with one.evaluating():
            logits[name] = one(one.processor.ask(asked, shown)).float()
    assert torch.equal(logits["theirs"], logits["opened"])


def test_the_same_call_reads_a_finished_run_and_another_is_refused(trained, capsys):
    run, model = trained
    again = make()
    rates, trainer = {"projector": 1e-2, "language_model": 1e-2}, {**QUICK, "max_steps": 6, "log_every_n_steps": 1}
    before = (run.path / "result.json").stat().st_mtime_ns
    assert dslight.fit(again, shards(), rates, trainer, "runs/trained").scores == run.scores
    assert (run.path / "result.json").stat().st_mtime_ns == before
    assert "already trained" in capsys.readouterr().out
    same_weights(again, model)
    with pytest.raises(ValueError, match="holds a run of another recipe") as refused:
        dslight.fit(make(dslight.DeepStackL(crops=4, start=0)), shards(), rates, trainer, "runs/trained")
    assert "model.stacking.start: (absent) -> 0" in str(refused.value)
    assert "fresh=True" in str(refused.value)


def test_an_interrupted_fit_is_continued_by_the_same_call():
    class Stop(lightning.Callback):
        told = False

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 2 and not Stop.told:
                Stop.told = True
                raise KeyboardInterrupt

    trainer = {**QUICK, "max_steps": 4, "log_every_n_steps": 1}
    call = (shards(), {"projector": 1e-2})
    with pytest.raises(KeyboardInterrupt):
        dslight.fit(make(), *call, {**trainer, "callbacks": [Stop()]}, "runs/cut", checkpoint_every=1)
    continued = dslight.fit(make(), *call, {**trainer, "callbacks": [Stop()]}, "runs/cut", checkpoint_every=1)
    whole = dslight.fit(make(), *call, trainer, "runs/uncut")
    assert continued.scores == whole.scores
    losses = [[row["train/loss"] for row in run.history if "train/loss" in row] for run in (continued, whole)]
    assert losses[0] == pytest.approx(losses[1])


def test_sources_and_stages_may_be_said_as_in_a_recipe():
    asked = {"root": "data/eval/textvqa", "benchmark": "textvqa", "max_new_tokens": 2, "limit": 2}
    data = shards(train=[{"root": "data/mine", "weight": 2}], val={"x": asked})
    assert data.sources == [dslight.Source("data/mine", 2)]
    assert data.val_sources == {"x": dslight.ValSource(**asked)}
    stage = {"train": {"projector": 1e-2, "language_model": {"lr": 1e-3}}, "schedule": "constant"}
    run = dslight.fit(make(), data, stage, QUICK, "runs/said")
    assert run.scores["val/x/vqa_accuracy"] >= 0
    recipe = yaml.safe_load(Path("runs/said/recipe.yaml").read_text())
    assert recipe["stage"] == {
        "train": {"projector": {"lr": 1e-2}, "language_model": {"lr": 1e-3}},
        "schedule": "constant",
    }
    assert recipe["data"]["val"]["x"] == asked
    assert main(["plan", "runs/said/recipe.yaml"]) == 0
    same_weights(dslight.load("runs/said"), run.model)


REFUSED = {
    "nothing trains": (lambda: {"stage": None}, 'stage: nothing trains; name parts and learning rates: stage={"proj'),
    "a misspelt part": (lambda: {"stage": {"projecter": 1e-3}}, "stage.train.projecter: there is no such part; the pa"),
    "no rate": (lambda: {"stage": {"projector": 0}}, "stage: train.projector.lr: must be above 0"),
    "a misspelt argument": (
        lambda: {"trainer": {"max_step": 3}},
        "trainer.max_step: there is no such argument; did you",
    ),
    "a Trainer": (lambda: {"trainer": lightning.Trainer(logger=False)}, "trainer: expected arguments of a Trainer"),
    "no shards": (lambda: {"data": shards(train=["data/gone"])}, "data.train[0].root: 'data/gone' is no folder"),
    "no data": (
        lambda: {"data": "data/mine"},
        "data: expected a dslight.Data, or another data module of Lightning, got",
    ),
    "a misspelt argument of a source": (
        lambda: {"data": {"val": {"x": {"root": "data/eval/textvqa", "benchmrk": "exact"}}}},
        "data.val.x.benchmrk: is no argument of a source; they are root, limit, loss, benchmark",
    ),
    "a source without a folder": (lambda: {"data": {"train": [{"weight": 2}]}}, "data.train[0].root: missing"),
    "a source that is none": (lambda: {"data": {"train": [3]}}, "data.train[0]: expected a folder or a mapping of"),
    "no benchmark": (
        lambda: {"data": shards(val={"x": dslight.ValSource("data/eval/textvqa", benchmark="textvqu")})},
        "data.val.x.benchmark: there is no 'textvqu'; did you mean textvqa?",
    ),
    "too many crops": (
        lambda: {"data": shards(views=dslight.GridViews(2, 3))},
        "model.stacking.crops: 4 stacks cannot take the 6 crops",
    ),
    "an objective": (lambda: {"objective": nn.Linear}, "objective: is what a part is fitted with alone"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_call_is_refused_in_the_words_of_python(change, said):
    call = {"data": shards(), "stage": {"projector": 1e-3}, "trainer": QUICK, "run_dir": "runs/refused", **change()}
    with pytest.raises(ValueError, match=f"^{re.escape(said)}") as refused:
        dslight.fit(make(), **{**call, "data": shards(**data) if isinstance(data := call["data"], dict) else data})
    assert "init_args" not in str(refused.value)
    assert not Path("runs/refused").exists()


def test_a_stage_says_what_it_takes_where_it_was_given_a_bare_rate():
    said = r"^train\.projector: expected a PartTraining, got 0\.001; write dslight\.PartTraining"
    with pytest.raises(ValueError, match=said):
        dslight.Stage(dict.fromkeys(["projector"], 1e-3))  # type: ignore[arg-type]


def test_parts_that_do_not_fit_are_refused_with_the_argument():
    with pytest.raises(ValueError, match=r"^stacking\.start: 4 stacks at layers 3, 4, 5, 6 need 7 layers"):
        make(dslight.DeepStackL(crops=4, start=3))


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- a Trainer of one's own -----------------------------------------------------------------------------------------


def own(**more):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(**{"max_steps": 2, "accelerator": "cpu", **quiet, **more})


def test_a_run_is_extended_and_branched_by_the_same_call(capsys):
    """Four steps in one go, in two, and the last two from the checkpoint of another run."""

    def fit(name, steps, **more):
        stage = dslight.Stage({"projector": dslight.PartTraining(1e-2)}, schedule="constant")
        quick = {**QUICK, "max_steps": steps, "log_every_n_steps": 1}
        return dslight.fit(make(), shards(val=None), stage, quick, f"runs/{name}", checkpoint_every=2, **more)

    whole = fit("whole", 4)
    fit("more", 2)
    more = fit("more", 4, extend=True)
    branch = fit("branch", 4, branch="runs/whole@2")
    assert [row["train/loss"] for row in more.history] == [row["train/loss"] for row in whole.history]
    assert [row["train/loss"] for row in branch.history] == [row["train/loss"] for row in whole.history][2:]
    for run in (more, branch):
        assert run.model.state_dict()["projector.net.0.weight"].equal(
            whole.model.state_dict()["projector.net.0.weight"]
        )
    with pytest.raises(ValueError, match=r"extend: .*name one of them|fresh.*name one of them"):
        fit("more", 5, extend=True, fresh=True)


def test_a_trainer_of_ones_own_drives_the_same_model_and_data(trained, tmp_path):
    run, _ = trained
    model, data = make(), shards()
    model.train_with({"projector": 1e-2, "language_model": 1e-2})
    trainer = own(max_steps=6, default_root_dir=tmp_path)
    lightning.seed_everything(0, verbose=False)
    trainer.fit(model, data)
    (scores,) = trainer.validate(model, data, verbose=False)
    assert {key: scores[key] for key in run.scores} == pytest.approx(run.scores)
    assert model.answer("What is it?", "page.png") == trained[1].answer("What is it?", "page.png")


def test_its_checkpoint_opens_without_a_recipe(tmp_path):
    model = make()
    model.train_with({"projector": 1e-2})
    trainer = own(enable_checkpointing=False)
    trainer.fit(model, shards(views=dslight.GridViews(1, 2), template="chatml"))
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    opened = dslight.load(tmp_path / "mine.ckpt")
    same_weights(opened, model)
    asked = [one.processor.ask("?", "page.png") for one in (opened, model)]
    assert torch.equal(asked[0].input_ids, asked[1].input_ids)
    assert asked[0].views.grids == [(1, 2)]
    assert not opened.training


@pytest.mark.parametrize("strange", ["operation", "class"])
def test_a_checkpoint_imports_nothing_that_is_not_imported_already(tmp_path, strange):
    (tmp_path / "stranger_of_a_checkpoint.py").write_text("raise SystemExit('imported')")
    model = make()
    recipe = {"model": model.to_recipe()}
    if strange == "class":
        recipe["model"]["stacking"] = {"class_path": "stranger_of_a_checkpoint.Mine"}
    else:
        recipe["model"]["stacking"]["init_args"]["operation"] = "stranger_of_a_checkpoint.mine"
    torch.save({"state_dict": model.state_dict(), "recipe": recipe}, tmp_path / "mine.ckpt")
    with pytest.raises(ValueError, match=r"mine\.ckpt: its model\.stacking\..* import stranger_of_a_checkpoint first"):
        dslight.load(tmp_path / "mine.ckpt")


def test_a_model_in_which_nothing_trains_says_so_in_python():
    with pytest.raises(RuntimeError, match=r'nothing trains yet; .* model\.train_with\(\{"projector": 1e-3\}\)'):
        own(enable_checkpointing=False).fit(make(), shards())


def test_validation_of_bare_loaders_says_what_is_missing():
    model = make()
    batch = model.processor.ask("?", "page.png")
    with pytest.raises(RuntimeError, match="nobody says how answers are judged"):
        own(enable_checkpointing=False).validate(model, DataLoader([batch], batch_size=None), verbose=False)


# --- opened again ---------------------------------------------------------------------------------------------------


def test_a_run_an_export_and_a_checkpoint_open_and_answer_alike(trained, tmp_path):
    run, model = trained
    assert main(["export", str(run.path), str(tmp_path / "exported")]) == 0
    (tmp_path / "exported").rename(tmp_path / "moved")
    newest = sorted((run.path / "checkpoints").iterdir())[-1]
    expected = model.answer(["What is it?", "Why?"], ["page.png", None])
    for path in (run.path, newest, tmp_path / "moved"):
        opened = dslight.load(path)
        same_weights(opened, model)
        assert opened.answer(["What is it?", "Why?"], ["page.png", None]) == expected


class OfANotebook(dslight.MapProjector):
    def make(self, level):
        return nn.Linear(self.in_widths[level], self.out_width)


OfANotebook.__module__ = "__main__"


def test_what_no_recipe_can_name_is_marked_and_opens_with_the_model_in_hand():
    parts = tiny_world.parts()

    def build():
        return dslight.VLM(copy.deepcopy(parts["encoder"]), OfANotebook, dslight.LowResolution(), parts["lm"])

    model = build()
    run = dslight.fit(model, shards(val=None), {"projector": 1e-2}, QUICK, "runs/notebook")
    assert run.scores == {}
    made = compose(run.path / "recipe.yaml")["model"]
    assert made["projector"] == {"made_in_python": "OfANotebook"}
    assert made["vision_encoder"]["class_path"] == "dslight.components.TimmEncoder"
    with pytest.raises(
        ValueError, match=r"^model\.projector: OfANotebook was made in Python; .* load\(\.\.\., model=mo"
    ):
        dslight.load(run.path)
    same_weights(dslight.load(run.path, model=build()), model)
    assert main(["validate", str(run.path / "recipe.yaml")]) == 1  # refused by the key, not by a traceback


def test_what_is_not_there_is_named(tmp_path):
    (tmp_path / "bare.ckpt").write_bytes(b"")
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    for path, said in ((tmp_path / "gone", "there is no such run"), (tmp_path / "bare.ckpt", "give its recipe")):
        with pytest.raises(ValueError, match=said):
            dslight.load(path)


# --- parts alone, and strangers -------------------------------------------------------------------------------------


class Guess(dslight.Objective):
    """A part's output is compared with zero."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, part, batch):
        return {"loss": (part(*batch).float() * self.scale).square().mean()}


class Loader(lightning.LightningDataModule):
    def __init__(self, *batch):
        super().__init__()
        self.batch = batch

    def train_dataloader(self):
        return DataLoader([self.batch] * 2, batch_size=None, collate_fn=tuple)


def test_each_part_is_fitted_alone_by_the_same_call():
    parts = tiny_world.parts()
    maps = torch.randn(2, 4, 4, 16)
    ids = torch.randint(2, 200, (2, 5))
    cases = {
        "projector": (dslight.MLPProjector([16], 8), Loader([maps])),
        "language_model": (
            parts["lm"],
            Loader(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool), None),
        ),
    }
    for name, (part, data) in cases.items():
        part.width = 8
        before = copy.deepcopy(part.state_dict())
        run = dslight.fit(part, data, {name: 1e-2}, QUICK, f"runs/{name}", objective=Guess)
        assert run.result["steps"] == 2
        assert any(not torch.equal(value, before[key]) for key, value in part.own_state().items())
        assert (run.path / f"weights/{name}.safetensors").exists()
    digits = dslight.DenseLabelData(
        ["data/digits/train"], dslight.GridViews(2, 2), 4, val={"pages": dslight.ValSource("data/digits/val")}
    )
    rates = {"vision_encoder": 1e-3, "objective": 1e-3}
    classes = partial(dslight.PatchClassification, num_classes=10)
    run = dslight.fit(parts["encoder"], digits, rates, QUICK, "runs/encoder", objective=classes)
    assert 0 <= run.scores["val/base_accuracy"] <= 1
    check(compose(run.path / "recipe.yaml"))
    same_weights(dslight.load(run.path), parts["encoder"])


class TheirEncoder(lightning.LightningModule):
    """Somebody's, with a training of its own."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3))

    def forward(self, pixels, depth=3):
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        for block in self.blocks[:depth]:
            x = block(x)
        return x

    def training_step(self, batch, batch_idx):
        return self(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class TheirDecoder(nn.Module):
    """Somebody's, without a KV cache."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, 16), nn.Linear(16, vocabulary)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(5))

    def forward(self, ids, mask):
        x = self.embed(ids)
        hidden = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=hidden)
        return self.head(x)


class WrappedEncoder(dslight.VisionEncoder):
    def __init__(self, net):
        super().__init__()
        self.net, self.width, self.grid, self.image_size = net, 16, (4, 4), (16, 16)
        self.mean = self.std = (0.5, 0.5, 0.5)

    layers = property(lambda self: self.net.blocks)

    def encode(self, pixels, depth):
        return self.net(pixels, depth)


class WrappedProjector(dslight.MapProjector):
    def make(self, level):
        return nn.Bilinear(1, 1, 1) if level else nn.Linear(self.in_widths[level], self.out_width)


class WrappedDecoder(dslight.LanguageModel):
    def __init__(self, net, tokenizer):
        super().__init__()
        self.net, self.tokenizer = net, tokenizer
        self.width, self.vocabulary = net.embed.embedding_dim, net.embed.num_embeddings

    layers = property(lambda self: self.net.blocks)
    embedding = property(lambda self: self.net.embed)
    decoder = property(lambda self: self.net)

    def logits(self, ids, mask):
        return self.net(ids, mask)


@pytest.mark.parametrize("kind", [WrappedEncoder, WrappedProjector, WrappedDecoder])
def test_a_strangers_module_is_wrapped_in_ten_lines(kind):
    lines = [line for line in inspect.getsource(kind).splitlines() if line.strip()]
    assert len(lines) <= 11


def test_strangers_parts_train_and_answer_together():
    tokenizer = tiny_world.byte_tokenizer()
    torch.manual_seed(0)
    theirs = TheirEncoder()
    _NAMED.discard(TheirEncoder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decoder = WrappedDecoder(TheirDecoder(len(tokenizer)), tokenizer)
        model = dslight.VLM(WrappedEncoder(theirs), WrappedProjector, dslight.DeepStackL(crops=4), decoder)
        dslight.VLM(WrappedEncoder(TheirEncoder()), WrappedProjector, dslight.LowResolution(), decoder)
    told = [str(one.message) for one in caught if "never run" in str(one.message)]
    assert len(told) == 1
    assert told[0].startswith("TheirEncoder defines configure_optimizers, training_step: Lightning calls these on the")
    before = copy.deepcopy(theirs.state_dict())
    run = dslight.fit(model, shards(), {"vision_encoder": 1e-2, "projector": 1e-2}, QUICK, "runs/strangers")
    assert any(not torch.equal(value, before[name]) for name, value in theirs.state_dict().items())
    assert run.scores["val/textvqa/vqa_accuracy"] >= 0
    questions = ["What is it?", "A longer question than that?"]
    alone = [model.answer(question, "page.png", max_new_tokens=4) for question in questions]
    assert model.answer(questions, "page.png", max_new_tokens=4) is not None
    assert all(alone)
    with pytest.raises(ValueError, match="num_beams: WrappedDecoder answers greedily"):
        model.answer("?", num_beams=2)


def test_a_decoder_in_memory_is_a_part():
    theirs = tiny_world.parts()["lm"].model
    lm = dslight.HFCausalLM.of(theirs, tiny_world.byte_tokenizer())
    assert make(lm=lm).answer("?", "page.png") == make().answer("?", "page.png")


# --- the package ----------------------------------------------------------------------------------------------------


def test_importing_it_costs_no_torch_and_its_names_are_listed():
    program = (
        "import sys, dslight, dslight.metrics\n"
        "heavy = {'torch', 'lightning', 'transformers', 'timm', 'torchmetrics', 'numpy', 'jsonargparse'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert dir(dslight) == dslight.__all__ and not hasattr(dslight, 'Nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=DOCS.parent)
    assert {"VLM", "Data", "fit", "validate", "load", "DeepStackL", "HFCausalLM", "MLPProjector"} <= set(dir(dslight))
    from dslight import VLM, components
    from dslight.metrics import VQAAccuracy

    assert (VLM.__module__, VQAAccuracy.__module__) == ("dslight.vlm", "dslight.metrics.vqa")
    assert set(components.__all__) <= set(dir(dslight))


def test_the_page_about_python_is_true(capsys):
    page = (DOCS / "python.md").read_text()
    tiny = f'"vit_tiny_patch16_224", model_args={tiny_world.SIZES}'
    page, count = re.subn('"vit_base_patch16_siglip_224", pretrained=True', tiny, page)
    assert count == 1
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) >= 7
    names = {"__name__": "notebook"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert "val/textvqa/vqa_accuracy" in capsys.readouterr().out
