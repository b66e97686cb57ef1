"""A wrong recipe is refused before a weight is read: by the key's path, the value, and what is possible.

Every case goes through ``dslight fit``. Its weights file does not exist, its language model's checkpoint does not
either, so a message about another key proves that none of them was looked for.
"""

import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from said import messages
from torch import zeros

from dslight.cli import main
from dslight.components import Component
from dslight.recipe import schema
from dslight.recipe.build import build, check
from dslight.recipe.compose import compose, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import Section
from dslight.run import fit

RECIPES = Path(__file__).parents[2] / "recipes"
NO_FILE = "no/such/projector.safetensors"


def paths(names: str, module: str = "dslight.components") -> str:
    """Class names as a message lists them."""
    return ", ".join(f"{module}.{name}" for name in names.split())


STACKINGS = paths(
    "ChannelConcat CrossAttention DeepStack DeepStackHD DeepStackL DeepStackTaps DeepStackV LowResolution "
    "SequenceConcat"
)
PROJECTORS = paths("AttentionPoolProjector AveragePoolProjector CAbstractorProjector") + "..."  # there are more
ENCODERS = paths("FusedEncoder HFVisionEncoder NaFlexEncoder NativeVisionEncoder TimmEncoder TimmFeatureMaps")
POLICIES = paths("AnyResViews AspectGridViews GridViews HDViews", "dslight.data.images") + "..."  # there are more
KEYS = (
    "name, seed, run_dir, model, component, objective, weights, stage, data, trainer, checkpoint_every, "
    "checkpoint_keep, checkpoint_holds, validate_every, diagnostics, hub_push"
)
TRAIN = "stage.train.projector"
LM = "model.language_model.init_args"
ENCODER = "model.vision_encoder.init_args"
STACKING = "model.stacking.init_args"


def _base(recipe: str, pages: Path, **more: Any) -> dict[str, Any]:
    data = [f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}"]
    return compose(RECIPES / recipe, [*data, *(f"{key}={value}" for key, value in more.items())])


@pytest.fixture(scope="module")
def model_recipe(pages) -> dict[str, Any]:
    recipe = _base("quickstart/deepstack_l.yaml", pages)
    recipe["weights"] = {"projector": NO_FILE}
    recipe["model"]["language_model"]["init_args"] |= {
        "pretrained": "no/such/checkpoint",
        "tokenizer": str(pages / "tokenizer"),
    }
    return recipe


@pytest.fixture(scope="module")
def component_recipe(pages) -> dict[str, Any]:
    return _base("quickstart/encoder.yaml", pages) | {"weights": {"vision_encoder": NO_FILE}}


