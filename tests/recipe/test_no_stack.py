"""``model.stacking: null``: what a base lays into the sequence, and no stack."""

from __future__ import annotations

from typing import Any

import pytest

import dslight
from dslight.recipe.compose import compose, merge
from dslight.recipe.errors import RecipeError
from dslight.recipe.no_stack import without_stacks


def merged(name: str, **arguments: Any) -> Any:
    old = {"model": {"stacking": {"class_path": f"dslight.components.{name}", "init_args": arguments}}}
    return merge(old, {"model": {"stacking": None}})["model"]["stacking"]


@pytest.mark.parametrize(
    ("name", "arguments", "remains"),
    [
        ("DeepStackTaps", {"taps": [1, 2], "sites": [3, 4], "tap": -1}, ("LowResolution", {"tap": -1})),
        ("DeepStackL", {"crops": 4, "tap": 2, "position": 0.5}, ("LowResolution", {"tap": 2, "position": 0.5})),
        ("DeepStackHD", {"up": 3, "unpad": True}, ("SequenceConcat", {"newline": True, "unpad": True})),
        ("DeepStackHD", {"newline": False}, ("SequenceConcat", {"newline": False})),
        ("SequenceConcat", {"thumbnail": "last", "tap": 1}, ("SequenceConcat", {"thumbnail": "last", "tap": 1})),
        (
            "DeepStack",
            {"stacks": [{"sites": [1]}], "sequence": "tiles", "newline": True, "operation": {}},
            ("DeepStack", {"sequence": "tiles", "newline": True}),
        ),
        ("CrossAttention", {"num_layers": 2, "tap": 1}, ("LowResolution", {"tap": 1})),
    ],
)
def test_what_lies_in_the_sequence_stays(name, arguments, remains):
    found = merged(name, **arguments)
    assert found == {"class_path": f"dslight.components.{remains[0]}", "init_args": remains[1]}
    assert getattr(dslight, remains[0])(**found["init_args"]).sites == ()
    assert without_stacks(found) == found


def test_slots_that_stacks_alone_fill_are_no_image_without_them():
    for name in ("DeepStack", "DeepStackTaps"):
        with pytest.raises(RecipeError, match=rf"^model\.stacking: null: the slots of {name} are zeros"):
            merged(name, base="zero")


def test_a_class_of_somebody_else_is_not_guessed_at():
    with pytest.raises(RecipeError, match=r"^model\.stacking: null: what Mine lays .* is not known"):
        without_stacks({"class_path": "my_package.Mine"})


def test_where_nothing_is_stacked_below_null_is_low_resolution(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {projector: {MLPProjector: {}}, stacking: null}")
    assert compose(tmp_path / "recipe.yaml")["model"]["stacking"] == {"class_path": "dslight.components.LowResolution"}
    (tmp_path / "recipe.yaml").write_text("model: {projector: {MLPProjector: {}}}")
    assert "stacking" not in compose(tmp_path / "recipe.yaml")["model"]
    encoder = dslight.TimmEncoder("vit_tiny_patch16_224", model_args={"depth": 1})
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    lm = dslight.HFCausalLM(config={**config, "intermediate_size": 16, "vocab_size": 20})
    model = dslight.VLM(encoder, dslight.MLPProjector, None, lm)
    assert model.to_recipe()["stacking"] == {"class_path": "dslight.components.LowResolution"}
