"""Encoders of transformers against transformers itself: tiny checkpoints of its own classes, read by path."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.modeling_layers import GradientCheckpointingLayer

from dslight.components import HFVisionEncoder
from dslight.components.component import WeightsError
from dslight.run.cost import _leave_meta
from dslight.testing import VisionEncoderContract

SHAPE = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 9}
MLP = {"intermediate_size": 24}
CONFIGS = {
    "CLIP": {"model_type": "clip_vision_model", **SHAPE, **MLP},
    "SigLIP": {"model_type": "siglip_vision_model", **SHAPE, **MLP},
    "DINOv2": {"model_type": "dinov2", **SHAPE},
    "DINOv2 with registers": {"model_type": "dinov2_with_registers", **SHAPE, "num_register_tokens": 3},
    "DINOv3": {"model_type": "dinov3_vit", **SHAPE, **MLP, "num_register_tokens": 3},
}
PREFIX = {"CLIP": 1, "SigLIP": 0, "DINOv2": 1, "DINOv2 with registers": 4, "DINOv3": 4}
LAST_NORM = {"CLIP": "post_layernorm", "SigLIP": "post_layernorm", "DINOv3": "norm"}


def save(model, path: Path) -> str:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture
def checkpoint(family, tmp_path):
    """A folder written by transformers; of CLIP and SigLIP with their text part."""
    settings = {k: v for k, v in CONFIGS[family].items() if k != "model_type"}
    if family == "CLIP":
        config = transformers.CLIPConfig(vision_config=settings, text_config=TEXT)
        return save(transformers.CLIPModel(config), tmp_path / "clip")
    if family == "SigLIP":
        config = transformers.SiglipConfig(vision_config=settings, text_config=TEXT)
        return save(transformers.SiglipModel(config), tmp_path / "siglip")
    config = transformers.AutoConfig.for_model(**CONFIGS[family])
    return save(transformers.AutoModel.from_config(config), tmp_path / "dino")


def theirs(checkpoint, **options):
    """Transformers' own model with its own way of reading the checkpoint."""
    model = transformers.AutoModel.from_pretrained(checkpoint, **options)
    return getattr(model, "vision_model", model).eval()


def pixels(count=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def normalised(encoder, values):
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (encoder.mean, encoder.std))
    return (values / 255 - mean) / std


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def last_norm(model, family):
    return getattr(model, LAST_NORM.get(family, "layernorm"))


def test_taps_are_the_hidden_states_of_transformers(family, checkpoint):
    encoder = HFVisionEncoder(checkpoint).eval()
    assert encoder.prefix_tokens == PREFIX[family]
    model = theirs(checkpoint)
    hidden = model(normalised(encoder, pixels()), output_hidden_states=True).hidden_states
    assert len(hidden) == encoder.depth + 1 == 5
    taps = [*range(5), -2]
    for tap, ours in zip(taps, encoder(pixels(), taps=taps), strict=True):
        close(ours, hidden[tap][:, PREFIX[family] :])
        close(encoder(pixels(), taps=[tap])[0], hidden[tap][:, PREFIX[family] :])  # alone, it ends the pass early


def test_final_has_the_last_norm(family, checkpoint):
    encoder, model = HFVisionEncoder(checkpoint).eval(), theirs(checkpoint)
    output = model(normalised(encoder, pixels()), output_hidden_states=True)
    (final,) = encoder(pixels())
    close(final, last_norm(model, family)(output.hidden_states[-1])[:, PREFIX[family] :])
    if family != "CLIP":  # which itself normalises the class token alone
        close(final, output.last_hidden_state[:, PREFIX[family] :])


