"""What every kind of projector promises: shapes, places, gradients, sharing, dtypes, recipes."""

import copy
import re
from collections.abc import Callable
from functools import partial

import jsonargparse
import pytest
import torch

from dslight.components import (
    AttentionPoolProjector,
    AveragePoolProjector,
    CAbstractorProjector,
    IdentityProjector,
    MLPProjector,
    PerceiverResamplerProjector,
    PixelShuffleMLPProjector,
    Projector,
    WindowQFormerProjector,
)

C, D = 8, 12
KINDS = {
    "mlp": MLPProjector,
    "mlp_normed": partial(MLPProjector, norm="pre"),
    "pixel_shuffle": partial(PixelShuffleMLPProjector, factor=2, norm="post", hidden="merged"),
    "pixel_shuffle_pre": partial(PixelShuffleMLPProjector, factor=4, norm="pre"),
    "pixel_shuffle_placed": partial(
        PixelShuffleMLPProjector, norm="pre", position="hidden", hidden_norm=True, out_norm=True
    ),
    "attention_pool": partial(AttentionPoolProjector, heads=2, head_dim=6, hidden=20),
    "average_pool": AveragePoolProjector,
    "average_pool_first": partial(AveragePoolProjector, factor=4, pool_first=True),
    "resampler": partial(PerceiverResamplerProjector, grid=(2, 3), depth=2, heads=2),
    "resampler_of_its_width": partial(PerceiverResamplerProjector, grid=(3, 3), depth=1, heads=3, width=12),
    "c_abstractor": partial(CAbstractorProjector, depth=1, width=16),
    "c_abstractor_local": partial(CAbstractorProjector, grid=(4, 6), depth=1, width=16, se_ratio=0.0),
    "window": partial(WindowQFormerProjector, window=4, queries=2, heads=2, hidden=16, dropout=0.0),
    "window_corner": partial(
        WindowQFormerProjector, window=4, queries=2, queries_from="bottom_left", heads=2, hidden=16, dropout=0.0
    ),
}
GRID = (8, 12)
"""Rows and columns of a map, different so that no two can be swapped unseen."""


@pytest.fixture(params=KINDS)
def make(request) -> Callable[..., Projector]:
    def build(levels: int = 3, **more) -> Projector:
        torch.manual_seed(0)
        return KINDS[request.param]([C] * levels, D, **more)

    return build


def maps(levels: int = 3, count: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(levels, count, *GRID, C))


@pytest.mark.parametrize("per_level", [False, True])
def test_tokens_come_out_in_the_grid_that_was_announced(make, per_level):
    projector = make(per_level=per_level).eval()
    assert projector(maps()).shape == (3, 2, *projector.out_grid(GRID), D)


@pytest.mark.parametrize("per_level", [False, True])
def test_a_gradient_reaches_every_parameter(make, per_level):
    projector = make(per_level=per_level).train()
    projector(maps()).square().sum().backward()
    without = [name for name, p in projector.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_one_net_serves_every_level_unless_each_has_its_own(make):
    same = maps(1) * 3
    first, second, third = make().eval()(same)
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(first, third)
    first, second, _ = make(per_level=True).eval()(same)
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("per_level", [False, True])
def test_levels_and_maps_keep_to_themselves(make, per_level):
    projector, given = make(per_level=per_level).eval(), maps()
    before = projector(given)
    given[1][0] = torch.randn(*GRID, C)
    moved = (projector(given) - before).abs().amax((2, 3, 4)) > 1e-5
    assert moved.tolist() == [[False, False], [True, False], [False, False]]


def test_levels_of_different_widths_need_nets_of_their_own(make):
    build = make.__closure__[0].cell_contents
    kind = KINDS[build.param]
    widths = [8, 24]
    with pytest.raises(
        ValueError, match=r"^per_level: levels of widths 8, 24 cannot share one net; set per_level: true$"
    ):
        kind(widths, D)
    projector = kind(widths, D, per_level=True).eval()
    out = projector([torch.randn(2, *GRID, width) for width in widths])
    assert out.shape == (2, 2, *projector.out_grid(GRID), D)


def test_half_precision_changes_digits_only(make):
    projector = make().eval()
    expected = projector(maps())
    found = projector.bfloat16()([level.bfloat16() for level in maps()])
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.06 * expected.abs().max()


def test_features_of_a_half_precision_encoder_are_taken(make):
    projector, halved = make().eval(), [level.bfloat16() for level in maps()]
    assert torch.equal(projector(halved), projector([level.float() for level in halved]))


def test_automatic_precision_is_taken(make):
    projector = make()
    with torch.autocast("cpu", torch.bfloat16):
        out = projector(maps())
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in projector.parameters())


