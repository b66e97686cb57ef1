"""Attention pooling against Molmo 2's adapter in transformers."""

import pytest
import torch
from torch import nn

from dslight.components import AttentionPoolProjector

C, D, M, ROWS, COLS = 8, 10, 2, 4, 8


@pytest.mark.parametrize("factor", [1, 2, 4])
@torch.no_grad()
def test_it_is_the_adapter_of_molmo2_and_has_its_names(factor):
    """Over two layers of the encoder side by side, as there."""
    molmo2 = "transformers.models.molmo2"
    adapter = pytest.importorskip(f"{molmo2}.modeling_molmo2").Molmo2Adapter
    config = pytest.importorskip(f"{molmo2}.configuration_molmo2").Molmo2AdapterConfig
    torch.manual_seed(0)
    theirs = adapter(
        config(
            hidden_size=C, num_attention_heads=2, num_key_value_heads=2, head_dim=4, intermediate_size=14,
            text_hidden_size=D, vision_feature_layer=[3, 1],
        )
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = AttentionPoolProjector([2 * C], D, factor=factor, heads=2, head_dim=4, hidden=14)
    ours.net.load_state_dict(theirs.state_dict())
    maps = torch.randn(M, ROWS, COLS, 2 * C)
    index = torch.arange(M * ROWS * COLS).view(M, ROWS // factor, factor, COLS // factor, factor)
    expected = theirs(maps.flatten(1, 2), index.transpose(2, 3).reshape(-1, factor**2)).last_hidden_state
    found = ours([maps])
    assert found.shape == (1, M, ROWS // factor, COLS // factor, D)
    torch.testing.assert_close(found.flatten(0, 3), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key", ["factor", "heads", "head_dim", "hidden"])
def test_sizes_of_nothing_are_refused(key):
    with pytest.raises(ValueError, match=f"^{key}: must be at least 1, got 0$"):
        AttentionPoolProjector([C], D, **{key: 0})