@pytest.mark.parametrize("sites", [(1, 2, 3), (0,), (2, 2)])
def test_stacks_are_added_in_a_loop_over_the_layers_of_transformers(family, checkpoint, sites):
    encoder, model = HFVisionEncoder(checkpoint).eval(), theirs(checkpoint)
    stacks = torch.randn(len(sites), 2, 16, 16)
    values = normalised(encoder, pixels())
    hidden = model.embeddings(values)
    if family == "CLIP":
        hidden = model.pre_layrnorm(hidden)
    options = {} if "DINO" in family else {"attention_mask": None}
    if family == "DINOv3":
        options = {"position_embeddings": model.rope_embeddings(values)}
    layers = {"DINOv3": "model.layer"}.get(family, "encoder.layer" if "DINO" in family else "encoder.layers")
    for index, layer in enumerate(model.get_submodule(layers)):
        for site, stack in zip(sites, stacks, strict=True):
            if site == index:
                hidden = torch.cat([hidden[:, : PREFIX[family]], hidden[:, PREFIX[family] :] + stack], dim=1)
        hidden = layer(hidden, **options)
    before, final = encoder(pixels(), taps=[4, "final"], stacks=stacks, sites=sites)
    close(before, hidden[:, PREFIX[family] :])
    close(final, last_norm(model, family)(hidden)[:, PREFIX[family] :])


def test_a_checkpoint_of_the_vision_part_alone_is_the_same_encoder(checkpoint, tmp_path):
    theirs(checkpoint).save_pretrained(tmp_path / "alone")
    whole, alone = HFVisionEncoder(checkpoint).eval(), HFVisionEncoder(str(tmp_path / "alone")).eval()
    close(alone(pixels())[0], whole(pixels())[0])


def test_weights_have_the_names_of_transformers(checkpoint):
    names = set(HFVisionEncoder(checkpoint).model.state_dict())
    dropped = set(theirs(checkpoint).state_dict()) - names
    assert not names - set(theirs(checkpoint).state_dict())
    assert all(name.startswith("head.") or name == "embeddings.mask_token" for name in dropped)
    assert any(name.startswith("embeddings.") for name in names)


@pytest.mark.parametrize("tap", [0, 2, -2, 4, "final"])
def test_gradients_reach_all_parameters_but_those_it_calls_unused(checkpoint, tap):
    encoder = HFVisionEncoder(checkpoint)
    encoder(pixels(), taps=[tap])[0].square().sum().backward()
    unused = {id(p) for module in encoder.unused(tap) for p in module.parameters()}
    without = {id(p) for p in encoder.parameters() if p.grad is None}
    if tap == 0:  # layer 0 is entered to read its input
        without |= {id(p) for p in encoder.layers[0].parameters()}
    assert without == unused
    assert (tap == "final") == (not unused)


def test_a_training_step_lowers_a_loss(checkpoint):
    encoder = HFVisionEncoder(checkpoint)
    target = torch.randn(2, 16, 16)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        torch.manual_seed(0)  # DINOv3 rescales its coordinates at random in training
        loss = F.mse_loss(encoder(pixels())[0], target)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01


def test_on_the_meta_device_no_weight_is_read(family, checkpoint):
    real = HFVisionEncoder(checkpoint)
    Path(checkpoint, "model.safetensors").unlink()
    with torch.device("meta"):
        shadow = HFVisionEncoder(checkpoint)
        Path(checkpoint, "config.json").unlink()
        described = HFVisionEncoder(checkpoint, config=CONFIGS[family])  # which needs no file at all
    for other in (shadow, described):
        assert all(p.is_meta for p in [*other.parameters(), *other.buffers()])
        shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
        assert shapes == {name: tensor.shape for name, tensor in real.state_dict().items()}
        assert (other.grid, other.image_size, other.width) == (real.grid, real.image_size, real.width)


