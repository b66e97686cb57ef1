"""Fused encoders against each encoder alone, with torchvision's resizing and torch's interpolation around it."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dslight.components import (
    DeepStackL,
    DeepStackTaps,
    DeepStackV,
    FusedEncoder,
    HFCausalLM,
    HFVisionEncoder,
    MLPProjector,
    TimmFeatureMaps,
)
from dslight.testing import VisionEncoderContract
from dslight.train.optim import PartTraining, Stage
from dslight.vlm import VLM

SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4}
CLIP = {"model_type": "clip_vision_model", **SHAPE, "hidden_size": 16, "image_size": 16}
DINO = {"model_type": "dinov3_vit", **SHAPE, "hidden_size": 8, "image_size": 24, "num_hidden_layers": 4}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


def clip():
    return HFVisionEncoder(config=CLIP)


def dino():
    return HFVisionEncoder(config=DINO)


def convnext():
    return TimmFeatureMaps("convnext_atto", model_args=CONVNEXT, image_size=32, stage=1)


def pixels(size=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)


def resized(values, size):
    return tv.resize(values, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)


def on_grid(features, side, to):
    maps = features.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(maps, size=(to, to), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


def test_features_stand_side_by_side_on_the_first_ones_grid():
    first, second = clip().eval(), dino().eval()
    fused = FusedEncoder([first, second])
    assert (fused.width, fused.grid, fused.image_size) == (24, (4, 4), (24, 24))
    (ours,) = fused(pixels())
    torch.testing.assert_close(ours[..., :16], first(resized(pixels(), 16))[0])
    torch.testing.assert_close(ours[..., 16:], on_grid(second(pixels())[0], 6, 4))
    (turned,) = FusedEncoder([second, first])(pixels())
    torch.testing.assert_close(turned[..., :8], second(pixels())[0])
    torch.testing.assert_close(turned[..., 8:], on_grid(first(resized(pixels(), 16))[0], 4, 6))


def test_encoders_of_one_size_and_grid_are_only_concatenated():
    one, two = clip().eval(), clip().eval()
    (ours,) = FusedEncoder([one, two])(pixels(16))
    assert torch.equal(ours, torch.cat([one(pixels(16))[0], two(pixels(16))[0]], -1))


def test_views_of_another_size_are_resized_as_bytes_for_every_encoder():
    fused = FusedEncoder([clip(), dino()], image_size=(40, 40)).eval()
    assert fused.image_size == (40, 40)
    (ours,) = fused(pixels(40))
    expected = fused.encoders[1](resized(pixels(40), 24))[0]
    torch.testing.assert_close(ours[..., 16:], on_grid(expected, 6, 4))
    white = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)  # bicubic overshoots, bytes do not wrap around
    white[..., :20] = 0
    seen = []
    fused.encoders[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    fused(white)
    assert seen[0].dtype == torch.uint8
    assert bool((seen[0][..., -4:] > 250).all())
    assert bool((seen[0][..., :4] < 5).all())


@pytest.mark.parametrize("tap", [0, 2, -1, -2, -4])
def test_an_integer_tap_goes_to_all_and_a_negative_one_counts_from_each_ones_end(tap):
    fused = FusedEncoder([clip(), dino()]).eval()
    (ours,) = fused(pixels(), taps=[tap])
    first, second = fused.encoders
    torch.testing.assert_close(ours[..., :16], first(resized(pixels(), 16), taps=[tap])[0])
    torch.testing.assert_close(ours[..., 16:], on_grid(second(pixels(), taps=[tap])[0], 6, 4))


def test_final_is_what_the_taps_say():
    fused = FusedEncoder([clip(), dino()], taps=[-2, "final"]).eval()
    (ours,) = fused(pixels())
    first, second = fused.encoders
    torch.testing.assert_close(ours[..., :16], first(resized(pixels(), 16), taps=[2])[0])
    torch.testing.assert_close(ours[..., 16:], on_grid(second(pixels())[0], 6, 4))


@pytest.mark.parametrize(
    ("taps", "tap"), [(None, "final"), (["final", -2], "final"), ([2, 1], "final"), (None, -2), ([1, 1], 3)]
)
def test_gradients_reach_all_parameters_but_those_it_calls_unused(taps, tap):
    fused = FusedEncoder([clip(), dino()], taps=taps)
    fused(pixels(), taps=[tap])[0].square().sum().backward()
    unused = {id(p) for module in fused.unused(tap) for p in module.parameters()}
    assert {id(p) for p in fused.parameters() if p.grad is None} == unused


def test_a_training_step_lowers_a_loss():
    fused = FusedEncoder([clip(), convnext()])
    target = torch.randn(2, 16, fused.width)
    optimizer = torch.optim.SGD(fused.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = F.mse_loss(fused(pixels(32))[0], target)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.001


def test_what_does_not_work_is_refused_before_a_weight_is_read():
    with torch.device("meta"):
        fused, mixed = FusedEncoder([clip(), dino()]), FusedEncoder([clip(), convnext()])
    DeepStackL(tap=-2).check(fused, 12)
    with pytest.raises(ValueError, match=r"tap 4 is beyond the encoder's depth.*\(encoders\.0, HFVisionEncoder\)"):
        DeepStackL(tap=4).check(fused, 12)
    with pytest.raises(ValueError, match=r"TimmFeatureMaps has no layers to read, so no tap -2"):
        DeepStackL(tap=-2).check(mixed, 12)
    with pytest.raises(ValueError, match=r"(the vision encoder has 0|no layers)"):
        DeepStackV(num_stacks=2, start=0).check(fused, 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FusedEncoder([]), "encoders: name at least one"),
        (lambda: FusedEncoder([clip(), dino()], taps=[1]), "taps: 1 taps for 2 encoders; give one for each"),
        (lambda: FusedEncoder([clip(), dino()], taps=[1, 7]), r"taps\.1: tap 7 is beyond the encoder's depth"),
        (lambda: FusedEncoder([clip(), convnext()], taps=[1, 1]), r"taps\.1: TimmFeatureMaps has no layers to read"),
    ],
)
def test_a_wrong_argument_is_named(make, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make()


class TestTwoTransformers(VisionEncoderContract):
    def make(self):
        return FusedEncoder([clip(), dino()])


class TestATransformerAndAConvNet(VisionEncoderContract):
    def make(self):
        return FusedEncoder([clip(), convnext()])


@pytest.mark.parametrize("depth", [4, 6])
def test_what_any_of_several_taps_uses_trains_and_nothing_else(depth):
    """A negative tap counts from each encoder's end: the deepest tap of the one need not be that of the other."""
    fused = FusedEncoder([clip(), HFVisionEncoder(config={**DINO, "num_hidden_layers": depth})])
    lm = HFCausalLM(config={"model_type": "llama", "vocab_size": 8, "hidden_size": 32, "num_hidden_layers": 2})
    vlm = VLM(fused, MLPProjector, DeepStackTaps(taps=[-2], tap=3), lm)
    features = fused.requires_grad_(True)(pixels(), taps=[-2, 3])
    vlm.train_with(Stage({"vision_encoder": PartTraining(1e-3)}))
    sum(one.square().sum() for one in features).backward()
    trains = {name for name, p in fused.named_parameters() if p.requires_grad}
    assert trains == {name for name, p in fused.named_parameters() if p.grad is not None}
