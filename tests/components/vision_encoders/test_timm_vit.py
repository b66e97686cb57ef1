"""Taps, early ends and ViT-side stacks of timm encoders, against timm's own passes and a loop written out."""

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from dslight.components import TimmEncoder
from dslight.nn.sampling import mosaic, sample

ENCODERS = {
    "no prefix": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "class token": ("vit_tiny_patch16_224", {}),
    "CLIP": ("vit_base_patch16_clip_224", {}),
    "class token and registers": ("vit_small_patch14_reg4_dinov2", {}),
    "two class tokens": ("deit_tiny_distilled_patch16_224", {}),
    "rotary positions": ("eva02_tiny_patch14_224", {"embed_dim": 16, "num_heads": 2}),
    "SigLIP": ("vit_base_patch16_siglip_224", {}),
}


@pytest.fixture(params=ENCODERS)
def encoder(request, tiny_encoder):
    name, options = ENCODERS[request.param]
    return tiny_encoder(name, **options)


def pixels(count=2, seed=0):
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(encoder, values):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (encoder.mean, encoder.std))
    return (values / 255 - mean) / std


def layer_inputs(encoder, values):
    """The residual stream at every tap, caught by hooks of our own over timm's whole forward pass."""
    seen, hooks = {}, []
    for index, block in enumerate(encoder.model.blocks):
        hooks.append(block.register_forward_pre_hook(lambda m, args, i=index: seen.__setitem__(i, args[0])))
    hooks.append(
        encoder.model.blocks[-1].register_forward_hook(lambda m, args, out: seen.__setitem__(encoder.depth, out))
    )
    encoder.model.forward_features(normalised(encoder, values))
    for hook in hooks:
        hook.remove()
    return seen


def test_final_is_timms_own_output_without_prefix_tokens(encoder):
    (ours,) = encoder(pixels())
    whole = encoder.model.forward_features(normalised(encoder, pixels()))
    assert ours.shape == (2, 16, 16)
    assert whole.shape[1] == 16 + encoder.prefix_tokens
    torch.testing.assert_close(ours, whole[:, encoder.prefix_tokens :])


def test_every_tap_is_the_input_of_its_layer(encoder):
    stream = layer_inputs(encoder, pixels())
    ours = encoder(pixels(), taps=[0, 1, 2, 3, 4, "final"])
    for tap in range(5):
        torch.testing.assert_close(ours[tap], stream[tap][:, encoder.prefix_tokens :])
    torch.testing.assert_close(ours[5], encoder(pixels())[0])
    for tap in range(5):  # alone, most end the pass early
        torch.testing.assert_close(encoder(pixels(), taps=[tap])[0], ours[tap])


def test_taps_are_timms_intermediates(encoder):
    theirs = encoder.model.forward_intermediates(
        normalised(encoder, pixels()), indices=[0, 2], norm=False, output_fmt="NLC", intermediates_only=True
    )
    for ours, expected in zip(encoder(pixels(), taps=[1, 3]), theirs, strict=True):
        torch.testing.assert_close(ours, expected)


def test_negative_taps_count_from_the_end(encoder):
    second, last, first = encoder(pixels(), taps=[-2, -1, -5])
    for ours, tap in ((second, 3), (last, 4), (first, 0)):
        torch.testing.assert_close(ours, encoder(pixels(), taps=[tap])[0])
    assert [encoder.resolve_tap(tap) for tap in (-1, -5, "final")] == [4, 0, 4]


@pytest.mark.parametrize("tap", [5, -6, 40])
def test_a_tap_beyond_the_depth_is_refused(tiny_encoder, tap):
    with pytest.raises(ValueError, match=f"tap {tap} is beyond the encoder's depth: it has 4 layers, so taps 0 to 4"):
        tiny_encoder()(pixels(), taps=[tap])


@pytest.mark.parametrize(("taps", "expected"), [([1], 1), ([2, 1], 2), ([0], 1), ([-2], 3), ([4], 4), (["final"], 4)])
def test_layers_behind_the_last_tap_do_not_run(encoder, taps, expected):
    ran = []
    for index, layer in enumerate(encoder.layers):
        layer.register_forward_hook(lambda *_, i=index: ran.append(i))
    encoder(pixels(), taps=taps)
    assert ran == list(range(expected))


@pytest.mark.parametrize(
    ("sites", "taps"), [((0, 1), ["final"]), ((1, 2, 3), [4, "final"]), ((2, 3), [2, 3]), ((2, 2), [2])]
)
def test_stacks_are_added_to_the_patches_and_not_to_the_prefix(encoder, sites, taps):
    """timm's own pass, with the blocks' forwards wrapped by hand."""
    stacks = torch.randn(len(sites), 2, 16, 16)
    ours = encoder(pixels(), taps=taps, stacks=stacks, sites=sites)
    originals, stream = [block.forward for block in encoder.model.blocks], {}
    for index, block in enumerate(encoder.model.blocks):
        added = sum((stack for site, stack in zip(sites, stacks, strict=True) if site == index), torch.zeros(2, 16, 16))

        def forward(hidden, *args, _f=block.forward, _a=added, _i=index, **kwargs):
            prefix = encoder.prefix_tokens
            stream[_i] = torch.cat([hidden[:, :prefix], hidden[:, prefix:] + _a], dim=1)
            stream[_i + 1] = _f(stream[_i], *args, **kwargs)
            return stream[_i + 1]

        block.forward = forward
    final = encoder.model.forward_features(normalised(encoder, pixels()))
    for block, original in zip(encoder.model.blocks, originals, strict=True):
        block.forward = original
    for tap, feature in zip(taps, ours, strict=True):
        expected = final if tap == "final" else stream[tap]
        torch.testing.assert_close(feature, expected[:, encoder.prefix_tokens :])
    plain = encoder(pixels(), taps=taps)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(ours, plain, strict=True))


