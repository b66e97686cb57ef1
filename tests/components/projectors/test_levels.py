"""Levels that differ: another kind for each (Granite Docling's connector), a low-rank difference for each."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from dslight.components import (
    AttentionPoolProjector,
    AveragePoolProjector,
    IdentityProjector,
    LevelLoRAProjector,
    MLPProjector,
    PerceiverResamplerProjector,
    PerLevelProjector,
    PixelShuffleMLPProjector,
    WindowQFormerProjector,
)
from dslight.testing import ProjectorContract
from dslight.written import written_behind

C, D, SIDE = 8, 12, 8
BASE = partial(
    PixelShuffleMLPProjector, factor=4, norm="pre", eps=1e-5, bias=False, position="hidden", hidden_norm=True,
    out_norm=True,
)  # fmt: skip
STACKS = partial(PixelShuffleMLPProjector, factor=4, norm="post", eps=1e-5, per_level=True)


def maps(levels: int, count: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return list(torch.randn(levels, count, SIDE, SIDE, C))


@torch.no_grad()
def test_base_and_stacks_of_other_kinds_are_granite_docling_s_connector():
    """A position code in the width of the language model, norms around it; mergers beside it."""
    docling = "transformers.models.granite_docling"
    theirs_of = pytest.importorskip(f"{docling}.modeling_granite_docling").GraniteDoclingConnector
    config_of = pytest.importorskip(f"{docling}.configuration_granite_docling").GraniteDoclingVisionConfig
    torch.manual_seed(0)
    config = config_of(
        hidden_size=C, out_hidden_size=D, image_size=SIDE * 2, patch_size=2, scale_factor=4, use_fine_route=False,
        deepstack_visual_indexes=[0, 1, 2],
    )  # fmt: skip
    theirs = theirs_of(config).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = PerLevelProjector([C] * 4, D, [BASE, STACKS])
    base, stacks = ours.kinds
    names = {"norm": "ln_in", "mlp.0": "coarse.projection", "mlp.norm": "ln_mid", "mlp.2": "mlp_fc2",
             "out_norm": "ln_out"}  # fmt: skip
    for name, own in names.items():
        base.net.get_submodule(name).load_state_dict(theirs.get_submodule(own).state_dict())
    for net, merger in zip(stacks.nets, theirs.coarse.deepstack_mergers, strict=True):
        for name, own in {"norm": "layer_norm", "mlp.0": "linear_1", "mlp.2": "linear_2"}.items():
            net.get_submodule(name).load_state_dict(merger.get_submodule(own).state_dict())
    given = maps(4)
    first, others = theirs(given[0].flatten(1, 2), [level.flatten(1, 2) for level in given[1:]])
    found = ours(given)
    assert found.shape == (4, 2, 2, 2, D)
    torch.testing.assert_close(found.flatten(1, 3), torch.stack([first, *others]), atol=1e-5, rtol=1e-5)
    assert (found[0, 0] - ours([torch.ones_like(one) for one in given])[0, 0]).abs().max() > 0.1


@torch.no_grad()
def test_a_position_code_tells_equal_tokens_of_a_map_apart():
    projector = PixelShuffleMLPProjector([C], D, factor=2, position="out")
    found = projector([torch.ones(1, 4, 6, C)])[0, 0]
    plain = PixelShuffleMLPProjector([C], D, factor=2)
    plain.load_state_dict(projector.state_dict())  # the code is no weight
    code = found - plain([torch.ones(1, 4, 6, C)])[0, 0]
    torch.testing.assert_close(code[:, :, : D // 2], code[:1, :, : D // 2].expand(2, -1, -1))  # of the column
    torch.testing.assert_close(code[:, :, D // 2 :], code[:, :1, D // 2 :].expand(-1, 3, -1))  # of the row
    torch.testing.assert_close(code[1, 2, [0, 6]], torch.tensor([2.0, 1.0]).sin())
    torch.testing.assert_close(code[1, 2, [3, 9]], torch.tensor([2.0, 1.0]).cos())
    assert not projector.local
    assert plain.local


def test_kinds_are_made_for_the_levels_that_there_are():
    """Of one level the first alone, of two one each, and the last takes the rest."""
    kinds = [BASE, STACKS]
    levels = [[one.levels for one in PerLevelProjector([C] * n, D, kinds).kinds] for n in (1, 2, 4)]
    assert levels == [[1], [1, 1], [1, 3]]
    alone = PerLevelProjector([C, 2 * C], D, [MLPProjector, partial(MLPProjector, layers=1)])
    assert [len(kind.net) for kind in alone.kinds] == [3, 1]
    assert len(PerLevelProjector([C] * 3, D, [MLPProjector]).kinds) == 1
    assert set(alone.diagnostics()) == {"kind_0_norm", "kind_1_norm"}


def test_it_is_local_and_aligned_where_every_kind_is():
    made = PerLevelProjector([C] * 2, D, [MLPProjector, partial(PerceiverResamplerProjector, grid=(8, 8), heads=2)])
    assert (made.aligned, made.local) == (False, False)
    assert not PerLevelProjector([C] * 2, D, [BASE, STACKS]).local
    made = PerLevelProjector([C] * 2, D, [partial(AveragePoolProjector, factor=2), PixelShuffleMLPProjector])
    assert (made.aligned, made.local) == (True, True)


@pytest.mark.parametrize(
    ("kinds", "levels", "message"),
    [
        ([], 1, "kinds: empty; name a projector"),
        ([MLPProjector, partial(MLPProjector, layers=0)], 2, r"kinds\.1\.layers: a projector needs at least 1 layer"),
        ([MLPProjector, STACKS], 2, r"kinds\.1: makes 2 x 2 tokens of a map of 8 x 8, and kinds\.0 8 x 8"),
        ([MLPProjector, partial(STACKS, factor=3)], 2, r"kinds\.1\.factor: a map of 8 x 8 tokens does not divide by 3"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(kinds, levels, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        PerLevelProjector([C] * levels, D, kinds).out_grid((8, 8))


# --- one net, and a difference for each level

SHARED = {
    "mlp": MLPProjector,
    "normed": partial(MLPProjector, norm="pre"),
    "pixel_shuffle": partial(PixelShuffleMLPProjector, norm="post"),
    "attention": partial(AttentionPoolProjector, heads=2, head_dim=4, hidden=14),
    "window": partial(WindowQFormerProjector, window=4, queries=2, heads=2, hidden=16, dropout=0.0),
}


@pytest.mark.parametrize("name", SHARED)
@torch.no_grad()
def test_a_level_has_the_shared_weights_and_its_own_difference(name):
    """Against three plain projectors whose weights are W + B A * alpha / r."""
    torch.manual_seed(0)
    ours = LevelLoRAProjector([C] * 3, D, SHARED[name], rank=2, alpha=6.0).eval().double()
    plain, given = SHARED[name]([C] * 3, D).eval().double(), maps(3)
    plain.load_state_dict({key: one for key, one in ours.shared.state_dict().items() if key.split(".")[-1] not in
                           ("up", "down")})  # fmt: skip
    torch.testing.assert_close(ours(given), plain(given))  # differences start at zero
    linears = [path for path, one in plain.net.named_modules() if isinstance(one, nn.Linear)]
    assert linears
    for path in linears:
        nn.init.normal_(ours.shared.net.get_submodule(path).up)
    for level in range(3):
        own = copy.deepcopy(plain)
        for path in linears:
            adapted = ours.shared.net.get_submodule(path)
            own.net.get_submodule(path).weight += adapted.up[level] @ adapted.down[level] * 3.0
        torch.testing.assert_close(ours(given)[level], own(given)[level])
        assert (own(given)[level] - plain(given)[level]).abs().max() > 1e-2


def test_the_shared_net_and_the_differences_learn():
    projector = LevelLoRAProjector([C] * 2, D, MLPProjector, rank=2)
    for parameter in projector.parameters():
        nn.init.normal_(parameter)
    projector(maps(2)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().max() > 0 for one in projector.parameters())
    assert {name for name, _ in projector.named_parameters()} >= {"shared.net.0.weight", "shared.net.0.up"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"projector": partial(MLPProjector, per_level=True)},
            "projector: MLPProjector has no net that the levels share",
        ),
        ({"projector": partial(MLPProjector, layers=0)}, "projector.layers: a projector needs at least 1 layer"),
        ({"projector": IdentityProjector, "out": C}, "projector: IdentityProjector has no linear layer for a level"),
        ({"rank": 0}, "rank: must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha: must be above 0, got 0.0"),
        ({"widths": [C, 2 * C]}, "projector: levels of widths 8, 16 cannot share one net"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, message):
    options = {"projector": MLPProjector, "widths": [C, C], "out": D, **options}
    with pytest.raises(ValueError, match=f"^{message}"):
        LevelLoRAProjector(options.pop("widths"), options.pop("out"), **options)


def test_both_are_written_down_as_they_were_composed():
    kinds = partial(
        PerLevelProjector, kinds=[MLPProjector, partial(LevelLoRAProjector, projector=MLPProjector, rank=4)]
    )
    assert written_behind(kinds([C] * 3, D), 2) == {
        "class_path": "dslight.components.PerLevelProjector",
        "init_args": {
            "kinds": [
                {"class_path": "dslight.components.MLPProjector"},
                {
                    "class_path": "dslight.components.LevelLoRAProjector",
                    "init_args": {"projector": {"class_path": "dslight.components.MLPProjector"}, "rank": 4},
                },
            ]
        },
    }


class TestKinds(ProjectorContract):
    def make(self):
        torch.manual_seed(0)
        return PerLevelProjector(self.in_widths, self.out_width, [MLPProjector, partial(MLPProjector, norm="pre")])


class TestDifferences(ProjectorContract):
    def make(self):
        torch.manual_seed(0)
        projector = LevelLoRAProjector(self.in_widths, self.out_width, MLPProjector, rank=4)
        for name, parameter in projector.named_parameters():
            if name.endswith(".up"):
                nn.init.normal_(parameter)  # at zero no gradient reaches the other half
        return projector
