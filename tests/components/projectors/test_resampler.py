"""The resampler against Idefics' in transformers, its positions against transformers' and timm's."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from transformers import IdeficsConfig
from transformers.models.aimv2.modeling_aimv2 import build_2d_sinusoidal_position_embedding
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler

from dslight.components import PerceiverResamplerProjector

C, D = 16, 12


def test_without_positions_it_is_the_resampler_of_idefics():
    config = IdeficsConfig(vision_config={"embed_dim": C}, perceiver_config={"qk_layer_norms_perceiver": False})
    theirs = IdeficsPerceiverResampler(config, embed_dim=C, depth=2, n_heads=4, head_dim=4, n_latents=6)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = PerceiverResamplerProjector([C], D, grid=(2, 3), depth=2, heads=4, positions=False)
    net = ours.net
    with torch.no_grad():
        net.queries.copy_(theirs.latents)
        net.norm.load_state_dict(theirs.layer_norm.state_dict())
        for block, (attention, mlp) in zip(net.blocks, theirs.blocks, strict=True):
            block.norm_map.load_state_dict(attention.context_layer_norm.state_dict())
            block.norm_queries.load_state_dict(attention.latents_layer_norm.state_dict())
            weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
            block.attention.in_proj_weight.copy_(torch.cat(weights))
            block.attention.out_proj.weight.copy_(attention.output_proj.weight)
            block.norm_mlp.load_state_dict(mlp.ln.state_dict())
            block.mlp[0].weight.copy_(mlp.fc.weight)
            block.mlp[2].weight.copy_(mlp.c_proj.weight)
    maps = torch.randn(3, 4, 5, C)
    expected = net.outward(theirs(maps.flatten(1, 2))).unflatten(1, (2, 3))
    torch.testing.assert_close(ours([maps])[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(2, 3), (4, 6), (5, 7)])
def test_positions_are_a_sine_cosine_table_interpolated_to_the_map(grid):
    net = PerceiverResamplerProjector([C], D, grid=(2, 3), heads=4).net
    places, asked_at = net._positions(torch.zeros(1, *grid, C))
    by_axis = asked_at.unflatten(1, (2, 2, C // 4)).transpose(1, 2).flatten(1)  # sines of both axes come first
    torch.testing.assert_close(by_axis, build_2d_sinusoidal_position_embedding(2, 3, C))
    resized = resample_abs_pos_embed(asked_at[None], list(grid), [2, 3], num_prefix_tokens=0, antialias=False)
    torch.testing.assert_close(places, resized[0])


def test_a_query_can_tell_places_apart_only_by_positions():
    maps = torch.randn(1, 4, 6, C)
    turned = maps.flip(2)
    for positions in (True, False):
        projector = PerceiverResamplerProjector([C], D, grid=(2, 2), depth=1, heads=4, positions=positions)
        difference = (projector([maps]) - projector([turned])).abs().max()
        assert (difference > 1e-4) == positions


def test_one_block_is_attention_by_hand():
    projector = PerceiverResamplerProjector([C], D, grid=(2, 2), depth=1, heads=4, width=8)
    net, maps = projector.net, torch.randn(2, 2, 2, C)
    block, (query, key, value) = net.blocks[0], net.blocks[0].attention.in_proj_weight.chunk(3)
    at = net._positions(torch.zeros(1, 2, 2, 8))[1]
    seen, asked = (
        block.norm_map(maps.flatten(1, 2) @ net.inward.weight.T),
        block.norm_queries(net.queries).expand(2, 4, 8),
    )
    keys, values = torch.cat([seen + at, asked + at], 1) @ key.T, torch.cat([seen, asked], 1) @ value.T
    heads = [x.unflatten(-1, (4, 2)).transpose(1, 2) for x in ((asked + at) @ query.T, keys, values)]
    mixed = (heads[0] @ heads[1].mT / 2**0.5).softmax(-1) @ heads[2]
    tokens = net.queries + mixed.transpose(1, 2).flatten(2) @ block.attention.out_proj.weight.T
    tokens = net.outward(net.norm(tokens + block.mlp(block.norm_mlp(tokens))))
    torch.testing.assert_close(projector([maps])[0].flatten(1, 2), tokens)
