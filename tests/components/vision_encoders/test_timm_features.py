"""Feature maps against timm's own ``features_only`` models with the same weights."""

import pytest
import timm
import torch
import torch.nn.functional as F

from dslight.components import DeepStackL, DeepStackV, TimmFeatureMaps
from dslight.testing import VisionEncoderContract

MODELS = {
    "ConvNeXt": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}),
    "ResNet": ("resnet18", {"channels": [8, 8, 16, 24]}),
    "MobileNet, which keeps its last stages": ("mobilenetv2_035", {}),
    "Swin, whose channels come last": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "img_size": (32, 64)},
    ),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def make(model, **options):
    torch.manual_seed(0)
    encoder = TimmFeatureMaps(model[0], model_args=model[1], image_size=(32, 64), **options)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def pixels(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 32, 64), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("stage", [-1, -2, 1])
def test_final_is_timms_feature_map_row_by_row(model, stage):
    encoder = make(model, stage=stage).eval()
    theirs = timm.create_model(model[0], features_only=True, **model[1]).eval()
    theirs.load_state_dict(encoder.model.state_dict(), strict=False)  # ours lacks what lies behind the stage
    mean, std = (torch.tensor(theirs.pretrained_cfg[x]).view(1, 3, 1, 1) for x in ("mean", "std"))
    expected = theirs((pixels() / 255 - mean) / std)[stage]
    if "swin" in model[0]:
        expected = expected.permute(0, 3, 1, 2)
    rows, columns = expected.shape[-2:]
    assert (encoder.width, encoder.grid) == (expected.shape[1], (rows, columns))
    (ours,) = encoder(pixels())
    for row in range(rows):
        for column in range(columns):
            torch.testing.assert_close(ours[:, row * columns + column], expected[..., row, column])


@pytest.mark.parametrize("stage", [-1, -2, 1])
def test_gradients_reach_every_parameter_and_no_later_stage_is_there(model, stage):
    encoder = make(model, stage=stage)
    encoder(pixels())[0].square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert encoder.unused("final") == []
    with torch.device("meta"):
        shadow = make(model, stage=stage)
    assert list(shadow.state_dict()) == list(encoder.state_dict())
    assert (shadow.grid, shadow.width) == (encoder.grid, encoder.width)


def test_a_training_step_lowers_a_loss(model):
    encoder = make(model, stage=1)
    target = torch.randn(2, encoder.grid[0] * encoder.grid[1], encoder.width)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = F.mse_loss(encoder(pixels())[0], target)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.001


def test_size_and_normalisation_default_to_those_of_timms_weights():
    with torch.device("meta"):
        encoder = TimmFeatureMaps("convnext_large_mlp.clip_laion2b_soup_ft_in12k_in1k_384", pretrained=True)
    assert (encoder.image_size, encoder.grid, encoder.width) == ((384, 384), (12, 12), 1536)
    assert encoder.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # CLIP's own


def test_what_needs_layers_is_refused_before_a_weight_is_read():
    with torch.device("meta"):
        encoder = make(MODELS["ConvNeXt"])
    DeepStackL().check(encoder, 12)
    with pytest.raises(ValueError, match=r"tap.*: TimmFeatureMaps has no layers to read, so no tap -2; `final` is all"):
        DeepStackL(tap=-2).check(encoder, 12)
    with pytest.raises(ValueError, match=r"(the vision encoder has 0|no layers)"):
        DeepStackV().check(encoder, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "convnxt_atto"}, "name: timm has no model 'convnxt_atto'; similar: convnext_atto"),
        ({"name": "convnext_atto", "stage": 4}, "stage: 4 is beyond the 4 feature maps of convnext_atto, 0 to 3"),
        ({"name": "resnet18", "stage": -6}, "stage: -6 is beyond the 5 feature maps of resnet18, 0 to 4"),
        ({"name": "convnext_atto", "model_args": {"dim": 3}}, "model_args: timm's convnext_atto refuses .*'dim'"),
        ({"name": "nasnetalarge"}, "name: timm reads nasnetalarge by hooks and keeps all of it"),
        (
            {"name": "swin_tiny_patch4_window7_224", "image_size": 64},
            "image_size: swin_tiny_patch4_window7_224 cannot see 64 x 64 pixels: .*224",
        ),
    ],
)
def test_a_wrong_argument_is_named(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmFeatureMaps(**arguments)


class TestConvNeXt(VisionEncoderContract):
    def make(self):
        return TimmFeatureMaps(*MODELS["ConvNeXt"][:1], model_args=MODELS["ConvNeXt"][1], image_size=64, stage=2)


class TestResNet(VisionEncoderContract):
    def make(self):
        return TimmFeatureMaps("resnet18", model_args=MODELS["ResNet"][1], image_size=(64, 96), stage=3)
