"""Kinds of timm that keep layers, tokens or output elsewhere than a plain ViT, against timm itself."""

import pytest
import timm
import torch

from dslight.components import TimmEncoder, TimmFeatureMaps
from dslight.testing import VisionEncoderContract

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
KINDS = {  # name: arguments, prefix of the stream, prefix of the output
    "beit_base_patch16_224": (TINY, 1, 1),
    "cait_xxs24_224": (TINY, 0, 1),
    "deepseek_vit_412m_enc": (TINY, 0, 0),
    "eva02_tiny_patch14_224": (TINY, 1, 1),
    "gemma4_vit_167m_enc": (TINY | {"head_dim": 16, "intermediate_size": 64, "global_pool": ""}, 0, 0),
    "mixer_s32_224": ({"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_blocks": 3}, 0, 0),
    "naflexvit_base_patch16_gap": ({k: v for k, v in TINY.items() if k != "img_size"}, 4, 4),
    "qwen3_vit_88m": (TINY, 0, 0),
    "qwen3_vit_88m_enc": (TINY, 0, 0),
    "vit_relpos_small_patch16_224": (TINY, 0, 0),
    "xcit_nano_12_p8_224": (TINY, 0, 1),
}


def make(name):
    torch.manual_seed(0)
    encoder = TimmEncoder(name, model_args=KINDS[name][0])
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def pixels(encoder, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *encoder.image_size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    "name",
    [n if n.startswith(("cait", "qwen3_vit_88m_enc")) else pytest.param(n, marks=pytest.mark.slow) for n in KINDS],
)
def test_features_are_timms_own_and_taps_are_what_its_layers_see(name):
    encoder = make(name).eval()
    _, prefix, outside = KINDS[name]
    assert (encoder.depth, encoder.width, encoder.prefix_tokens) == (3, 32, prefix)
    assert encoder.grid == (encoder.image_size[0] // 8, encoder.image_size[1] // 8)
    theirs = timm.create_model(name, num_classes=0, **KINDS[name][0]).eval()
    part = theirs.encoder if name == "qwen3_vit_88m_merge" else theirs
    part.load_state_dict(encoder.model.state_dict(), strict=False)
    seen = []
    for layer in part.get_submodule(encoder._stream.layers):
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        expected = part.forward_features(encoder.normalise(pixels(encoder)))
        ours = encoder(pixels(encoder), taps=[0, 1, 2, "final"])
        alone = encoder(pixels(encoder), taps=[1])[0]
    expected = expected.flatten(1, 2) if expected.ndim == 4 else expected[:, outside:]
    torch.testing.assert_close(ours[-1], expected, atol=1e-5, rtol=1e-5)
    for tap in range(3):
        torch.testing.assert_close(ours[tap], seen[tap][:, prefix:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, ours[1])


def test_the_encoder_within_a_wrapper_that_merges_patches_is_read():
    with torch.device("meta"):
        encoder = TimmEncoder("qwen3_vit_88m_merge")
    assert (encoder.depth, encoder.prefix_tokens) == (12, 0)
    assert encoder.image_size == (encoder.grid[0] * 16, encoder.grid[1] * 16)


REFUSED = {
    "convit_tiny": "has no transformer blocks .*TimmFeatureMaps",
    "hiera_tiny_224": "has no transformer blocks .*TimmFeatureMaps reads",
    "pvt_v2_b0": "name: pvt_v2_b0 .*TimmFeatureMaps reads",
    "samvit_base_patch16": r"blocks takes \[B, 64, 64, 768\].*TimmFeatureMaps reads",
    "swin_tiny_patch4_window7_224": "TimmFeatureMaps reads",
    "tnt_s_patch16_224": "name: tnt_s_patch16_224 ",
}


@pytest.mark.parametrize(
    "name", [n if n.startswith("pvt") else pytest.param(n, marks=pytest.mark.slow) for n in REFUSED]
)
def test_other_streams_are_refused_in_a_sentence(name):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^name: {name} ") as refusal:
        TimmEncoder(name)
    assert refusal.match(REFUSED[name])


def test_pixels_that_no_patch_covers_are_said():
    with torch.device("meta"), pytest.warns(UserWarning, match="model_args.img_size: 30 x 30 .* 6 rows and 6 columns"):
        TimmEncoder("vit_tiny_patch16_224", model_args=TINY | {"img_size": 30})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vit_small_patch16_dinov3", {}, "sincos_position: vit_small_patch16_dinov3 has no table"),
        ("qwen3_vit_88m_enc", {}, "sincos_position: qwen3_vit_88m_enc has no table"),
        ("vit_tiny_patch16_224", {"img_size": None}, "model_args.img_size: null is no size"),
    ],
)
def test_positions_that_are_not_there_and_sizes_that_are_none_are_refused(name, arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmEncoder(name, model_args={"img_size": 64} | arguments, sincos_position=0.1)


class TestQwen3(VisionEncoderContract):
    def make(self):
        return make("qwen3_vit_88m_enc")


class TestCaiT(VisionEncoderContract):
    def make(self):
        return make("cait_xxs24_224")


def test_feature_maps_that_are_none_are_refused_by_name():
    with torch.device("meta"), pytest.raises(ValueError, match=r"^name: "):
        TimmFeatureMaps("tnt_s_patch16_224")
