"""Classes in short, and arguments that have got a better name: the same recipe, and messages in the writer's words."""

import warnings
from pathlib import Path

import pytest

from dslight.recipe.ablation import expand
from dslight.recipe.build import check
from dslight.recipe.compose import compose, differences, recipe_hash, to_yaml
from dslight.recipe.errors import RecipeError

QUICKSTART = Path(__file__).parents[2] / "recipes" / "quickstart"


def composed(folder, text, *overrides):
    file = folder / "short.yaml"
    file.write_text(f"bases: [{QUICKSTART / 'low.yaml'}]\nname: short\n{text}")
    return compose(file, overrides)


SHORT = {
    "with arguments": ("model: {stacking: {DeepStackL: {crops: 2}}}", "dslight.components.DeepStackL", {"crops": 2}),
    "without": ("model: {stacking: {DeepStackL: }}", "dslight.components.DeepStackL", None),
    "its name alone": ("model: {stacking: DeepStackL}", "dslight.components.DeepStackL", None),
    "a stranger": ("model: {stacking: {mine.parts.Mine: {a: 1}}}", "mine.parts.Mine", {"a": 1}),
}


@pytest.mark.parametrize(("text", "path", "arguments"), SHORT.values(), ids=SHORT)
def test_a_short_form_is_the_full_one(tmp_path, text, path, arguments):
    expected = {"class_path": path, **({} if arguments is None else {"init_args": arguments})}
    assert composed(tmp_path, text)["model"]["stacking"] == expected


ELSEWHERE = {
    "data: {views: {GridViews: {rows: 1}}}": ("data.views", "dslight.data.images.GridViews"),
    "stage: {optimizer: {SGD: {momentum: 0.9}}}": ("stage.optimizer", "torch.optim.SGD"),
    "trainer: {strategy: {Sharded: }}": ("trainer.strategy", "dslight.train.Sharded"),
    "trainer: {strategy: Sharded}": ("trainer.strategy", "dslight.train.Sharded"),
    "data: {val: {x: {metric: {ANLS: {}}}}}": ("data.val.x.metric", "dslight.metrics.ANLS"),
    "trainer: {strategy: {DDPStrategy: }}": ("trainer.strategy", "lightning.pytorch.strategies.DDPStrategy"),
    "trainer: {callbacks: [{Timer: {duration: 1}}]}": ("trainer.callbacks.0", "lightning.pytorch.callbacks.Timer"),
    "model: {stacking: {DeepStackL: {operation: {GatedAdd: {init: 1.0}}}}}": (
        "model.stacking.init_args.operation",
        "dslight.components.GatedAdd",
    ),
}


@pytest.mark.parametrize(("text", "key", "path"), [(text, *found) for text, found in ELSEWHERE.items()])
def test_every_place_of_a_class_knows_its_package(tmp_path, text, key, path):
    node = composed(tmp_path, text)
    for step in key.split("."):
        node = node[int(step)] if step.isdigit() else node[step]
    assert node["class_path"] == path


def test_names_that_are_no_classes_stay(tmp_path):
    recipe = composed(tmp_path, "data: {val: {MMMU: {root: x}}}\ntrainer: {strategy: auto}")
    assert recipe["data"]["val"]["MMMU"] == {"root": "x"}
    assert recipe["trainer"]["strategy"] == "auto"


def test_short_and_full_forms_merge_and_override_each_other(tmp_path):
    text = "model: {stacking: {DeepStackL: {crops: 2, start: 1}}}"
    full = "model: {stacking: {class_path: dslight.components.DeepStackL, init_args: {crops: 2, start: 1}}}"
    assert recipe_hash(composed(tmp_path, text)) == recipe_hash(composed(tmp_path, full))
    overrides = ["model.stacking.DeepStackL.start=0", "model.stacking.init_args.interval=2"]
    arguments = {"crops": 2, "start": 0, "interval": 2}
    for form in (text, full):
        assert composed(tmp_path, form, *overrides)["model"]["stacking"]["init_args"] == arguments
    other = composed(tmp_path, text, "model.stacking.LowResolution.tap=-2")["model"]["stacking"]
    assert other == {"class_path": "dslight.components.LowResolution", "init_args": {"tap": -2}}
    (tmp_path / "again.yaml").write_text(to_yaml(composed(tmp_path, text)))
    assert differences(compose(tmp_path / "again.yaml"), composed(tmp_path, text)) == []


