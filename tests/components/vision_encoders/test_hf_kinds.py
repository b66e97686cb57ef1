"""Kinds of transformers beside CLIP, SigLIP and DINO, against transformers' own hidden states."""

import pytest
import torch
import transformers

from dslight.components import HFVisionEncoder
from dslight.testing import VisionEncoderContract

SHAPE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MLP = {"intermediate_size": 24}
KINDS = {  # fields beside the shape; prefix
    "aimv2_vision_model": (MLP, 0),
    "beit": (MLP, 1),
    "deit": (MLP, 2),
    "dinov2": ({}, 1),
    "ijepa": (MLP, 0),
    "internvl_vision": (MLP | {"image_size": [32, 32], "patch_size": [8, 8]}, 1),
    "mlcd_vision_model": (MLP, 1),
    "vit": (MLP, 1),
    "vit_msn": (MLP, 1),
}
DEFAULT = ("vit",)


def config_of(kind):
    return {"model_type": kind, **SHAPE, **KINDS[kind][0]}


def save(config, folder):
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    model.save_pretrained(folder)
    return str(folder)


def pixels(encoder, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *encoder.image_size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("kind", [k if k in DEFAULT else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_taps_are_the_inputs_of_its_layers_and_final_is_its_output(kind, tmp_path):
    given = config_of(kind)
    path = save(transformers.AutoConfig.for_model(given.pop("model_type"), **given), tmp_path)
    encoder = HFVisionEncoder(path).eval()
    prefix = KINDS[kind][1]
    assert (encoder.depth, encoder.width, encoder.grid, encoder.prefix_tokens) == (3, 16, (4, 4), prefix)
    model, seen = transformers.AutoModel.from_pretrained(path).eval(), []
    for layer in model.get_submodule(encoder._stream.layers):
        layer.register_forward_pre_hook(
            lambda module, args, options: seen.append(args[0] if args else options["hidden_states"]), with_kwargs=True
        )
    with torch.no_grad():
        output = model(pixel_values=encoder.normalise(pixels(encoder)))
        ours = encoder(pixels(encoder), taps=[0, 1, 2, "final"])
        alone = encoder(pixels(encoder), taps=[1])[0]
    for tap in range(3):
        torch.testing.assert_close(ours[tap], seen[tap].view(2, -1, 16)[:, prefix:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, ours[1])
    if encoder._stream.norm is None:
        torch.testing.assert_close(ours[-1], output.last_hidden_state.view(2, -1, 16)[:, prefix:], atol=1e-5, rtol=1e-5)


REFUSED = {
    "convnextv2": "config.model_type: convnextv2 .*; timm has convnextv2",
    "pixtral": "config.model_type: pixtral has no transformer blocks",
    "qwen3_vl_vision": "config.model_type: qwen3_vl_vision is called with .*; NativeVisionEncoder takes it",
    "siglip2_vision_model": "config.model_type: siglip2_vision_model is called with .*; NaFlexEncoder takes it",
    "swin": "config.model_type: swin .*; timm has swin",
    "vit_mae": "config.model_type: vit_mae draws at random in evaluation mode .*; timm has vit_",
    "yolos": "config.model_type: yolos puts 100 tokens behind its",
}


@pytest.mark.parametrize("kind", [k if k == "vit_mae" else pytest.param(k, marks=pytest.mark.slow) for k in REFUSED])
def test_others_are_refused_and_the_class_or_the_model_of_timm_is_named(kind):
    with torch.device("meta"), pytest.raises(ValueError, match=REFUSED[kind]):
        HFVisionEncoder(config={"model_type": kind})


TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99}


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_the_tower_of_a_whole_multimodal_model_is_read(kind, tmp_path):
    vision = {"model_type": kind, **SHAPE, **MLP}
    settings = transformers.LlavaConfig(vision_config=vision, text_config={"model_type": "llama", **TEXT})
    settings.image_token_index = 7
    torch.manual_seed(0)
    whole = transformers.LlavaForConditionalGeneration(settings).eval()
    whole.save_pretrained(tmp_path)
    encoder = HFVisionEncoder(str(tmp_path)).eval()
    tower = whole.model.vision_tower
    with torch.no_grad():
        output = tower(encoder.normalise(pixels(encoder)), output_hidden_states=True)
        ours = encoder(pixels(encoder), taps=[-2])[0]
    torch.testing.assert_close(ours, output.hidden_states[-2][:, encoder.prefix_tokens :], atol=1e-5, rtol=1e-5)


class TestViT(VisionEncoderContract):
    def make(self):
        return HFVisionEncoder(config=config_of("vit"))
