"""The C-Abstractor against timm's blocks and torch's pool, put together as in Honeybee."""

from functools import partial

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn

from dslight.components import CAbstractorProjector

C, D, WIDTH = 8, 12, 16


@pytest.mark.parametrize(
    ("shape", "pooled"), [({"factor": 2}, (3, 4)), ({"factor": 1}, (6, 8)), ({"grid": (4, 3)}, (4, 3))]
)
def test_it_is_honeybees(shape, pooled):
    stage = partial(RegStage, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
    before, behind = stage(2, C, WIDTH), stage(2, WIDTH, WIDTH)
    net = nn.Sequential(before, nn.AdaptiveAvgPool2d(pooled), behind)
    readout = nn.Sequential(nn.Linear(WIDTH, D), nn.SiLU(), nn.Linear(D, D))
    projector = CAbstractorProjector([C], D, depth=2, width=WIDTH, **shape)
    for own, theirs in (("before", before), ("behind", behind), ("readout", readout)):
        projector.net.get_submodule(own).load_state_dict(theirs.state_dict())
    maps = torch.randn(2, 6, 8, C)
    tokens = net(maps.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(projector([maps])[0].flatten(1, 2), readout(tokens))
    assert projector.out_grid((6, 8)) == pooled


def test_blocks_are_the_shard_units():
    projector = CAbstractorProjector([C, C], D, depth=2, width=WIDTH, per_level=True)
    assert [type(unit).__name__ for unit in projector.shard_units] == ["Bottleneck"] * 8