MESSAGES = {
    "DeepStackL: {crop: 4}": "model.stacking.DeepStackL.crop: there is no such argument; did you mean crops?",
    "DeepStackL: {start: 9}": "model.stacking.DeepStackL.start: 4 stacks at layers 9, 10, 11, 12 need 13 layers",
    "DeepStackL: {operation: {GatedAdd: {int: 1}}}": "model.stacking.DeepStackL.operation.GatedAdd.int: there",
    "DeepStackX: {}": "model.stacking.DeepStackX: dslight.components has no DeepStackX; did you mean DeepStack",
    "class_path: dslight.components.DeepStackL, init_args: {crop: 4}": "model.stacking.init_args.crop: there",
}


@pytest.mark.parametrize(("text", "said"), MESSAGES.items())
def test_a_message_says_the_key_as_it_was_written(tmp_path, text, said):
    with pytest.raises(RecipeError) as refused:
        check(composed(tmp_path, f"model: {{stacking: {{{text}}}}}\ndata: {{views: null}}"))
    assert str(refused.value).startswith(said)


def test_an_old_argument_works_with_a_word_and_never_beside_its_new_name(tmp_path):
    text = "model: {stacking: {DeepStackL: {num_stacks: 3}}}"
    with pytest.warns(FutureWarning, match=r"model\.stacking\.init_args\.num_stacks: DeepStackL calls it crops now"):
        recipe = composed(tmp_path, text)
    assert recipe["model"]["stacking"]["init_args"] == {"crops": 3}
    with pytest.warns(FutureWarning):
        recipe = composed(tmp_path, text.replace("num_stacks", "crops"), "model.stacking.init_args.num_stacks=2")
    assert recipe["model"]["stacking"]["init_args"] == {"crops": 2}
    with pytest.raises(RecipeError, match=r"^model\.stacking\.init_args\.num_stacks: is the old name of crops, which"):
        composed(tmp_path, "model: {stacking: {DeepStackL: {num_stacks: 3, crops: 3}}}")


def test_a_number_is_a_parts_learning_rate(tmp_path):
    short = composed(tmp_path, "stage: {train: {projector: 2.0e-3}}", "stage.train.language_model=5e-4")
    train = short["stage"]["train"]
    assert train["projector"] == {"lr": 2e-3, "weight_decay": 0.02}  # what the base says of it stays
    assert train["language_model"] == {"lr": 5e-4, "weight_decay": 0.02}
    check(short)


def test_a_short_form_in_a_grid_and_a_variant(tmp_path):
    (tmp_path / "ablation.yaml").write_text(
        f"""bases: [{QUICKSTART / "deepstack_l.yaml"}]
name: short
variants:
  plain: {{}}
  block: {{model: {{stacking: {{DeepStackL: {{sampler: block}}}}}}}}
grid: {{model.stacking.DeepStackL.start: [0, 1]}}
"""
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runs = expand(tmp_path / "ablation.yaml").runs
    arguments = [run.recipe["model"]["stacking"]["init_args"] for run in runs]
    assert [(one["start"], one["sampler"], one["crops"]) for one in arguments] == [
        (0, "2d", 4), (1, "2d", 4), (0, "block", 4), (1, "block", 4)
    ]  # fmt: skip
    assert [run.run_dir.name for run in runs[:2]] == ["start=0", "start=1"]
    with pytest.raises(RecipeError, match="which the grid sets too"):
        expand(tmp_path / "ablation.yaml", ["variants.block.model.stacking.init_args.start=2"])
