"""MLPs against torch's own modules and transformers' LLaVA; sharing, which all kinds have."""

import re

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, VipLlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.vipllava.modeling_vipllava import VipLlavaMultiModalProjector

from dslight.components import IdentityProjector, MapProjector, MLPProjector


def test_two_layers_are_transformers_llava_projector():
    vision, text = (
        kind(hidden_size=width, num_attention_heads=1) for kind, width in ((CLIPVisionConfig, 6), (LlamaConfig, 10))
    )
    config = LlavaConfig(vision_config=vision, text_config=text)
    theirs, projector = LlavaMultiModalProjector(config), MLPProjector([6, 6], 10)
    state = zip(projector.net.state_dict(), theirs.state_dict().values(), strict=True)
    projector.net.load_state_dict(dict(state))
    maps = torch.randn(2, 3, 4, 5, 6)
    torch.testing.assert_close(projector(list(maps)), theirs(maps))


def test_with_a_norm_in_front_it_is_vipllava_s_projector_over_its_layers_side_by_side():
    vision, text = (
        kind(hidden_size=width, num_attention_heads=1) for kind, width in ((CLIPVisionConfig, 6), (LlamaConfig, 10))
    )
    theirs = VipLlavaMultiModalProjector(VipLlavaConfig(vision_config=vision, text_config=text))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    projector = MLPProjector([5 * 6], 10, norm="pre")  # five layers
    names = {"norm": "projector_layernorm", "mlp.0": "linear_1", "mlp.2": "linear_2"}
    for ours, name in names.items():
        projector.net.get_submodule(ours).load_state_dict(theirs.get_submodule(name).state_dict())
    maps = torch.randn(1, 3, 4, 5, 30)
    torch.testing.assert_close(projector(list(maps)), theirs(maps))


def test_an_mlp_of_their_own_takes_levels_of_different_widths():
    projector = MLPProjector([6, 24], 10, per_level=True)
    maps = [torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 24)]
    out = projector(maps)
    assert out.shape == (2, 3, 4, 5, 10)
    for net, level, tokens in zip(projector.nets, maps, out, strict=True):
        torch.testing.assert_close(tokens, nn.functional.gelu(level @ net[0].weight.T + net[0].bias) @ net[2].weight.T
                                   + net[2].bias)  # fmt: skip
    weights = [net[0].weight for net in projector.nets]
    reached = torch.autograd.grad(out[1].sum(), weights, allow_unused=True)
    assert [grad is not None and bool(grad.any()) for grad in reached] == [False, True]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_only_the_first_layer_sees_the_encoders_width(layers):
    linears = [m for m in MLPProjector([6], 10, layers=layers).modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(6, 10)] + [(10, 10)] * (layers - 1)


def test_the_names_of_weights_are_those_that_checkpoints_are_read_by():
    assert list(MLPProjector([6] * 3, 10).state_dict()) == ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert "nets.2.2.bias" in MLPProjector([6] * 3, 10, per_level=True).state_dict()


def test_no_projector_leaves_the_maps_as_they_are():
    maps = torch.randn(3, 2, 4, 5, 6)
    torch.testing.assert_close(IdentityProjector([6] * 3, 6)(list(maps)), maps, rtol=0, atol=0)


def test_a_projector_has_as_few_lines_as_the_net_of_one_level():
    class Linear(MapProjector):
        def make(self, level):
            return nn.Linear(self.in_widths[level], self.out_width)

    maps = torch.randn(3, 2, 4, 5, 6)
    assert Linear([6] * 3, 10)(list(maps)).shape == (3, 2, 4, 5, 10)
    assert len(Linear([6] * 3, 10, per_level=True).nets) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPProjector([6], 10, layers=0), "layers: a projector needs at least 1 layer, got 0"),
        (
            lambda: MLPProjector([64, 256], 10),
            "per_level: levels of widths 64, 256 cannot share one net; set per_level: true",
        ),
        (lambda: MLPProjector([6] * 3, 10)([torch.randn(1, 2, 2, 6)]), "maps: 1 levels; the projector was made for 3"),
        (
            lambda: IdentityProjector([6, 8, 10], 10),
            "in_widths: maps of width 6, 8 do not fit a language model of width 10 without a projector",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()