def test_attention_implementations_agree(checkpoint):
    eager, sdpa = (HFVisionEncoder(checkpoint, attention=kind).eval() for kind in ("eager", "sdpa"))
    assert eager.model.config._attn_implementation == "eager"
    for ours, expected in zip(eager(pixels(), taps=[2, "final"]), sdpa(pixels(), taps=[2, "final"]), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_weights_are_read_in_the_dtype_that_is_asked_for(checkpoint):
    encoder = HFVisionEncoder(checkpoint, dtype="bfloat16")
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert encoder(pixels(), taps=[1])[0].dtype == torch.bfloat16


@pytest.mark.parametrize("size", [24, 32, 8, 18])
def test_another_image_size_is_what_transformers_interpolates(family, checkpoint, size):
    encoder, model = HFVisionEncoder(checkpoint, image_size=size).eval(), theirs(checkpoint)
    assert (encoder.image_size, encoder.grid) == ((size, size), (size // 4, size // 4))
    options = {} if "DINO" in family else {"interpolate_pos_encoding": True}
    values = normalised(encoder, pixels(size=size))
    expected = model(values, output_hidden_states=True, **options).hidden_states
    for tap, ours in zip((0, 3), encoder(pixels(size=size), taps=[0, 3]), strict=True):
        close(ours, expected[tap][:, PREFIX[family] :])
    with torch.device("meta"):
        shadow = HFVisionEncoder(checkpoint, image_size=size)
    assert [p.shape for p in shadow.parameters()] == [p.shape for p in encoder.parameters()]
    encoder.train()(pixels(size=size))[0].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_extra_layers_come_new_behind_the_checkpoints(family, checkpoint):
    plain, longer = HFVisionEncoder(checkpoint).eval(), HFVisionEncoder(checkpoint, extra_layers=2).eval()
    assert (plain.depth, longer.depth) == (4, 6)
    for tap in range(5):
        assert torch.equal(plain(pixels(), taps=[tap])[0], longer(pixels(), taps=[tap])[0])
    assert type(longer.layers[5]) is type(plain.layers[3])
    new = torch.cat([p.flatten() for layer in longer.layers[4:] for p in layer.parameters() if p.ndim > 1])
    assert 0 < float(new.detach().std()) < 0.5
    assert bool(new.isfinite().all())
    sixth, final = longer(pixels(), taps=[6, "final"])
    close(final, longer.norm(sixth))
    stacks = torch.randn(2, 2, 16, 16)
    (stacked,) = longer(pixels(), stacks=stacks, sites=(4, 5))
    assert (stacked - final).abs().max() > 0.01
    with torch.device("meta"):
        shadow = HFVisionEncoder(config=CONFIGS[family], extra_layers=2)
    assert list(shadow.state_dict()) == list(longer.state_dict())


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint):
    from safetensors.torch import load_file, save_file

    file = Path(checkpoint, "model.safetensors")
    weights = load_file(file)
    name = next(name for name in weights if "layer" in name and ".2." in name and "text" not in name)
    save_file({k: v for k, v in weights.items() if k != name}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"pretrained: the checkpoint .* lacks \S*layers?\.2\.\S+$"):
        HFVisionEncoder(checkpoint, extra_layers=1)


def test_normalisation_is_the_checkpoints_own_then_the_familys(family, checkpoint):
    published = {
        "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "SigLIP": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
    image_net = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    encoder = HFVisionEncoder(checkpoint)
    assert (tuple(encoder.mean), tuple(encoder.std)) == published.get(family, image_net)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    Path(checkpoint, "preprocessor_config.json").write_text(json.dumps(statistics))
    encoder = HFVisionEncoder(checkpoint)
    assert (list(encoder.mean), list(encoder.std)) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert HFVisionEncoder(checkpoint, mean=(0.7, 0.7, 0.7)).mean == (0.7, 0.7, 0.7)


def test_a_plan_on_fake_tensors_leaves_nothing_behind():
    """Transformers caches patch coordinates per process; a real pass after a fake one must not meet fake ones."""
    config = CONFIGS["DINOv3"] | {"image_size": 44}  # a grid that no other test caches
    with torch.device("meta"):
        planned = HFVisionEncoder(config=config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _leave_meta(planned)
        planned(torch.zeros(1, 3, 44, 44, dtype=torch.uint8))
    (features,) = HFVisionEncoder(config=config)(pixels(1, size=44))
    assert type(features) is torch.Tensor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pretrained: name a checkpoint, or give a `config`"),
        ({"config": SHAPE}, "config.model_type: missing; name a vision model of transformers, e.g. clip_vision_model"),
        ({"config": CONFIGS["CLIP"] | {"hiden_size": 3}}, "config.hiden_size: CLIPVisionConfig has no such field"),
        (
            {"config": {"model_type": "siglip"}},
            "config.model_type: 'siglip' is more than a vision encoder; describe its vision part alone, siglip_vis",
        ),
        (
            {"config": {"model_type": "qwen3_vl"}},
            "'qwen3_vl' is more than a vision encoder; its vision part: qwen3_vl_vision is called with hidden_states, "
            "grid_thw, and not with the pixels of a view alone; NativeVisionEncoder takes it",
        ),
        ({"config": {"model_type": "llama"}}, "config.model_type: llama is called with no pixel_values"),
        (
            {"config": CONFIGS["CLIP"] | {"image_size": [32, "a"]}},
            "config: .*image_size",
        ),
        ({"config": CONFIGS["CLIP"], "dtype": "float33"}, "dtype: 'float33' is no torch dtype"),
        ({"config": CONFIGS["CLIP"], "extra_layers": -1}, "extra_layers: must be at least 0, got -1"),
        ({"config": CONFIGS["DINOv3"], "image_size": 3}, "image_size: 3 pixels are less than one patch of 4"),
    ],
)
def test_a_wrong_argument_is_named(options, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        HFVisionEncoder(**options)


def test_a_checkpoint_other_than_described_is_refused(family, checkpoint):
    HFVisionEncoder(checkpoint, config=CONFIGS[family])
    message = "config.hidden_size: the recipe says 32, the checkpoint .* has 16"
    with pytest.raises(ValueError, match=message):
        HFVisionEncoder(checkpoint, config={"model_type": CONFIGS[family]["model_type"], "hidden_size": 32})


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    transformers.ResNetConfig(depths=[1, 1], hidden_sizes=[8, 16], embedding_size=8).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"pretrained: .*: resnet .*; timm has resnet"):
        HFVisionEncoder(str(tmp_path))


def test_a_missing_folder_is_called_one(tmp_path):
    with pytest.raises(ValueError, match=r"pretrained: there is no folder .*missing"):
        HFVisionEncoder(str(tmp_path / "missing"))


class TestCLIP(VisionEncoderContract):
    family, options = "CLIP", {}

    def make(self):
        return HFVisionEncoder(config=CONFIGS[self.family], **self.options)


class TestSigLIP(TestCLIP):
    family, options = "SigLIP", {"image_size": 24}


class TestDINOv2(TestCLIP):
    family, options = "DINOv2", {"extra_layers": 1}


class TestDINOv2WithRegisters(TestCLIP):
    family = "DINOv2 with registers"


class TestDINOv3(TestCLIP):
    family = "DINOv3"


def _gradients(encoder, pixels, stacks, taps):
    encoder.zero_grad()
    features = encoder(pixels, taps=taps, stacks=stacks, sites=[1])
    sum(feature.sin().sum() for feature in features).backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.skipif(
    "__call__" in vars(GradientCheckpointingLayer),
    reason="this transformers recomputes __call__, hooks and all, when the injector is gone; it is refused instead",
)
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable")  # the new name is not in every 5.x
@pytest.mark.parametrize("taps", [["final"], [1, -2]])
def test_gradient_checkpointing_changes_no_gradient(taps):
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 4}
    config = {"model_type": "clip_vision_model", **shape, "hidden_size": 16, "image_size": 16}
    encoder = HFVisionEncoder(config=config).train()
    pixels, stacks = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), torch.randn(1, 2, 16, 16)
    plain = _gradients(encoder, pixels, stacks, taps)
    encoder.model.gradient_checkpointing_enable()
    calls = []
    encoder.layers[0].layer_norm1.register_forward_hook(lambda *_: calls.append(1))
    checkpointed = _gradients(encoder, pixels, stacks, taps)
    assert len(calls) == 2  # layer 0 did run again in the backward pass
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=lambda text, name=name: f"{name}: {text}")
