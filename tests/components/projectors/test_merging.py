"""Merged neighbours against the mergers of Qwen and InternVL in transformers, pooled ones against torch."""

import pytest
import torch
from torch import nn
from transformers.models.internvl.configuration_internvl import InternVLConfig
from transformers.models.internvl.modeling_internvl import InternVLModel, InternVLMultiModalProjector
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionPatchMerger

from dslight.components import AveragePoolProjector, MLPProjector, PixelShuffleMLPProjector

C, D, M, ROWS, COLS = 6, 10, 2, 4, 8


def stir(module: nn.Module) -> nn.Module:
    """Weights of norms other than ones and zeros, so that a norm at another place is seen."""
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def as_qwen(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """The order in which Qwen's processor hands over patches: merge block after merge block, each row by row."""
    order = [
        (r * factor + i) * COLS + c * factor + j
        for r in range(ROWS // factor)
        for c in range(COLS // factor)
        for i in range(factor)
        for j in range(factor)
    ]
    return torch.cat([one.flatten(0, 1)[order] for one in maps])


@pytest.mark.parametrize("factor", [2, 4])
def test_base_and_stacks_are_merged_as_in_qwen3_vl(factor):
    config = Qwen3VLVisionConfig(hidden_size=C, out_hidden_size=D, spatial_merge_size=factor)
    theirs = [stir(Qwen3VLVisionPatchMerger(config, use_postshuffle_norm=level > 0)) for level in range(4)]
    ours = PixelShuffleMLPProjector(
        [C] * 4, D, factor=factor, hidden="merged", norm="pre", stack_norm="post", per_level=True
    )
    names = {"norm": "norm", "linear_fc1": "mlp.0", "linear_fc2": "mlp.2"}
    for net, merger in zip(ours.nets, theirs, strict=True):
        for name, own in names.items():
            net.get_submodule(own).load_state_dict(getattr(merger, name).state_dict())
    maps = torch.randn(4, M, ROWS, COLS, C)
    expected = [merger(as_qwen(level, factor)) for merger, level in zip(theirs, maps, strict=True)]
    found = ours(list(maps))
    assert found.shape == (4, M, ROWS // factor, COLS // factor, D)
    torch.testing.assert_close(found.flatten(1, 3), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_shared_with_a_norm_before_it_is_the_merger_of_qwen2_vl():
    theirs = stir(PatchMerger(dim=D, context_dim=C))
    ours = PixelShuffleMLPProjector([C] * 2, D, hidden="merged", norm="pre")
    ours.net.norm.load_state_dict(theirs.ln_q.state_dict())
    ours.net.mlp.load_state_dict(theirs.mlp.state_dict())
    maps = torch.randn(2, M, ROWS, COLS, C)
    expected = torch.stack([theirs(as_qwen(level, 2)) for level in maps])
    torch.testing.assert_close(ours(list(maps)).flatten(1, 3), expected, atol=1e-5, rtol=1e-5)


def test_with_a_norm_behind_it_is_the_pixel_shuffle_of_internvl():
    config = InternVLConfig(
        vision_config={"hidden_size": C, "num_attention_heads": 1},
        text_config={"model_type": "qwen2", "hidden_size": D, "num_attention_heads": 1},
    )
    theirs = stir(InternVLMultiModalProjector(config))
    ours = PixelShuffleMLPProjector([C], D, norm="post", eps=1e-5)
    for own, name in {"norm": "layer_norm", "mlp.0": "linear_1", "mlp.2": "linear_2"}.items():
        ours.net.get_submodule(own).load_state_dict(getattr(theirs, name).state_dict())
    maps = torch.randn(M, ROWS, ROWS, C)  # theirs takes squares only
    expected = theirs(InternVLModel.pixel_shuffle(None, maps, 0.5))
    torch.testing.assert_close(ours([maps])[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool_first", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_mean_is_torchs_average_pool_on_the_side_of_the_mlp_that_was_asked_for(factor, pool_first):
    projector = AveragePoolProjector([C] * 2, D, factor=factor, pool_first=pool_first)
    mlp = nn.Sequential(nn.Linear(C, D), nn.GELU(), nn.Linear(D, D))
    mlp.load_state_dict(projector.net.state_dict())
    pool = nn.AvgPool2d(factor)

    def pooled(level):
        return pool(level.movedim(-1, 1)).movedim(1, -1)

    maps = torch.randn(2, M, ROWS, COLS, C)
    for found, level in zip(projector(list(maps)), maps, strict=True):
        torch.testing.assert_close(found, mlp(pooled(level)) if pool_first else pooled(mlp(level)))


@pytest.mark.parametrize("per_level", [False, True])
@pytest.mark.parametrize("pool_first", [False, True])
def test_an_average_pool_takes_the_weights_of_a_plain_mlp(pool_first, per_level):
    plain = MLPProjector([C] * 2, D, per_level=per_level)
    pooled = AveragePoolProjector([C] * 2, D, pool_first=pool_first, per_level=per_level)
    pooled.load_state_dict(plain.state_dict())
    flat = [torch.randn(3, 1, 1, C).expand(3, 4, 6, C) for _ in range(2)]  # of equal tokens the mean is any of them
    torch.testing.assert_close(pooled(flat), plain(flat)[:, :, ::2, ::2])
