"""Sampling: nothing is lost, everything is aligned, and what others sample with gives the same.

That the groups are those of the authors' code is in ``golden_model``.
"""

import pytest
import torch
import torch.nn.functional as F

from dslight.nn.sampling import MOSAIC_SAMPLERS, ONE_GROUP, SAMPLERS, mosaic, sample

GRIDS = [(1, 1), (2, 2), (1, 3), (3, 1), (2, 3), (4, 1), (3, 2)]
SPLITTING = [name for name in MOSAIC_SAMPLERS if name not in ONE_GROUP]


@pytest.mark.parametrize("sampler", [*SPLITTING, "patch_merge"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_sampler_loses_and_makes_no_token(sampler, grid):
    rows, cols = grid
    tokens = torch.arange(rows * 3 * cols * 5).view(rows * 3, cols * 5, 1)
    groups = sample(tokens, grid, sampler)
    assert groups.shape == ((1, 3, 5, rows * cols) if sampler == "patch_merge" else (rows * cols, 3, 5, 1))
    assert torch.equal(groups.flatten().sort().values, tokens.flatten())


def coordinates(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x], dim=-1)


@pytest.mark.parametrize("grid", GRIDS)
def test_2d_shows_the_place_of_the_base_token(grid):
    rows, cols = grid
    base = coordinates(3, 5)  # token t of the base view covers rows x cols cells of the mosaic
    for group, tokens in enumerate(sample(coordinates(rows * 3, cols * 5), grid, "2d")):
        assert torch.equal(tokens // torch.tensor(grid), base)
        assert torch.equal(tokens % torch.tensor(grid), torch.tensor([[group // cols, group % cols]]).expand_as(tokens))


@pytest.mark.parametrize("grid", GRIDS)
def test_block_gives_back_the_crops(grid):
    crops = torch.randn(2, grid[0] * grid[1], 3, 5, 4)
    assert torch.equal(sample(mosaic(crops, grid), grid, "block"), crops.transpose(0, 1))


@pytest.mark.parametrize("grid", GRIDS)
def test_1d_takes_every_nth_token_of_the_mosaic(grid):
    tokens = torch.randn(grid[0] * 3, grid[1] * 5, 4)
    for group, taken in enumerate(sample(tokens, grid, "1d")):
        assert taken.shape == (3, 5, 4)
        assert torch.equal(taken.flatten(0, 1), tokens.flatten(0, 1)[group :: grid[0] * grid[1]])


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 3)])
def test_patch_merge_is_torchs_pixel_unshuffle(grid):
    """Which keeps the channels of a map together, where patch mergers keep those of a token together."""
    tokens = torch.randn(2, grid[0] * 3, grid[1] * 5, 4)
    (merged,) = sample(tokens, grid, "patch_merge")
    expected = F.pixel_unshuffle(tokens.permute(0, 3, 1, 2), grid[0]).unflatten(1, (4, -1))
    assert torch.equal(merged, expected.permute(0, 3, 4, 2, 1).flatten(-2))


@pytest.mark.parametrize("grid", GRIDS)
def test_pool_is_torchs_average_pooling(grid):
    tokens = torch.randn(2, grid[0] * 3, grid[1] * 5, 4)
    (pooled,) = sample(tokens, grid, "pool")
    expected = F.avg_pool2d(tokens.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled, expected)


def test_corners_are_granite_4_visions_spatial_groups():
    granite = pytest.importorskip("transformers.models.granite4_vision.modeling_granite4_vision")
    tokens = torch.randn(3, 6, 6, 4)
    groups = sample(tokens, (2, 2), "corner")
    assert len(groups) == 4
    for offset, group in enumerate(groups):
        assert torch.equal(group.flatten(1, 2), granite.spatial_offset_downsample(tokens.flatten(1, 2), 6, offset))


def test_identity_is_the_map_itself():
    tokens = torch.randn(3, 4, 6, 2)
    (group,) = sample(tokens, (1, 1), "identity")
    assert torch.equal(group, tokens)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_is_sampled_image_by_image(sampler):
    tokens = torch.randn(3, 2, 6, 8, 4)
    together = sample(tokens, (2, 2), sampler)
    groups, shape = {"patch_merge": (1, (3, 4, 16)), "pool": (1, (3, 4, 4)), "identity": (1, (6, 8, 4))}.get(
        sampler, (4, (3, 4, 4))
    )
    assert together.shape == (groups, 3, 2, *shape)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(together[:, i, j], sample(tokens[i, j], (2, 2), sampler))


def test_a_mosaic_lays_crops_row_by_row():
    crops = torch.arange(6).view(6, 1, 1, 1).expand(6, 2, 3, 1)
    assert mosaic(crops, (2, 3))[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_wrong_counts_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="5 crops cannot form a grid of 2 x 2"):
        mosaic(torch.zeros(5, 4, 4, 1), (2, 2))
    with pytest.raises(ValueError, match="a mosaic of 6 x 7 tokens does not divide into 2 x 2"):
        sample(torch.zeros(6, 7, 1), (2, 2))