@pytest.fixture
def refusal(tmp_path, capsys) -> Callable[..., str]:
    """``refusal(recipe, *changes)``: the message of ``dslight fit``. ``-key`` takes a key out, ``key=value`` "
    "sets it."""

    def run(recipe: dict[str, Any], *changes: str) -> str:
        recipe = deepcopy(recipe) | {"run_dir": str(tmp_path / "run")}
        for change in changes:
            if change.startswith("-"):
                *parents, last = change[1:].split(".")
                node = recipe
                for parent in parents:
                    node = node[parent]
                del node[last]
        (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
        code = main(["fit", str(tmp_path / "recipe.yaml"), *(change for change in changes if change[0] != "-")])
        captured = capsys.readouterr()
        assert code == 1
        assert captured.out == ""
        assert not (tmp_path / "run").exists()
        said = messages(captured.err)
        assert said.startswith("dslight: ")
        assert "Traceback" not in said
        return said.removeprefix("dslight: ").rstrip("\n")

    return run


def agree(message: str, expected: str) -> None:
    """Equal; or, if ``expected`` ends in dots, equal up to there (the rest is a library's)."""
    assert "\n" not in message
    if expected.endswith("..."):
        assert message[: len(expected) - 3] == expected[:-3]
    else:
        assert message == expected


def test_the_recipe_of_these_tests_lacks_nothing_but_its_weights(model_recipe, component_recipe, refusal):
    assert refusal(model_recipe) == f"weights.projector: there is no file {NO_FILE}"
    assert refusal(component_recipe) == f"weights.vision_encoder: there is no file {NO_FILE}"


MISSPELT = {
    "variants={}": "variants: this is an ablation, not one run's recipe; `dslight sweep FILE` runs it",
    "modell={}": f"modell: a recipe has no such key; did you mean model?; it has {KEYS}",
    "model.projecter={}": "model.projecter: there is no such argument; did you mean projector?; it takes "
    "vision_encoder, "
    "projector, stacking, language_model",
    "model.stacking.init_arg={}": "model.stacking.init_arg: beside class_path there is only init_args; "
    "did you mean init_args?",
    "model.stacking.num_stacks=4": "model.stacking.num_stacks: beside class_path there is only init_args; "
    "put the arguments of a class under init_args",
    f"{ENCODER}.nam=x": f"{ENCODER}.nam: there is no such argument; did you mean name?; it takes name, pretrained, "
    "model_args, mean, std, sincos_position",
    f"{ENCODER}.model_args.img_sise=16": f"{ENCODER}.model_args: ...",
    "model.projector.init_args.layer=2": "model.projector.init_args.layer: there is no such argument; "
    "did you mean layers?; it takes layers, per_level, norm, eps",
    f"{STACKING}.num_stack=4": f"{STACKING}.num_stack: there is no such argument; did you mean num_stacks?; it takes "
    "crops, start, interval, sampler, source, tap, position, sites, operation, num_stacks",
    f"{LM}.confg={{}}": f"{LM}.confg: there is no such argument; did you mean config?; it takes pretrained, config, "
    "tokenizer, dtype, attention, trust_remote_code, bidirectional",
    f"{LM}.config.hiden_size=64": f"{LM}.config.hiden_size: LlamaConfig has no such field...",
    "weights.projecter=x": "weights.projecter: there is no such part; did you mean projector?; the parts are "
    "vision_encoder, projector, stacking, language_model",
    "stage.shedule=cosine": "stage.shedule: there is no such argument; did you mean schedule?; it takes train, "
    "optimizer, "
    "schedule, warmup_ratio, warmup_steps, frozen",
    "stage.train.projecter.lr=1": "stage.train.projecter: there is no such part; the parts are vision_encoder, "
    "projector, "
    "stacking, language_model",
    f"{TRAIN}.lrr=1": f"{TRAIN}.lrr: there is no such argument; did you mean lr?; it takes lr, "
    "weight_decay, layer_decay, lora, checkpointing, compile, layers, only, frozen",
    f"{TRAIN}.weight_dekay=1": f"{TRAIN}.weight_dekay: there is no such argument; did you mean weight_decay?; "
    "it takes lr, weight_decay, layer_decay, lora, checkpointing, compile, layers, only, frozen",
    "stage.optimizer.init_args.beta=[0.9,0.9]": "stage.optimizer.init_args.beta: there is no such argument; "
    "did you mean betas?...",
    "data.trian=[]": "data.trian: there is no such argument; did you mean train?",
    "data.train=[{rot: x}]": "data.train.0.rot: there is no such argument; did you mean root?; it takes root, weight",
    "data.val.pages.limits=3": "data.val.pages.limits: there is no such argument; did you mean limit?; it takes root, "
    "limit, loss, benchmark, protocol, suffix, max_new_tokens, metric, frames, thinking",
    "data.views.init_args.row=2": "data.views.init_args.row: there is no such argument; did you mean rows?; it takes "
    "rows, cols, resample, crops_from, fit, pad_color",
    "trainer.max_step=3": "trainer.max_step: there is no such argument; did you mean max_steps?",
    "trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy, init_args: "
    "{data_parallel: 8}}": "trainer.strategy.init_args.data_parallel: there is no such argument; "
    "did you mean data_parallel_size?...",
    "trainer.callbacks=[{class_path: lightning.pytorch.callbacks.Timer}, {class_path: "
    "lightning.pytorch.callbacks.EarlyStopping, init_args: {monitr: x}}]": "trainer.callbacks.1.init_args.monitr: "
    "there is no such argument; did you mean monitor?...",
}


@pytest.mark.parametrize(("change", "expected"), MISSPELT.items(), ids=lambda text: text.split("=")[0].split(":")[0])
def test_a_misspelt_key_is_named_with_its_path_at_every_level(change, expected, model_recipe, refusal):
    agree(refusal(model_recipe, change), expected)


COMPONENT_FAULTS = {
    "component.init_args.nam=x": "component.init_args.nam: there is no such argument; did you mean name?...",
    "component.class_path=dslight.components.TimEncoder": "component.class_path: dslight.components has no TimEncoder; "
    "did you mean TimmEncoder?",
    "objective.init_args.num_clases=3": "objective.init_args.num_clases: there is no such argument; "
    "did you mean num_classes?; it takes num_classes, crops, one_head, parts",
    "objective.init_args.width=3": "objective.init_args.width: there is no such argument; it takes num_classes, crops, "
    "one_head, parts",
    "-objective.init_args.num_classes": "objective.init_args.num_classes: missing; PatchClassification needs it",
    "objective=null": "objective: missing; a `component` is fitted alone with an objective",
    "-objective": "objective: missing; a `component` is fitted alone with an objective",
    "stage.train.projector.lr=1": "stage.train.projector: there is no such part; the parts are vision_encoder, "
    "objective",
    "data.template=plain": "data.template: there is no such argument...",
    "model={}": "model: a recipe describes a `model`, or a `component` that is fitted alone; this has both",
    "-component": "model: a recipe describes a `model`, or a `component` that is fitted alone; this has neither",
}


@pytest.mark.parametrize(("change", "expected"), COMPONENT_FAULTS.items(), ids=list(COMPONENT_FAULTS))
def test_a_fault_in_a_component_that_is_fitted_alone_is_named(change, expected, component_recipe, refusal):
    agree(refusal(component_recipe, change), expected)


WRONG_TYPE = {
    "seed=one": "seed: expected a whole number, got 'one'",
    "seed=-1": "seed: must be in 0..4294967295, got -1",
    "seed=true": "seed: expected a whole number, got True",
    "name=3": "name: expected a string, got 3",
    "checkpoint_every=0": "checkpoint_every: must be at least 1 step, got 0",
    "checkpoint_keep=0": "checkpoint_keep: must be at least 1 checkpoint, got 0",
    "data.val={a/b: {root: x}}": "data.val.a/b: names a file of the run's folder; use letters, digits, _, - and .",
    "validate_every=0": "validate_every: must be at least 1 step, got 0",
    "model=MyModel": "model.MyModel: dslight has no MyModel; a class of your own is named with its package: "
    "my_package.MyModel",
    "weights=x.safetensors": "weights: expected a mapping, got 'x.safetensors'",
    "weights.projector=3": "weights.projector: expected the path of a checkpoint, got 3",
    f"{STACKING}.crops=many": f"{STACKING}.crops: expected a whole number, got 'many'",
    f"{STACKING}.sampler=2dd": f"{STACKING}.sampler: expected 2d, block, 1d, patch_merge, pool, identity or "
    "corner, got '2dd'; did you mean 2d?",
    f"{STACKING}.tap=finale": f"{STACKING}.tap: expected a whole number, a number or final, got "
    "'finale'; did you mean final?",
    "model.projector.init_args.layers=two": "model.projector.init_args.layers: expected a whole number, got 'two'",
    f"{ENCODER}.mean=[1, 2]": f"{ENCODER}.mean: expected a list of 3 values, got [1, 2]",
    f"{ENCODER}.pretrained=perhaps": f"{ENCODER}.pretrained: expected true or false, got 'perhaps'",
    f"{LM}.config=llama": f"{LM}.config: expected a mapping or null, got 'llama'",
    f"{LM}.config.hidden_size=abc": "model.language_model...",
    f"{LM}.dtype=floot32": f"{LM}.dtype: 'floot32' is no torch dtype; float32, bfloat16 and float16 are",
    f"{TRAIN}.lr=fast": f"{TRAIN}.lr: expected a number, got 'fast'",
    f"{TRAIN}.checkpointing=perhaps": f"{TRAIN}.checkpointing: expected true or false, got 'perhaps'",
    f"{TRAIN}.lora.r=many": f"{TRAIN}.lora.r: expected a whole number, got 'many'",
    f"{TRAIN}.lora.rank=3": f"{TRAIN}.lora.rank: there is no such argument; it takes r, alpha, target_modules, dropout",
    f"{TRAIN}=[0.1]": f"{TRAIN}: expected a mapping with lr, weight_decay, layer_decay, lora, "
    "checkpointing, compile, layers, only, frozen, got [0.1]",
    "stage.train=[projector]": "stage.train: expected a mapping, got ['projector']",
    "stage.warmup_steps=few": "stage.warmup_steps: expected a whole number or null, got 'few'",
    "stage.optimizer.init_args.betas=[0.9]": "stage.optimizer.init_args.betas: expected a list of 2 values, got [0.9]",
    "data.train=[{root: a, weight: heavy}]": "data.train.0.weight: expected a number, got 'heavy'",
    "data.train=[a, 3]": "data.train.1: expected a mapping with root, weight or a string, got 3",
    "data.val.pages.limit=some": "data.val.pages.limit: expected a whole number or null, got 'some'",
    "data.global_batch_size=large": "data.global_batch_size: expected a whole number, got 'large'",
    "data.template=vicunia_v1": "data.template: expected plain, bare, vicuna_v1, llama_2, phi3, chatml or "
    "tokenizer, the class_path and init_args of a Template or null, got "
    "'vicunia_v1'; did you mean vicuna_v1?",
    "trainer=cpu": "trainer: expected a mapping, got 'cpu'",
    "trainer.max_steps=all": "trainer.max_steps: expected a whole number, got 'all'",
}


@pytest.mark.parametrize(("change", "expected"), WRONG_TYPE.items(), ids=list(WRONG_TYPE))
def test_a_value_of_the_wrong_type_is_named_with_what_is_expected(change, expected, model_recipe, refusal):
    agree(refusal(model_recipe, change), expected)


def test_validations_are_counted_in_one_way(model_recipe, refusal):
    for key in ("val_check_interval", "check_val_every_n_epoch"):
        said = refusal(model_recipe, "validate_every=5", f"trainer.{key}=5")
        assert said == f"trainer.{key}: validate_every says when; name one of them"


WRONG_CLASS = {
    "model.stacking.class_path=dslight.components.MLPProjector": "model.stacking.class_path: "
    f"dslight.components.MLPProjector is no StackingScheduler; there are {STACKINGS}",
    "model.projector.class_path=dslight.components.DeepStackL": "model.projector.class_path: "
    f"dslight.components.DeepStackL is no Projector; there are {PROJECTORS}",
    "model.vision_encoder.class_path=dslight.components.VisionEncoder": "model.vision_encoder.class_path: "
    f"dslight.components.VisionEncoder is abstract; there are {ENCODERS}",
    "model.stacking.class_path=json.dumps": "model.stacking.class_path: json.dumps is no StackingScheduler; there "
    f"are {STACKINGS}",
    "stage.optimizer.class_path=torch.nn.Linear": "stage.optimizer.class_path: torch.nn.Linear is no Optimizer",
    "data.views.class_path=dslight.components.LowResolution": "data.views.class_path: dslight.components.LowResolution "
    f"is no ViewPolicy; there are {POLICIES}",
    "trainer.callbacks=[{class_path: torch.nn.Linear}]": "trainer.callbacks.0.class_path: torch.nn.Linear is no "
    "Callback",
    "model.stacking.class_path=dslight.components.DeepStackLL": "model.stacking.class_path: dslight.components has no "
    "DeepStackLL; did you mean DeepStackL?",
    "model.stacking.class_path=dslight.component.DeepStackL": "model.stacking.class_path: cannot import "
    "dslight.component.DeepStackL, ModuleNotFoundError: No module named 'dslight.component'",
    "model.projector.class_path=nowhere.MyProjector": "model.projector.class_path: cannot import nowhere.MyProjector, "
    "ModuleNotFoundError: No module named 'nowhere'",
    "stage.optimizer.class_path=torch.optim.Adamw": "stage.optimizer.class_path: torch.optim has no Adamw; "
    "did you mean AdamW?",
    "model.projector.class_path=dslight.components.MLP": "model.projector.class_path: dslight.components has no MLP; "
    "did you mean MLPProjector?",
    "stage.optimizer.class_path=torch.optim.AdmaW": "stage.optimizer.class_path: torch.optim has no AdmaW; "
    "did you mean AdamW?",
    "trainer.callbacks=[{class_path: lightning.pytorch.callbacks.EarlyStoping}]": "trainer.callbacks.0.class_path: "
    "lightning.pytorch.callbacks has no EarlyStoping; did you mean EarlyStopping?",
    "-model.stacking.class_path": f"model.stacking.class_path: missing; name a StackingScheduler; there are "
    f"{STACKINGS}",
}


@pytest.mark.parametrize(("change", "expected"), WRONG_CLASS.items(), ids=list(WRONG_CLASS))
def test_a_class_that_does_not_belong_or_does_not_exist_is_named_with_those_that_do(
    change, expected, model_recipe, refusal
):
    agree(refusal(model_recipe, change), expected)


MISSING = {
    "-model": "model: a recipe describes a `model`, or a `component` that is fitted alone; this has neither",
    "-model.vision_encoder": "model.vision_encoder: missing; VLM needs it",
    "-model.projector": "model.projector: missing; VLM needs it",
    "-model.stacking": "model.stacking: missing; VLM needs it",
    "model.language_model=null": "model.language_model: missing; VLM needs it",
    f"-{ENCODER}.name": f"{ENCODER}.name: missing; TimmEncoder needs it",
    f"-{LM}.config.model_type": f"{LM}.config.model_type: missing; name an architecture of transformers...",
    "-stage": "stage: missing; name the parts that train: stage.train.projector.lr=1e-3",
    "-stage.train": "stage.train: missing; Stage needs it",
    f"-{TRAIN}.lr": f"{TRAIN}.lr: missing; PartTraining needs it",
    "-data": "data.train: names no source",
    "-data.train": "data.train: names no source",
    "data.train=[{weight: 2}]": "data.train.0.root: missing; Source needs it",
}


@pytest.mark.parametrize(("change", "expected"), MISSING.items(), ids=list(MISSING))
def test_what_is_missing_is_named(change, expected, model_recipe, refusal):
    agree(refusal(model_recipe, change), expected)


DEEPSTACK_V = "model.stacking={class_path: dslight.components.DeepStackV, init_args: {crops: 4, start: %s}}"
UNPAD = "model.stacking={class_path: dslight.components.SequenceConcat, init_args: {newline: true, unpad: true}}"
ATTENDING = "model.stacking={class_path: dslight.components.CrossAttention}"
MISFITS = {
    f"{STACKING}.start=3": f"{STACKING}.start: 4 stacks at layers 3, 4, 5, 6 need 7 layers; the language model has 6",
    f"{STACKING}.interval=2": f"{STACKING}.start: 4 stacks at layers 0, 2, 4, 6 need 7 layers; the language "
    "model has 6",
    f"{STACKING}.start=-1": f"{STACKING}.start: must be at least 0, got -1",
    f"{STACKING}.num_stacks=3": f"{STACKING}.crops: 3 stacks cannot take the 4 crops that the views may cut",
    "data.views.init_args.cols=3": f"{STACKING}.crops: 4 stacks cannot take the 6 crops that the views may cut",
    "data.views.init_args.rows=0": "data.views.init_args.rows: 0; 1 or more (SingleView has no crops)",
    "data.order.window=-2": "data.order.window: must be at least 1, got -2",
    "data.order={pack: true, group_by: [length]}": "data.order.group_by: length has no use with pack, whose rows "
    "are all about max_length",
    "data.order.class_path=foo": "data.order.class_path: there is no such argument; it takes window, group_by, pack, "
    "pack_window",
    "data.views={class_path: dslight.data.images.SingleView}": "model.stacking: DeepStackL looks at high-resolution "
    "crops, but the views have none: choose views with a grid",
    f"{STACKING}.tap=9": f"{STACKING}.tap: tap 9 is beyond the encoder's depth: it has 5 layers, so taps 0 to 5",
    DEEPSTACK_V % 3: f"{STACKING}.start: 4 stacks at layers 3, 4, 5, 6 need 7 layers; the vision encoder has 5",
    DEEPSTACK_V
    % "1, tap: 2": f"{STACKING}.tap: features are read at layer 2, before the last stack is added at layer 4",
    f"{ENCODER}.name=vit_tinny": f"{ENCODER}.name: timm has no model 'vit_tinny'; similar: ...",
    f"{ENCODER}.name=resnet18": "model.vision_encoder...",
    f"{LM}.config.model_type=lama": f"{LM}.config.model_type: transformers has no architecture 'lama'...",
    f"{LM}.config.num_attention_heads=5": "model.language_model...",
    f"{LM}.attention=flush": "model.language_model...",
    f"{LM}.attention=flash_attention_2": f"{LM}.attention: flash_attention_2 needs the package flash-attn, which is "
    "not installed here; sdpa needs nothing, auto takes FlashAttention where it is installed",
    "model.projector.init_args.layers=0": "model.projector.init_args.layers: a projector needs at least 1 layer, got 0",
    UNPAD: f"{STACKING}."
    "unpad: would leave out parts of images that are squashed, not padded; set unpad: false, or the views' fit: pad",
    "stage.train={}": "stage.train: nothing trains; give at least one part a learning rate",
    f"{TRAIN}.lr=0": f"{TRAIN}.lr: must be above 0, got 0.0; leave the part out to freeze it",
    f"{TRAIN}.lr=-0.1": f"{TRAIN}.lr: must be above 0, got -0.1; leave the part out to freeze it",
    f"{TRAIN}.lr=.nan": f"{TRAIN}.lr: must be above 0, got nan; leave the part out to freeze it",
    f"{TRAIN}.layer_decay=0.9": f"{TRAIN}.layer_decay: MLPProjector has no layers",
    f"{TRAIN}.layer_decay=1.5": f"{TRAIN}.layer_decay: must be above 0 and at most 1, got 1.5",
    f"{TRAIN}.weight_decay=-1": f"{TRAIN}.weight_decay: must be at least 0, got -1.0",
    f"{TRAIN}.checkpointing=true": f"{TRAIN}.checkpointing: MLPProjector has no layers to treat one by one; leave it "
    "out",
    "stage.train.language_model.compile=nvfuzer": "stage.train.language_model.compile: torch has no backend "
    "'nvfuzer'; true, or one of ...",
    "stage.train.language_model.lora.r=0": "stage.train.language_model.lora.r: must be at least 1, got 0",
    "stage.train.language_model.lora.dropout=1": "stage.train.language_model.lora.dropout: must be in 0..1, got 1.0",
    "stage.train.language_model.lora.target_modules=[q_prj]": "stage.train.language_model.lora.target_modules: "
    "'q_prj' is no linear layer; there are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
    "stage.train.language_model.lora.target_modules=all": "stage.train.language_model.lora.target_modules: expected "
    "all-linear or a list of names, got 'all'",
    "stage.frozen.projector.compile=true": "stage.frozen.projector: it trains (train.projector); say there how it runs",
    "stage.frozen.tower.compile=true": "stage.frozen.tower: there is no such part; the parts are vision_encoder, "
    "projector, stacking, language_model",
    "stage.train.stacking.lr=1": "stage.train.stacking: DeepStackL has no parameters to train",
    "stage.schedule=cosin": "stage.schedule: 'cosin' is none of ...",
    "stage.warmup_ratio=2": "stage.warmup_ratio: must be in 0..1, got 2.0",
    "trainer.max_steps=-5": "trainer.max_steps: must be at least 0, or -1 for no limit; got -5",
    "stage.warmup_steps=-1": "stage.warmup_steps: must be at least 0, got -1",
    "data.micro_batch_size=5": "data.global_batch_size: 32 is no multiple of 1 ranks x data.micro_batch_size 5",
    "data.global_batch_size=0": "data.global_batch_size: must be at least 1, got 0",
    "data.val_batch_size=0": "data.val_batch_size: must be at least 1, got 0",
    "data.val.pages.benchmark=vqa2": "data.val.pages.benchmark: there is no 'vqa2'; did you mean vqav2?; there are ...",
    "data.val.pages.protocol=offical": "data.val.pages.protocol: 'offical' is not one of ...",
    "data.val.pages={root: x, benchmark: mmvet, protocol: x}": "data.val.pages.protocol: mmvet has none, so ...",
    "data.val.pages={root: x, frames: 0}": "data.val.pages.frames: must be at least 1, got 0",
    "data.val.pages={root: x, thinking: true}": "data.val.pages.thinking: only data.template: tokenizer knows of "
    "thoughts, not bare",
    "data.val.pages={root: x, loss: true, frames: 2}": "data.val.pages.frames: has no effect beside loss, for which "
    "nothing is asked",
    "data.val.pages={root: x, loss: true, suffix: x}": "data.val.pages.suffix: has no effect beside loss, for which "
    "nothing is asked",
    "data.val.pages.max_new_tokens=0": "data.val.pages.max_new_tokens: must be at least 1, got 0",
    "data.val.pages.metric=torchmetrics.SumMetric": "data.val.pages.metric: SumMetric is not a subclass of "
    "dslight.metrics.TextMetric",
    "data.val.pages={root: x, metric: {ExactMatch: {}}, protocol: x}": "data.val.pages.protocol: 'x' has no effect "
    "beside metric; name it as its argument",
    "objective={class_path: dslight.components.PatchClassification}": "objective: is for a `component` that is fitted "
    "alone; a `model` trains on its next-token loss",
    "component={}": "model: a recipe describes a `model`, or a `component` that is fitted alone; this has both",
}


@pytest.mark.parametrize(("change", "expected"), MISFITS.items(), ids=list(MISFITS))
def test_parts_that_do_not_fit_each_other_are_refused_with_the_value_and_the_limit(
    change, expected, model_recipe, refusal
):
    removed = ["-stage.train"] if change == "stage.train={}" else []  # {} laid over a mapping changes nothing
    agree(refusal(model_recipe, *removed, change), expected)


OPTIMIZER = "stage.optimizer.init_args"
TRAINING = {
    "trainer.accumulate_grad_batches=2": "trainer.accumulate_grad_batches: 2 would have no effect; it follows from "
    "data.global_batch_size, data.micro_batch_size and the number of processes",
    f"{OPTIMIZER}.lr=0.1": f"{OPTIMIZER}.lr: 0.1 would have no effect; each part has its own, stage.train.PART.lr",
    f"{OPTIMIZER}.weight_decay=0.1": f"{OPTIMIZER}.weight_decay: 0.1 would have no effect; each part has its own, "
    "stage.train.PART.weight_decay",
    "stage.optimizer={class_path: torch.optim.Muon}": "stage.optimizer: Muon only supports 2D parameters ...",
    "stage.optimizer={class_path: torch.optim.LBFGS}": "stage.optimizer: LBFGS doesn't support ...",
    "stage.optimizer={class_path: torch.optim.SparseAdam}": "stage.optimizer: SparseAdam takes sparse gradients alone, "
    "and no part has any",
    "stage.schedule=reduce_lr_on_plateau": "stage.schedule: reduce_lr_on_plateau follows a score, and here ...",
    "stage.schedule=greedy": "stage.schedule: greedy follows a score, and here ...",
    "stage.schedule=cosine_with_min_lr": "stage.schedule.min_lr_rate: missing; cosine_with_min_lr needs it: "
    "{name: cosine_with_min_lr, min_lr_rate: ...}",
    "stage.schedule={name: cosine_with_min_lr, min_lr: 1e-5}": "stage.schedule.min_lr: each part has a learning rate "
    "of its own; say min_lr_rate, a share of it",
    "stage.schedule=warmup_stable_decay": "stage.schedule.num_decay_steps: missing; warmup_stable_decay needs it: ...",
    "stage.schedule={name: warmup_stable_decay, num_decay_steps: 200}": "stage.schedule.num_decay_steps: 200, after 50 "
    "steps of warm-up, is more than all 240 steps",
    "stage.schedule={name: cosine, cycles: 2}": "stage.schedule.cycles: there is no such argument; did you "
    "mean num_cycles?; cosine takes "
    "num_cycles",
    "stage.schedule={name: constant, by: 2}": "stage.schedule.by: there is no such argument; constant takes no "
    "arguments",
    "stage.schedule={num_cycles: 2}": "stage.schedule.name: missing; it is one of constant, ...",
    "trainer.max_epochs=-1": "trainer.max_steps: the training would have no end, and a schedule needs to know it; "
    "name max_steps or max_epochs",
    "trainer.max_time=soon": "trainer.max_time: ...",
    "trainer.callbacks=[{class_path: lightning.pytorch.callbacks.Timer, init_args: {duration: '00:00:01:00'}}]": (
        "trainer.callbacks.0: Timer: it would call a run finished whose time is up; say trainer.max_time"
    ),
}


@pytest.mark.parametrize(("change", "expected"), TRAINING.items(), ids=list(TRAINING))
def test_a_training_that_cannot_work_or_keys_without_effect_are_refused(change, expected, model_recipe, refusal):
    plain = deepcopy(model_recipe)
    if "optimizer={" in change:
        del plain["stage"]["optimizer"]
    plain["trainer"].pop("max_epochs", None)
    plain["trainer"]["max_steps"] = -1 if "no end" in expected else 240
    agree(refusal(plain, change), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_that_works_is_accepted_without_memory(fused, model_recipe):
    model_recipe["stage"]["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"fused": fused}}
    assert check(model_recipe).model.stage is not None


def test_a_newline_token_that_would_stay_zero_is_refused(model_recipe, refusal, tmp_path):
    newline = "model.stacking={class_path: dslight.components.SequenceConcat, init_args: {newline: true}}"
    agree(
        refusal(model_recipe, newline),
        f"{STACKING}.newline: the newline token starts at zero and would stay there; give stage.train.stacking a "
        "learning rate, or load one (weights.model, weights.stacking)",
    )
    (tmp_path / "newline.yaml").write_text(to_yaml(model_recipe))
    trained = compose(tmp_path / "newline.yaml", [newline, "stage.train.stacking.lr=1e-3"])
    assert check(trained).model.stacking.newline is not None


def test_a_projector_without_room_for_the_widths_is_told_so(model_recipe, refusal, tmp_path, monkeypatch):
    (tmp_path / "cramped.py").write_text(
        "from dslight.components import Projector\n"
        "class Cramped(Projector):\n"
        "    def __init__(self, hidden: int = 32):\n"
        "        super().__init__([4], 4)\n"
        "    def forward(self, maps):\n"
        "        return maps\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    agree(
        refusal(model_recipe, "model.projector={class_path: cramped.Cramped, init_args: {hidden: 8}}"),
        "model.projector.init_args: Cramped is called with 2 arguments of the library's first (in_widths, out_width), "
        "so its constructor has to take them before its own",
    )


def test_packing_that_would_mix_documents_is_refused(model_recipe, refusal):
    pack = "data.order.pack=true"
    agree(
        refusal(model_recipe, f"{LM}.attention=flex_attention", pack),
        "data.order.pack: llama: attention 'flex_attention' takes no mask of documents; set attention to sdpa or "
        "eager; or do not pack",
    )
    agree(
        refusal(model_recipe, ATTENDING, "stage.train.stacking.lr=1e-3", pack),
        "data.order.pack: CrossAttention attends to the images of a whole row, so a document would see those of the "
        "others in it; do not pack, or choose a stacking that adds",
    )


def test_files_that_are_not_there_are_named_before_a_weight_is_read(model_recipe, pages, tmp_path, refusal):
    agree(refusal(model_recipe, "data.train=[/no/pages]"), "data.train[0].root: '/no/pages' is no folder...")
    agree(refusal(model_recipe, "data.val.more={root: /no/pages}"), "data.val.more.root: '/no/pages' is no folder...")
    agree(refusal(model_recipe, "data.train=[]"), "data.train: names no source")
    agree(refusal(model_recipe, f"data.train=[{tmp_path}]"), f"data.train[0].root: {tmp_path}...")
    questions, conversations = pages / "val", pages / "train"
    agree(
        refusal(model_recipe, f"data.train=[{questions}]"),
        f"data.train[0].root: {questions} holds questions; its records are for data.val",
    )
    agree(
        refusal(model_recipe, f"data.val.pages.root={conversations}"),
        f"data.val.pages.root: {conversations} holds no questions; its records are for training, or for "
        "their loss: `loss`",
    )
    agree(
        refusal(model_recipe, "data.global_batch_size=100"),
        "data.global_batch_size: 100 is more than the 48 items of an epoch; lower it or raise a weight",
    )
    agree(refusal(model_recipe, f"{LM}.tokenizer=/no/words"), f"{LM}.tokenizer: there is no folder /no/words")
    agree(refusal(model_recipe, f"{LM}.tokenizer={tmp_path}"), "model.language_model...")
    agree(
        refusal(model_recipe, f"{LM}.config.vocab_size=20"),
        f"{LM}.tokenizer: has 30 tokens, the language model embeds only 20",
    )


def test_a_shard_that_was_cut_is_named_before_a_weight_is_read(model_recipe, pages, tmp_path, refusal):
    shutil.copytree(pages / "train", tmp_path / "cut")
    shard = next((tmp_path / "cut").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:2000])
    agree(refusal(model_recipe, f"data.train=[{tmp_path / 'cut'}]"), f"data.train[0].root: {shard}: ...")


def test_weights_that_do_not_fit_are_refused_with_the_tensors(model_recipe, tmp_path, refusal):
    file = tmp_path / "projector.safetensors"
    save_file({"net.0.weight": zeros(64, 32), "net.0.bias": zeros(64), "net.2.weight": zeros(64, 64)}, file)
    changes = (f"-{LM}.pretrained", f"weights.projector={file}")
    lines = refusal(model_recipe, *changes).splitlines()
    assert lines == [
        f"weights.projector: {file} does not fit MLPProjector:",
        "  missing net.2.bias (64,)",
        "  net.0.weight is (64, 32) in the file, (64, 64) in the model",
    ]
    file.write_text("not a safetensors file")
    agree(refusal(model_recipe, *changes), f"weights.projector: {file} is no safetensors file (...")


def test_trainer_arguments_that_this_machine_cannot_fulfil_are_refused(component_recipe, refusal):
    agree(refusal(component_recipe, "-weights", "trainer.accelerator=abacus"), "trainer: ...")
    agree(
        refusal(component_recipe, "-weights", "trainer.devices=3"),
        "data.global_batch_size: 32 is no multiple of 3 ranks x data.micro_batch_size 10",
    )


STRANGER = """
import lightning.pytorch as pl
from dslight.components import LowResolution, MLPProjector, TimmEncoder

class Careless(TimmEncoder):
    def __init__(self, name: str, **more):
        super().__init__(name, **more)

class Failing(LowResolution):
    def __init__(self, amplitude: float = 1.0) -> None:
        super().__init__()
        raise ValueError(f"amplitude: {amplitude} is a bad choice" if amplitude else "no amplitude at all")
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch) -> None:
    (tmp_path / "stranger_parts.py").write_text(STRANGER)
    (tmp_path / "stranger_broken.py").write_text("1 / 0\nclass Part: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("stranger_parts", None)


@pytest.mark.usefixtures("stranger")
def test_a_strangers_class_is_checked_by_its_own_signature(component_recipe, refusal):
    at = "component.class_path=stranger_parts.Careless"
    keep = [f"component.init_args.{key}={value}" for key, value in (("name", "vit_tiny_patch16_224"),)]
    fits = "component.init_args.model_args={img_size: 16, patch_size: 4, embed_dim: 64, depth: 5, num_heads: 2}"
    assert refusal(component_recipe, at, *keep, fits) == f"weights.vision_encoder: there is no file {NO_FILE}"
    message = refusal(component_recipe, at, *keep, "component.init_args.model_arg={depth: 5}")
    assert message.startswith("component")
    assert "model_arg" in message


@pytest.mark.usefixtures("stranger")
def test_an_error_of_a_strangers_class_is_laid_at_its_own_key(model_recipe, refusal):
    failing = "model.stacking={class_path: stranger_parts.Failing, init_args: {amplitude: %s}}"
    agree(refusal(model_recipe, failing % 2), f"{STACKING}.amplitude: 2.0 is a bad choice")
    agree(refusal(model_recipe, failing % 0), "model.stacking: no amplitude at all")
    agree(
        refusal(model_recipe, "model.stacking.class_path=stranger_broken.Part"),
        "model.stacking.class_path: cannot import stranger_broken.Part, ZeroDivisionError: division by zero",
    )


def test_checking_needs_neither_memory_nor_weights_nor_data(model_recipe):
    recipe = deepcopy(model_recipe)
    recipe["data"]["train"], recipe["data"]["val"]["pages"]["root"] = ["/no/pages"], "/no/pages"
    experiment = check(recipe)
    assert {parameter.device.type for parameter in experiment.model.parameters()} == {"meta"}
    assert experiment.largest_grid == (2, 2)
    assert experiment.slots is not None
    assert experiment.slots((2, 2)) == 16


def test_one_batch_is_not_all_of_them(component_recipe):
    """The Trainer takes a number of batches (1) or a share of them (1.0).

    Which of the two jsonargparse makes of a 1 depends on what was imported before; here it has made the wrong one.
    """
    for value in (1, 1.0):
        recipe = component_recipe | {"trainer": component_recipe["trainer"] | {"limit_val_batches": value}}
        section = check(recipe).trainer
        section.config["trainer.limit_val_batches"] = 1.0
        assert type(vars(section.build())["limit_val_batches"]) is type(value)


def test_building_is_a_function_of_the_seed(component_recipe):
    recipe = {key: value for key, value in component_recipe.items() if key != "weights"}
    states = [build(recipe | {"seed": seed}).model.state_dict() for seed in (0, 0, 1)]
    assert all((states[0][name] == states[1][name]).all() for name in states[0])
    assert any((states[0][name] != states[2][name]).any() for name in states[0])


def test_a_recipe_is_checked_against_its_classes_once(component_recipe, monkeypatch):
    checked, real = [], schema.check_keys
    monkeypatch.setattr(schema, "check_keys", lambda recipe: checked.append(recipe) or real(recipe))
    build({key: value for key, value in component_recipe.items() if key != "weights"})
    assert len(checked) == 1


def test_what_a_section_makes_may_change_what_it_is_given(tmp_path, monkeypatch):
    (tmp_path / "growing.py").write_text(
        "from dslight.components import IdentityProjector\n"
        "class Growing(IdentityProjector):\n"
        "    def __init__(self, in_widths: list[int], out_width: int, sizes: list[int]):\n"
        "        super().__init__(in_widths, out_width)\n"
        "        sizes.append(1)\n"
        "        self.sizes = sizes\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    arguments = {"in_widths": [4], "out_width": 4, "sizes": [3]}
    section = Section("component", Component, {"class_path": "growing.Growing", "init_args": arguments})
    assert [section.build().sizes, section.build().sizes] == [[3, 1], [3, 1]]


def test_an_experiment_is_built_without_its_shards_where_none_is_read(component_recipe):
    recipe = deepcopy({key: value for key, value in component_recipe.items() if key != "weights"})
    recipe["data"]["train"] = ["/no/pages"]
    with pytest.raises(RecipeError, match=r"data\.train"):
        build(recipe)
    assert build(recipe, opens=None).encoder.grid == (4, 4)


def test_a_mesh_of_another_size_than_the_processes_is_refused_by_the_plan(capsys):
    file = str(Path(__file__).parents[2] / "recipes" / "paper" / "table1" / "deepstack_l_7b.yaml")
    sizes = "{data_parallel_size: 8, tensor_parallel_size: 1}"
    lightnings = f"{{class_path: lightning.pytorch.strategies.ModelParallelStrategy, init_args: {sizes}}}"
    assert main(["plan", file, "--no-cost", "trainer.num_nodes=4", f"trainer.strategy={lightnings}"]) == 1
    assert messages(capsys.readouterr().err).splitlines()[0] == (
        "dslight: trainer.strategy.init_args.data_parallel_size: 8 x tensor_parallel_size 1 is not the number of "
        "processes, 32 (trainer.devices x trainer.num_nodes)"
    )
    assert main(["plan", file, "--no-cost", "trainer.strategy.init_args.replicate=3"]) == 1
    assert messages(capsys.readouterr().err) == (
        "dslight: trainer.strategy.Sharded.replicate: 3 copies of the model cannot share 8 processes evenly; "
        "choose a divisor\n"
    )
    assert main(["plan", file]) == 0
    assert ": 8 ranks," in capsys.readouterr().out


def test_a_fit_parses_its_recipe_once(model_recipe, tmp_path, monkeypatch):
    recipe = deepcopy(model_recipe) | {"run_dir": str(tmp_path / "run")}
    recipe["model"]["language_model"]["init_args"].pop("pretrained")
    recipe.pop("weights")
    parsed = []
    made = Section.__init__
    monkeypatch.setattr(Section, "__init__", lambda self, key, *rest: (parsed.append(key), made(self, key, *rest))[1])
    monkeypatch.setattr(fit, "_train", lambda experiment, *rest: {"built": experiment})
    experiment = fit.fit(recipe)["built"]
    assert sorted(parsed) == sorted(set(parsed))
    assert experiment.parsed.recipe is experiment.recipe
    assert fit.check(experiment.parsed).model is not experiment.model  # a second one, of the same sections
    assert sorted(parsed) == sorted(set(parsed))