def test_it_is_built_without_memory(make):
    with torch.device("meta"):
        projector = make(per_level=True)
    assert all(p.is_meta for p in projector.parameters())
    assert projector.out_grid(GRID) == make().out_grid(GRID)


def test_shard_units_are_parts_of_it_and_do_not_overlap(make):
    projector = make(per_level=True)
    inside = {id(module) for module in projector.modules()}
    held = [id(p) for unit in projector.shard_units for p in unit.parameters()]
    assert all(id(unit) in inside for unit in projector.shard_units)
    assert len(held) == len(set(held))


def test_a_copy_gives_the_same(make):
    projector = make().eval()
    torch.testing.assert_close(copy.deepcopy(projector)(maps()), projector(maps()), rtol=0, atol=0)


def test_the_number_of_levels_is_checked(make):
    with pytest.raises(ValueError, match=r"^maps: 2 levels; the projector was made for 3$"):
        make()(maps(2))


# --- places


def reach(projector: Projector, row: int, col: int) -> set[tuple[int, int]]:
    """The output tokens that one cell of the map changes."""
    given = maps(1, 1)[0].requires_grad_()
    out = projector([given])[0, 0]
    mix = torch.randn(out.shape[-1], generator=torch.Generator().manual_seed(2))
    found = set()
    for r in range(out.shape[0]):
        for c in range(out.shape[1]):
            (grad,) = torch.autograd.grad((out[r, c] * mix).sum(), given, retain_graph=True)
            if grad[0, row, col].abs().max() > 1e-9:
                found.add((r, c))
    return found


CELLS = [(0, 0), (3, 5), (7, 11), (4, 2)]


@pytest.mark.parametrize(("kind", "side"), [("mlp", 1), ("pixel_shuffle", 2), ("pixel_shuffle_pre", 4),
                                            ("average_pool", 2), ("mlp_normed", 1),
                                            ("attention_pool", 2), ("average_pool_first", 4)])  # fmt: skip
