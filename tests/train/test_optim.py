"""The optimizer's groups: timm's layer-wise decay, and which parameter learns how."""

import pytest
import torch
from timm.optim import param_groups_layer_decay

from dslight.components import FusedEncoder, HFVisionEncoder, LowResolution, MLPProjector, TimmEncoder
from dslight.train.optim import PartTraining, Stage
from dslight.vlm import VLM

SIZE = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
VITS = ("vit_tiny_patch16_224", "deit_tiny_patch16_224", "beit_base_patch16_224", "vit_medium_patch16_reg4_gap_256")
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip


def rates(groups, named):
    """(learning rate, weight decay) of each parameter by its name."""
    names = {id(parameter): name for name, parameter in named}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}


@pytest.mark.parametrize("name", VITS)
def test_layer_decay_gives_every_block_timms_learning_rate(name):
    encoder = TimmEncoder(name, model_args=SIZE)
    theirs = param_groups_layer_decay(encoder.model, weight_decay=0.1, layer_decay=0.7)
    expected = rates([{**g, "lr": 0.01 * g["lr_scale"]} for g in theirs], encoder.model.named_parameters())
    ours = rates(encoder.param_groups(0.01, 0.1, layer_decay=0.7), encoder.model.named_parameters())
    assert ours.keys() == expected.keys()
    for key, pair in expected.items():
        assert ours[key] == pytest.approx(pair), key
    assert len({lr for lr, _ in ours.values()}) == 5


def test_transformers_encoders_decay_alike():
    encoder = HFVisionEncoder(config=CLIP)
    found = rates(encoder.param_groups(1.0, 0.1, layer_decay=0.5), encoder.named_parameters())
    by_place = {name.split(".layers.")[-1].split(".")[0]: lr for name, (lr, _) in found.items() if ".layers." in name}
    assert by_place == {"0": 0.25, "1": 0.5, "2": 1.0}
    rest = {name.split(".")[1]: lr for name, (lr, _) in found.items() if ".layers." not in name}
    assert rest == {"embeddings": 0.125, "pre_layrnorm": 0.125, "post_layernorm": 1.0}


def test_encoders_side_by_side_count_their_own_layers():
    deep, shallow = (TimmEncoder(VITS[0], model_args=SIZE | {"depth": depth}) for depth in (4, 2))
    both = FusedEncoder([deep, shallow])
    found = rates(both.param_groups(1.0, 0.1, layer_decay=0.5), both.named_parameters())
    for index, encoder in enumerate((deep, shallow)):
        alone = rates(encoder.param_groups(1.0, 0.1, layer_decay=0.5), encoder.named_parameters())
        assert alone == {
            name.removeprefix(f"encoders.{index}."): pair
            for name, pair in found.items()
            if name.startswith(f"encoders.{index}.")
        }


def test_a_decay_of_one_changes_no_learning_rate():
    encoder = TimmEncoder(VITS[0], model_args=SIZE)
    named = list(encoder.named_parameters())
    assert rates(encoder.param_groups(0.1, 0.2, layer_decay=1.0), named) == rates(encoder.param_groups(0.1, 0.2), named)


def test_the_stage_hands_every_parameter_that_trains_to_the_optimizer_once(tiny_encoder, tiny_lm):
    vlm = VLM(tiny_encoder(), MLPProjector, LowResolution(tap=-2), tiny_lm())
    how = {"vision_encoder": PartTraining(1e-3, 0.1, layer_decay=0.5), "projector": PartTraining(1e-2)}
    vlm.train_with(Stage(how, torch.optim.SGD))
    optimizer = vlm.stage.optimizers(vlm.parts(), 10)["optimizer"]
    found = rates(optimizer.param_groups, vlm.named_parameters())
    assert found.keys() == {name for name, p in vlm.named_parameters() if p.requires_grad}
    assert len({group["name"] for group in optimizer.param_groups}) == len(optimizer.param_groups)
    encoder = [group["name"] for group in optimizer.param_groups if group["name"].startswith("vision_encoder")]
    assert encoder[0] == "vision_encoder.layer 0 matrices"  # patches and positions
    assert encoder[-1] == "vision_encoder.layer 3 vectors"  # the last block and the norm lie behind the tap
