"""Projectors against torch's own modules and the authors' numbers."""

import pytest
import torch
from torch import nn

from dslight.components import MLPProjector, PerLevelMLPProjector


@pytest.mark.golden_model
def test_two_shared_layers_are_the_authors_projector(golden, same):
    projector, outputs = MLPProjector(32, 48, levels=5), golden.outputs("deepstack_l_2d")
    projector.net.load_state_dict(golden.weights("model.mm_projector."))
    same(projector(outputs["vision_features"][:2]), outputs["base_tokens"], atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_one_mlp_serves_every_level(layers):
    projector, slots = MLPProjector(6, 10, levels=3, layers=layers), torch.randn(3, 7, 6)
    linears = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(6, 10)] + [(10, 10)] * (layers - 1)
    for level, out in zip(slots, projector(slots), strict=True):
        expected = linears[0](level)
        for linear in linears[1:]:
            expected = linear(nn.functional.gelu(expected))
        torch.testing.assert_close(out, expected)


def test_every_level_has_an_mlp_of_its_own():
    projector, slots = PerLevelMLPProjector(6, 10, levels=3), torch.randn(3, 7, 6, requires_grad=True)
    out = projector(slots)
    assert out.shape == (3, 7, 10)
    for level in range(3):
        torch.testing.assert_close(out[level], projector.nets[level](slots[level]))
    weights = [net[0].weight for net in projector.nets]
    reached = torch.autograd.grad(out[1].sum(), weights, allow_unused=True, retain_graph=True)
    assert [grad is not None and bool(grad.any()) for grad in reached] == [False, True, False]
    same_input = projector(slots[:1].expand(3, 7, 6))
    assert (same_input[0] - same_input[1]).abs().max() > 0.01


def test_a_wrong_number_of_levels_or_layers_is_refused():
    with pytest.raises(ValueError, match="zip"):
        PerLevelMLPProjector(6, 10, levels=3)(torch.randn(2, 7, 6))
    with pytest.raises(ValueError, match="layers: a projector needs at least 1 layer, got 0"):
        MLPProjector(6, 10, levels=1, layers=0)