@pytest.mark.parametrize(("row", "col"), CELLS)
def test_a_cell_is_seen_by_the_token_that_covers_it_and_by_no_other(kind, side, row, col):
    assert reach(KINDS[kind]([C], D), row, col) == {(row // side, col // side)}


@pytest.mark.parametrize(("row", "col"), CELLS)
def test_a_cell_is_seen_by_all_of_its_window_and_by_no_other(row, col):
    inside = {(row // 4 * 2 + i, col // 4 * 2 + j) for i in range(2) for j in range(2)}
    assert reach(KINDS["window"]([C], D).eval(), row, col) == inside


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("row", "col"), CELLS)
def test_a_cell_is_seen_by_tokens_in_reach_of_the_convolutions(depth, row, col):
    projector = CAbstractorProjector([C], D, factor=2, depth=depth, width=16, se_ratio=0.0)
    sees = depth + depth * 2  # cells around its own block of 2 x 2
    expected = {
        (r, c)
        for r in range(4)
        for c in range(6)
        if r * 2 - sees <= row < r * 2 + 2 + sees and c * 2 - sees <= col < c * 2 + 2 + sees
    }
    found = reach(projector, row, col)
    assert found <= expected
    assert (row // 2, col // 2) in found
    assert len(found) < 24 or len(expected) == 24


def test_squeeze_and_excitation_and_resamplers_see_everything():
    assert len(reach(CAbstractorProjector([C], D, depth=1, width=16), 0, 0)) == 24
    assert len(reach(KINDS["resampler"]([C], D), 0, 0)) == 6
    assert not PerceiverResamplerProjector.aligned
    assert MLPProjector.aligned


# --- what is refused


@pytest.mark.parametrize(
    ("projector", "message"),
    [
        (PixelShuffleMLPProjector([C], D, factor=5), "factor: a map of 24 x 24 tokens does not divide by 5; it does by "
                                                     "1, 2, 3, 4, 6, 8, 12, 24"),
        (AveragePoolProjector([C], D, factor=5), "factor: a map of 24 x 24 tokens does not divide by 5; "),
        (CAbstractorProjector([C], D, factor=5, width=16), "factor: a map of 24 x 24 tokens does not divide by 5; "),
        (CAbstractorProjector([C], D, grid=(4, 25), width=16), "grid: 4 x 25 tokens cannot be pooled out of a map of "
                                                               "24 x 24"),
        (WindowQFormerProjector([C], D, window=5), "window: a map of 24 x 24 tokens does not divide by 5; "),
    ],
)  # fmt: skip
def test_a_map_that_does_not_divide_is_refused_before_and_at_work(projector, message):
    for ask in (lambda: projector.out_grid((24, 24)), lambda: projector([torch.zeros(1, 24, 24, C)])):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            ask()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(PixelShuffleMLPProjector, factor=0), "factor: blocks of at least 1 x 1 tokens become one, got 0"),
        (partial(PixelShuffleMLPProjector, norm="pre", stack_norm="post"),
         "per_level: levels with norm pre and stack_norm post cannot share one net; set per_level: true"),
        (partial(PixelShuffleMLPProjector, layers=0), "layers: a projector needs at least 1 layer, got 0"),
        (partial(PixelShuffleMLPProjector, layers=1, position="hidden"), "position: stands between two linear layers"),
        (partial(PixelShuffleMLPProjector, layers=1, hidden_norm=True), "hidden_norm: stands between two linear"),
        (partial(PixelShuffleMLPProjector, hidden=14, position="hidden"),
         "position: a 2-D sine-cosine code needs a width divisible by 4, got 14"),
        (partial(AveragePoolProjector, factor=0), "factor: blocks of at least 1 x 1 tokens become one, got 0"),
        (partial(PerceiverResamplerProjector, heads=3), "heads: a width of 8 does not divide by 3"),
        (partial(PerceiverResamplerProjector, heads=3, width=6), "width: sine-cosine positions need a multiple of 4"),
        (partial(PerceiverResamplerProjector, grid=(0, 4)), "grid: the queries have rows and columns, at least 1"),
        (partial(PerceiverResamplerProjector, depth=0), "depth: queries read the map in at least 1 block, got 0"),
        (partial(CAbstractorProjector, depth=0), "depth: at least 1 block before and 1 behind the pool, got 0"),
        (partial(CAbstractorProjector, factor=0), "factor: blocks of at least 1 x 1 tokens become one, got 0"),
        (partial(WindowQFormerProjector, window=4, queries=5), "queries: between 1 x 1 and the window's 4 x 4 come"),
        (partial(WindowQFormerProjector, depth=0), "depth: queries read the window in at least 1 layer, got 0"),
        (partial(WindowQFormerProjector, heads=3), "heads: a width of 8 does not divide by 3"),
        (partial(WindowQFormerProjector, queries_from=["area"]), "queries_from: 1 named; there are 2 levels"),
        (partial(WindowQFormerProjector, queries_from=["area", "top_left"]),
         "per_level: queries from area, top_left cannot share one net; set per_level: true"),
        (partial(WindowQFormerProjector, queries=3, queries_from="top_left"),
         "queries_from: corners are those of 2 x 2 blocks; with window 8, set queries: 4"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_projector_are_refused(make, message):
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make([C, C], D)


# --- recipes


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MLPProjector", {"layers": 1, "per_level": True}),
        ("IdentityProjector", {}),
        ("PixelShuffleMLPProjector", {"hidden": "merged", "norm": "pre", "stack_norm": "post", "per_level": True}),
        ("PixelShuffleMLPProjector", {"hidden": 20, "eps": 1e-5}),
        ("PixelShuffleMLPProjector", {"position": "hidden", "hidden_norm": True, "out_norm": True}),
        ("AttentionPoolProjector", {"heads": 2, "head_dim": 6, "hidden": 20}),
        (
            "PerLevelProjector",
            {
                "kinds": [
                    {"class_path": "dslight.components.MLPProjector"},
                    {"class_path": "dslight.components.PixelShuffleMLPProjector", "init_args": {"factor": 1}},
                ]
            },
        ),
        ("LevelLoRAProjector", {"projector": {"class_path": "dslight.components.MLPProjector"}, "rank": 2}),
        ("AveragePoolProjector", {"pool_first": True}),
        ("PerceiverResamplerProjector", {"grid": [2, 3], "heads": 2}),
        ("CAbstractorProjector", {"grid": [2, 3], "width": 16}),
        ("WindowQFormerProjector", {"queries_from": ["area", "top_left"], "per_level": True}),
        ("WindowQFormerProjector", {"queries_from": "bottom_right"}),
    ],
)
def test_a_recipe_names_it_and_its_arguments(name, arguments):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--projector", type=Callable[[list[int], int], Projector])
    given = parser.parse_object({"projector": {"class_path": f"dslight.components.{name}", "init_args": arguments}})
    width = C if name == "IdentityProjector" else D
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    projector = instantiate(given).projector([C, C], width)
    assert isinstance(projector, Projector)
    assert projector.levels == 2
    if name == "IdentityProjector":
        assert isinstance(projector, IdentityProjector)
