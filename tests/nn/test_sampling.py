"""Sampling against the authors' groups, and its two properties: nothing is lost, everything is aligned."""

import pytest
import torch

from dslight.nn.sampling import SAMPLERS, mosaic, sample

GRIDS = [(1, 1), (2, 2), (1, 3), (3, 1), (2, 3), (4, 1), (3, 2)]
NAMES = {"2d": "2d", "1d": "1d", "grid": "block"}  # the authors' name -> ours


def groups_of(crops, grids, count, sampler):
    """Crops of all images ``[K, 4, 4, D]`` -> ``[S, B, 16, D]``, zeros behind an image's last group."""
    result, start = torch.zeros(count, len(grids), 16, crops.shape[-1]), 0
    for image, grid in enumerate(grids):
        size = grid[0] * grid[1]
        result[:size, image] = sample(mosaic(crops[start : start + size], grid), grid, sampler)
        start += size
    return result


@pytest.mark.golden_model
@pytest.mark.parametrize(
    ("case", "features"),
    [
        ("deepstack_l_2d", "deepstack_l_2d"),
        ("deepstack_l_1d", "deepstack_l_2d"),
        ("deepstack_l_grid", "deepstack_l_2d"),
        ("deepstack_l_2d_mixed_grids", "deepstack_l_2d_mixed_grids"),
    ],
)
def test_projected_features_become_the_authors_groups(golden, same, case, features):
    config, grids = golden.config(case), golden.grids(case)
    tokens = golden.projector()(golden.outputs(features)["vision_features"])
    crops = tokens[len(grids) :].unflatten(1, (4, 4))  # the base views of all images stand first
    assert len(crops) == sum(rows * cols for rows, cols in grids)
    ours = groups_of(crops, grids, config["num_crops"], NAMES[config["sampling"]])
    same(ours, golden.outputs(case)["stack_groups"], atol=1e-5)


@pytest.mark.golden_model
@pytest.mark.parametrize("sampling", ["2d", "1d", "grid"])
@pytest.mark.parametrize("batch", ["all_grids", "numcrops6"])
def test_every_grid_becomes_the_authors_groups(golden, sampling, batch):
    """With ``grid`` the authors' groups are the crops themselves: the input of the other two samplers."""
    grids, count = golden.grids(f"deepstack_l_grid_{batch}"), golden.config(f"deepstack_l_grid_{batch}")["num_crops"]
    whole = golden.outputs(f"deepstack_l_grid_{batch}")["stack_groups"]
    crops = torch.cat([whole[: rows * cols, image] for image, (rows, cols) in enumerate(grids)]).unflatten(1, (4, 4))
    ours = groups_of(crops, grids, count, NAMES[sampling])
    expected = golden.outputs(f"deepstack_l_{sampling}_{batch}")["stack_groups"]
    torch.testing.assert_close(
        ours, expected, atol=1e-6, rtol=0
    )  # the same numbers; a batched matmul made them in another order
    assert len(set(grids)) >= 3
    assert expected.abs().sum() > 0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_sampler_loses_and_makes_no_token(sampler, grid):
    rows, cols = grid
    tokens = torch.arange(rows * 3 * cols * 5).view(rows * 3, cols * 5, 1)
    groups = sample(tokens, grid, sampler)
    assert groups.shape == (rows * cols, 15, 1)
    assert torch.equal(groups.flatten().sort().values, tokens.flatten())


def coordinates(height, width):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x], dim=-1)


@pytest.mark.parametrize("grid", GRIDS)
def test_2d_shows_the_place_of_the_base_token(grid):
    rows, cols = grid
    base = coordinates(3, 5).flatten(0, 1)  # token t of the base view covers rows x cols cells of the mosaic
    for group, tokens in enumerate(sample(coordinates(rows * 3, cols * 5), grid, "2d")):
        assert torch.equal(tokens // torch.tensor(grid), base)
        assert torch.equal(tokens % torch.tensor(grid), torch.tensor([[group // cols, group % cols]]).expand_as(tokens))


@pytest.mark.parametrize("grid", GRIDS)
def test_block_gives_back_the_crops(grid):
    crops = torch.randn(2, grid[0] * grid[1], 3, 5, 4)
    assert torch.equal(sample(mosaic(crops, grid), grid, "block"), crops.flatten(2, 3).transpose(0, 1))


@pytest.mark.parametrize("grid", GRIDS)
def test_1d_takes_every_nth_token_of_the_mosaic(grid):
    tokens = torch.randn(grid[0] * 3, grid[1] * 5, 4)
    for group, taken in enumerate(sample(tokens, grid, "1d")):
        assert torch.equal(taken, tokens.flatten(0, 1)[group :: grid[0] * grid[1]])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_is_sampled_image_by_image(sampler):
    tokens = torch.randn(3, 2, 6, 8, 4)
    together = sample(tokens, (2, 2), sampler)
    assert together.shape == (4, 3, 2, 12, 4)
    for i in range(3):
        for j in range(2):
            assert torch.equal(together[:, i, j], sample(tokens[i, j], (2, 2), sampler))


def test_a_mosaic_lays_crops_row_by_row():
    crops = torch.arange(6).view(6, 1, 1, 1).expand(6, 2, 3, 1)
    assert mosaic(crops, (2, 3))[::2, ::3, 0].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_wrong_counts_are_refused_with_the_numbers():
    with pytest.raises(ValueError, match="5 crops cannot form a grid of 2 x 2"):
        mosaic(torch.zeros(5, 4, 4, 1), (2, 2))
    with pytest.raises(ValueError, match="a mosaic of 6 x 7 tokens does not divide into 2 x 2"):
        sample(torch.zeros(6, 7, 1), (2, 2))
