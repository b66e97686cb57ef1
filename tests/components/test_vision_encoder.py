"""What holds for every vision encoder. Each one's own numbers are in ``vision_encoders/``."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from dslight.components import DeepStackV, FusedEncoder, HFVisionEncoder, TimmEncoder, VisionEncoder


def test_a_misfit_of_features_and_promises_is_named():
    class Odd(VisionEncoder):
        width, grid, image_size, mean, std = 16, (4, 4), (16, 16), (0.5,) * 3, (0.5,) * 3

        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([torch.nn.Linear(3, 16)])

        @property
        def layers(self):
            return self.blocks

        def encode(self, pixels, depth):
            return self.blocks[0](pixels.flatten(2).transpose(1, 2))

    message = r"Odd: tap final gave features \(2, 256, 16\), its grid and width promise \(2, 16, 16\)"
    with pytest.raises(ValueError, match=message):
        Odd()(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))


class Whole(VisionEncoder):
    """Features without layers."""

    width, grid, image_size, mean, std = 3, (16, 16), (16, 16), (0.5,) * 3, (0.5,) * 3
    tappable = stackable = False

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    @property
    def layers(self):
        return ()

    def encode(self, pixels, depth):
        return pixels.flatten(2).transpose(1, 2) * self.scale


def test_an_encoder_without_layers_gives_its_final_features_and_refuses_the_rest():
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    (final,) = Whole()(pixels)
    torch.testing.assert_close(final, (pixels / 127.5 - 1).flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="Whole has no layers to read, so no tap -2; `final` is all there is"):
        Whole()(pixels, taps=[-2])
    with pytest.raises(ValueError, match="Whole has no layers to add stacks to"):
        Whole()(pixels, stacks=torch.zeros(1, 2, 256, 3), sites=[0])


def test_means_keep_their_digits_where_torch_makes_bfloat16(tiny_encoder):
    encoder, pixels = tiny_encoder(), torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    encoder.mean, encoder.std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = tv.normalize(pixels / 255, encoder.mean, encoder.std)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does in a step of `precision: bf16-true`
    try:
        torch.testing.assert_close(encoder.normalise(pixels), expected)
    finally:
        torch.set_default_dtype(torch.float32)


SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
IMAGE = {"image_size": 16, "patch_size": 4}
EVA = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}


def clip():
    return HFVisionEncoder(config={"model_type": "clip_vision_model", **SHAPE, **IMAGE})


@pytest.mark.parametrize(
    "make",
    [
        clip,
        lambda: HFVisionEncoder(config={"model_type": "dinov3_vit", **SHAPE, **IMAGE}),
        lambda: TimmEncoder("eva02_tiny_patch14_224", model_args=EVA),
        lambda: FusedEncoder([clip(), clip()]),
    ],
    ids=["clip", "dinov3", "eva", "fused"],
)
def test_no_views_have_no_features_and_every_layer_runs_for_them(make):
    encoder = make()
    features = encoder(torch.zeros(0, 3, 16, 16, dtype=torch.uint8), taps=[1, "final"])
    assert [feature.shape for feature in features] == [(0, 16, encoder.width)] * 2
    sum(feature.sum() for feature in features).backward()
    assert all(p.grad is not None and not p.grad.any() for p in encoder.parameters())


def test_a_batch_without_a_crop_has_nothing_to_stack_inside_the_encoder(make_views):
    encoder, views = clip().eval(), make_views([(0, 0), (0, 0)])
    (base,) = DeepStackV(num_stacks=2, start=1)(encoder, views)
    torch.testing.assert_close(base.flatten(1, 2), encoder(views.pixels)[0])


def test_pixels_give_the_same_bits_however_they_lie_in_memory():
    encoder = clip().eval()
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    beside = pixels.to(memory_format=torch.channels_last)
    assert encoder.normalise(beside).is_contiguous()
    assert torch.equal(encoder(beside)[0], encoder(pixels)[0])
