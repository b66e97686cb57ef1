"""``weights:`` of a recipe: any layout, per part or the whole model; what is not there is found before building."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dslight.recipe.build import build, ready
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError

QUICKSTART = "recipes/quickstart/deepstack_l.yaml"
NO_TOWER = (
    r"^weights\.model: .* has no tensor of the vision_encoder; name a file for it .*weights\.vision_encoder=null$"
)


@pytest.fixture
def recipe(pages, request, official, theirs, tmp_path) -> dict[str, Any]:
    """DeepStack-L on a tiny LLaVA, whose parts lie in ``tmp_path`` under the names of the official code."""
    root = request.config.rootpath
    changed = [
        f"data.train=[{pages / 'train'}]",
        f"data.val.pages.root={pages / 'val'}",
        f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}",
    ]
    recipe: dict[str, Any] = compose(root / QUICKSTART, changed)
    llava = theirs()
    state = official(llava)
    save_file(state, tmp_path / "whole.safetensors")
    save_file({k: v for k, v in state.items() if "vision_tower" not in k}, tmp_path / "no_tower.safetensors")
    torch.save({k: v + 1 for k, v in state.items() if "mm_projector" in k}, tmp_path / "mm_projector.bin")
    llava.model.vision_tower.save_pretrained(tmp_path / "clip")
    vision, text = llava.config.vision_config.to_dict(), llava.config.text_config.to_dict()
    recipe["model"]["vision_encoder"] = {
        "class_path": "dslight.components.HFVisionEncoder",
        "init_args": {"config": {k: vision[k] for k in (
            "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
            "patch_size",
        )}},
    }  # fmt: skip
    recipe["model"]["language_model"]["init_args"]["config"] = {k: text[k] for k in (
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
        "num_key_value_heads",
    )}  # fmt: skip
    recipe["model"]["stacking"]["init_args"] = {"num_stacks": 3, "start": 0, "tap": -2, "source": "base"}
    del recipe["weights"]
    return recipe


def built(recipe: dict[str, Any], **weights: Any) -> Any:
    return build(
        recipe | {"weights": {name: path if path is None else str(path) for name, path in weights.items()}}
    ).model


def test_a_whole_checkpoint_gives_every_part(recipe, theirs, tmp_path):
    model, llava = built(recipe, model=tmp_path / "whole.safetensors"), theirs()
    assert torch.equal(model.projector.net[2].weight, llava.model.multi_modal_projector.linear_2.weight)
    assert torch.equal(
        model.vision_encoder.layers[1].mlp.fc1.weight, llava.model.vision_tower.encoder.layers[1].mlp.fc1.weight
    )
    assert torch.equal(model.language_model.model.lm_head.weight, llava.lm_head.weight)


def test_a_part_named_beside_the_whole_wins(recipe, theirs, tmp_path):
    files = {"model": tmp_path / "whole.safetensors", "projector": tmp_path / "mm_projector.bin"}
    model, llava = built(recipe, **files), theirs()
    assert torch.equal(model.projector.net[2].weight, llava.model.multi_modal_projector.linear_2.weight + 1)
    assert torch.equal(model.language_model.model.lm_head.weight, llava.lm_head.weight)


def test_a_checkpoint_without_its_tower_needs_one_from_elsewhere(recipe, theirs, tmp_path):
    with pytest.raises(RecipeError, match=NO_TOWER):
        ready(recipe | {"weights": {"model": str(tmp_path / "no_tower.safetensors")}})
    expected = theirs().model.vision_tower.encoder.layers[1].mlp.fc1.weight
    named = built(recipe, model=tmp_path / "no_tower.safetensors", vision_encoder=tmp_path / "clip")
    assert torch.equal(named.vision_encoder.layers[1].mlp.fc1.weight, expected)
    random = built(recipe, model=tmp_path / "no_tower.safetensors", vision_encoder=None)
    assert not torch.equal(random.vision_encoder.layers[1].mlp.fc1.weight, expected)
    recipe["model"]["vision_encoder"]["init_args"]["pretrained"] = str(tmp_path / "clip")
    pretrained = built(recipe, model=tmp_path / "no_tower.safetensors")
    assert torch.equal(pretrained.vision_encoder.layers[1].mlp.fc1.weight, expected)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"model": "no/such/folder"}, r"^weights\.model: there is no file no/such/folder$"),
        ({"projector": "no/mm_projector.bin"}, r"^weights\.projector: there is no file no/mm_projector\.bin$"),
        ({"modle": "x"}, r"^weights\.modle: there is no such part"),
    ],
)
def test_what_is_not_there_is_found_before_anything_is_built(recipe, weights, message):
    with pytest.raises(RecipeError, match=message):
        ready(recipe | {"weights": weights})


def test_a_file_that_does_not_fit_is_refused_by_its_key(recipe, tmp_path):
    torch.save({"model.mm_projector.0.weight": torch.zeros(3)}, tmp_path / "small.bin")
    with pytest.raises(RecipeError) as refused:
        built(recipe, projector=tmp_path / "small.bin")
    assert str(refused.value).splitlines() == [
        f"weights.projector: {tmp_path / 'small.bin'} does not fit MLPProjector:",
        "  missing net.0.bias (48,)",
        "  missing net.2.weight (48, 48)",
        "  missing net.2.bias (48,)",
        "  net.0.weight is (3,) in the file, (48, 32) in the model",
    ]