def test_deepstack_v_is_its_algorithm_written_out(tiny_encoder):
    """Crops alone through layers 0..N-1, then dilated groups of their mosaic, one before each of the next layers."""
    encoder, start = tiny_encoder(), 1
    base, crops = pixels(2), pixels(8, seed=1)
    blocks = encoder.model.blocks
    early = layer_inputs(encoder, crops)[start][:, 1:].view(2, 2, 2, 4, 4, 16)
    large = early.permute(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 16)
    groups = [large[:, i::2, j::2].reshape(2, 16, 16) for i in range(2) for j in range(2)][:3]
    hidden = layer_inputs(encoder, base)[start]
    for index in range(start, 4):
        hidden = torch.cat([hidden[:, :1], hidden[:, 1:] + groups[index - start]], dim=1)
        hidden = blocks[index](hidden)

    (features,) = encoder(crops, taps=[start])
    stacks = sample(mosaic(features.view(2, 4, 4, 4, 16), (2, 2)), (2, 2), "2d").flatten(2, 3)[:3]
    (ours,) = encoder(base, taps=[4], stacks=stacks, sites=(1, 2, 3))
    torch.testing.assert_close(ours, hidden[:, 1:])


def test_gradients_reach_the_stacks_and_the_early_layers(tiny_encoder):
    encoder = tiny_encoder()
    (stacks,) = encoder(pixels(), taps=[1])
    (out,) = encoder(pixels(seed=1), stacks=stacks[None], sites=(2,))
    grads = torch.autograd.grad(out.sum(), [stacks, encoder.model.blocks[0].attn.qkv.weight])
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_pixels_are_normalised_as_torchvision_does(tiny_encoder):
    from torchvision.transforms.v2 import functional as tv

    encoder = tiny_encoder("vit_base_patch16_clip_224")
    expected = tv.normalize(tv.to_dtype(pixels(), torch.float32, scale=True), list(encoder.mean), list(encoder.std))
    torch.testing.assert_close(encoder.normalise(pixels()), expected)
    assert encoder.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # CLIP's own
    assert encoder.bfloat16().normalise(pixels()).dtype == torch.bfloat16


def test_a_wrong_timm_model_is_refused_by_its_key():
    with pytest.raises(
        ValueError, match="name: timm has no model 'vit_tinny_patch16_224'; similar: vit_tiny_patch16_224"
    ):
        TimmEncoder("vit_tinny_patch16_224")
    with pytest.raises(ValueError, match=r"name: resnet18 has no transformer blocks.*TimmFeatureMaps"):
        TimmEncoder("resnet18")
    with pytest.raises(ValueError, match=r"model_args: timm's vit_tiny_patch16_224 refuses .*'dept'"):
        TimmEncoder("vit_tiny_patch16_224", model_args={"dept": 3})
    message = "sincos_position: initialises random weights, but pretrained is true"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TimmEncoder("vit_tiny_patch16_224", pretrained=True, sincos_position=0.1)


def test_sincos_position_is_timms_code_behind_the_prefix():
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    encoder = TimmEncoder("vit_tiny_patch16_224", model_args=shape, sincos_position=0.5)
    table = encoder.model.pos_embed[0]
    assert table.shape == (17, 16)
    torch.testing.assert_close(table[1:].detach(), 0.5 * build_sincos2d_pos_embed([4, 4], 16))


def test_checkpointing_that_would_forget_the_stacks_is_refused(tiny_encoder):
    encoder, stacks = tiny_encoder().train(), torch.randn(1, 2, 16, 16)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    encoder.model.set_grad_checkpointing(True)
    encoder(pixels)  # without stacks nothing is forgotten
    with pytest.raises(RuntimeError, match="timm recomputes a block together with its hooks"):
        encoder(pixels, stacks=stacks, sites=[1])
    with torch.no_grad():
        encoder(pixels, stacks=stacks, sites=[1])  # nothing is recomputed


def test_weights_that_cannot_be_fetched_are_named_with_what_to_do_without_a_network(monkeypatch):
    def gone(*args, **options):
        raise LocalEntryNotFoundError("cannot find the requested files")

    monkeypatch.setattr("timm.create_model", gone)
    said = r"^pretrained: the weights of timm's vit_tiny_patch16_224 are not in the .* HF_HOME .* pretrained: false"
    with pytest.raises(ValueError, match=said):
        TimmEncoder("vit_tiny_patch16_224", pretrained=True)
