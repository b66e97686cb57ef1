"""Flamingo's way in as a scheduler: what is in the memory, against encoder and projector asked by hand; what holds of
the whole model; and its recipe.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch

from dslight.cli import main
from dslight.components import CrossAttention, DeepStackL, LowResolution, MLPProjector
from dslight.layout import SlotLayout
from dslight.nn.loss import next_token_loss
from dslight.recipe.build import check
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.run.plan import plan
from dslight.train.optim import PartTraining, Stage
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM

GRIDS = [(2, 2), (0, 0), (1, 3)]
TILES = [1 + rows * cols for rows, cols in GRIDS]
SMALL = {"heads": 4, "head_dim": 8, "ffn": 2}
SLOW = pytest.mark.slow
PER_LEVEL = partial(MLPProjector, per_level=True)
QUICKSTART = Path(__file__).parents[3] / "recipes" / "quickstart" / "deepstack_l.yaml"


@pytest.fixture
def make_vlm(tiny_encoder, tiny_lm):
    def make(scheduler=None, projector=MLPProjector, seed=0, **options):
        encoder, lm = tiny_encoder(), tiny_lm()
        torch.manual_seed(seed)
        return VLM(encoder, projector, scheduler or CrossAttention(num_layers=3, **SMALL, **options), lm)

    return make


def make_batch(vlm, make_views, images=((1, 2), (0, 0)), seed=0):
    """Row 0 has all the images, row 1 is text only; left-padded."""
    layout = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)
    slots = sum(layout(grid) for grid in images)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 64, (2, slots + 8), generator=generator)
    mask, attention = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids)
    mask[0, 2 : 2 + slots] = True
    attention[1, :3] = 0
    labels = torch.where(torch.arange(ids.shape[1]) >= slots + 3, ids, IGNORE)
    return Batch(ids, attention, mask, labels, make_views(list(images)) if images else None, keys=["a", "b"])


# --- the memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_context", ["base", "marker"])
@pytest.mark.parametrize("source", ["crops", "base", "tiles"])
def test_the_memory_is_the_projected_tokens_of_each_images_views(make_vlm, make_views, source, in_context):
    vlm, views = make_vlm(source=source, in_context=in_context), make_views(GRIDS)
    visual = vlm.see(views)
    (features,) = vlm.vision_encoder(views.pixels)
    tokens = vlm.projector.net(features).split(TILES)
    first, last = {"crops": (1, None), "base": (0, 1), "tiles": (0, None)}[source]
    torch.testing.assert_close(visual.memory.tokens, torch.cat([image[first:last] for image in tokens]).flatten(0, 1))
    assert visual.memory.counts == tuple(16 * len(image[first:last]) for image in tokens)
    if in_context == "base":
        torch.testing.assert_close(visual.base, torch.cat([image[0] for image in tokens]))
        assert visual.memory.slots == (16, 16, 16)
    else:
        assert torch.equal(visual.base, vlm.stacking.marker.expand(3, 32))
        assert visual.memory.slots == (1, 1, 1)
    assert (len(visual.stacks), visual.sites) == (0, ())
    assert (visual.memory.sites, len(visual.memory.blocks)) == ((1, 2, 3), 3)
    assert [vlm.stacking.beside(grid) * 16 for grid in GRIDS] == list(visual.memory.counts)


def test_the_encoder_sees_what_it_sees_for_deepstack_l():
    ours, theirs = CrossAttention(tap=-2), DeepStackL(tap=-2)
    assert ours.passes((2, 2)) == theirs.passes((2, 2))
    assert ours.smallest_grid == theirs.smallest_grid
    assert CrossAttention(in_context="marker").layout((4, 4)) == SlotLayout(tokens=(1, 1))
    assert CrossAttention().layout((4, 4)) == theirs.layout((4, 4))


def test_a_projector_that_makes_maps_smaller_makes_the_memory_smaller(make_vlm, make_views):
    class Halved(MLPProjector):
        def out_grid(self, grid):
            return (grid[0] // 2, grid[1] // 2)

        def forward(self, maps):
            return super().forward([level[:, ::2, ::2] for level in maps])

    vlm = make_vlm(projector=Halved)
    visual = vlm.see(make_views(GRIDS))
    assert visual.memory.counts == (16, 0, 12)
    assert visual.memory.slots == (4, 4, 4)


def test_positions_tell_one_crop_from_another(make_vlm, make_views):
    views = make_views([(1, 2)])
    views.pixels[2] = views.pixels[1]
    first, second = make_vlm().see(views).memory.tokens.chunk(2)
    torch.testing.assert_close(first, second)
    first, second = make_vlm(position=1.0).see(views).memory.tokens.chunk(2)
    assert (first - second).abs().amax(-1).min() > 1e-3


# --- the whole model ------------------------------------------------------------------------------------------------


def test_closed_gates_are_the_model_without_blocks_to_the_bit(make_vlm, make_views):
    vlm, plain = make_vlm(), make_vlm(LowResolution())
    batch = make_batch(vlm, make_views)
    assert torch.equal(vlm(batch), plain(batch))
    options = {"max_new_tokens": 5, "pad_token_id": 0}
    assert torch.equal(vlm.generate(batch, **options), plain.generate(batch, **options))


@pytest.mark.parametrize("in_context", ["base", "marker"])
def test_the_memory_changes_what_follows_its_image_and_nothing_else(make_vlm, make_views, in_context):
    vlm = make_vlm(source="crops", in_context=in_context, init=0.5)
    batch = make_batch(vlm, make_views, images=[(1, 2)])
    before = vlm(batch)
    batch.views.pixels[1:] = 255 - batch.views.pixels[1:]  # the crops alone
    difference = (vlm(batch) - before).abs().amax(-1)
    assert not difference[1].any()
    assert not difference[0, :2].any()
    assert (difference[0, 2:] > 1e-5).all()


@pytest.mark.parametrize("projector", [MLPProjector, PER_LEVEL], ids=["shared", "per level"])
@pytest.mark.parametrize("in_context", ["base", "marker"])
def test_a_gradient_reaches_every_parameter(make_vlm, make_views, in_context, projector):
    vlm = make_vlm(source="tiles", in_context=in_context, projector=projector, init=0.5).train()
    batch = make_batch(vlm, make_views, images=[(2, 2), (1, 2)])
    next_token_loss(vlm(batch), batch.labels)[0].backward()
    assert [n for n, p in vlm.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("in_context", ["base", "marker"])
def test_a_batch_of_text_is_plain_and_has_zero_gradients_and_not_none(make_vlm, make_views, in_context):
    vlm = make_vlm(source="tiles", in_context=in_context, projector=PER_LEVEL, init=0.5).train()
    batch = make_batch(vlm, make_views, images=())
    logits = vlm(batch)
    assert torch.equal(logits, vlm.language_model.logits(batch.input_ids, batch.attention_mask))
    next_token_loss(logits, batch.labels)[0].backward()
    for part in (vlm.vision_encoder, vlm.projector, vlm.stacking):
        assert all(p.grad is not None and not p.grad.any() for p in part.parameters())
    assert all(p.grad is not None for p in vlm.language_model.parameters())


def test_blocks_are_the_stackings_and_shard_one_by_one(make_vlm):
    vlm = make_vlm(in_context="marker")
    assert vlm.stacking.shard_units == list(vlm.stacking.blocks)
    names = {name.split(".")[0] for name in vlm.stacking.own_state()}
    assert names == {"blocks", "marker"}
    assert all(p.ndim for p in vlm.stacking.parameters())


def test_closed_gates_have_to_train(make_vlm):
    how = PartTraining(lr=1e-3)
    for vlm in (make_vlm(), make_vlm(in_context="marker")):
        with pytest.raises(
            ValueError, match=r"^train: the stacking's gates start closed.*give stacking a learning rate"
        ):
            vlm.train_with(Stage({"projector": how}))
        vlm.train_with(Stage({"stacking": how}))
        assert all(p.requires_grad for p in vlm.stacking.parameters())
        assert not any(p.requires_grad for p in vlm.language_model.parameters())
    make_vlm(init=0.1).train_with(Stage({"projector": how}))


# --- what it says of itself, and refuses ----------------------------------------------------------------------------


def test_placements_name_every_block():
    assert CrossAttention(num_layers=2, start=3, interval=4).placements == [
        ("language_model", 0, "base tokens, in the sequence"),
        ("language_model", 3, "gated cross-attention to crop tokens"),
        ("language_model", 7, "gated cross-attention to crop tokens"),
    ]
    assert CrossAttention(sites=[5], source="tiles", in_context="marker").placements == [
        ("language_model", 0, "a marker per image, in the sequence"),
        ("language_model", 5, "gated cross-attention to base and crop tokens"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers: must be at least 1, got 0"),
        ({"num_crops": 0}, "num_crops: must be at least 1, got 0"),
        ({"heads": 0}, "heads: must be at least 1, got 0"),
        ({"head_dim": 0}, "head_dim: must be at least 1, got 0"),
        ({"ffn": -1}, "ffn: must be at least 0, got -1"),
        ({"start": -1}, "start: must be at least 0, got -1"),
        ({"interval": 0}, "interval: must be at least 1, got 0"),
        ({"sites": [1, -2]}, "sites: layers count from 0, got -2"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        CrossAttention(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "start: 4 blocks in front of layers 1, 2, 3, 4 need 5 layers; the language model has 4"),
        ({"sites": [0, 9]}, "sites: 2 blocks in front of layers 0, 9 need 10 layers; the language model has 4"),
        ({"num_layers": 1, "tap": 9}, "tap: tap 9 is beyond the encoder's depth"),
    ],
)
def test_blocks_that_do_not_fit_the_parts_are_refused(tiny_encoder, options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        CrossAttention(**options).check(tiny_encoder(), 4)


# --- the recipe -----------------------------------------------------------------------------------------------------


@dataclass
class _Arm:
    """A recipe of the quickstart with another stacking."""

    options: dict = field(default_factory=dict)

    def file(self, folder):
        init = {"start": 0, "heads": 4, "head_dim": 16, "position": 1.0} | self.options
        stacking = {"class_path": "dslight.components.CrossAttention", "init_args": init}
        values = {
            "bases": [str(QUICKSTART)],
            "name": "cross",
            "model": {"stacking": stacking},
            "stage": {"train": {"stacking": {"lr": 4e-3}}},
        }
        path = folder / "cross.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        return path


def test_a_recipe_names_it_like_any_stacking(tmp_path):
    file = _Arm({"source": "tiles"}).file(tmp_path)
    experiment = check(compose(file))
    assert isinstance(experiment.model.stacking, CrossAttention)
    assert experiment.slots((2, 2)) == 16
    with pytest.raises(RecipeError, match=r"^stage\.train: the stacking's gates start closed"):
        check(compose(file, ["stage.train.stacking=null"]) | {"stage": {"train": {"projector": {"lr": 1e-3}}}})
    with pytest.raises(RecipeError, match=r"model\.stacking\.init_args\.start: 4 blocks in front of layers 5, 6, 7, 8"):
        check(compose(file, ["model.stacking.init_args.start=5"]))
    with pytest.raises(RecipeError, match=r"model\.stacking\.init_args\.num_crops: 2 stacks cannot take the 4 crops"):
        check(compose(file, ["model.stacking.init_args.num_crops=2"]))
    with pytest.raises(RecipeError, match="choose views with a grid"):
        check(compose(file, ["data.views={class_path: dslight.data.images.SingleView}"]))


def part(planned, name):
    return next(part for part in planned.parts if part.name == name)


@pytest.mark.parametrize(
    ("source", "views", "ffn"),
    [
        ("crops", 4, 4),
        ("tiles", 5, 0),
        *(
            pytest.param(*case, marks=SLOW)
            for case in (("crops", 4, 0), ("tiles", 5, 4), ("base", 1, 0), ("base", 1, 4))
        ),
    ],
)
def test_the_plan_counts_the_products_of_the_blocks(tmp_path, source, views, ffn):
    planned = plan(compose(_Arm({"source": source, "ffn": ffn}).file(tmp_path)), text_tokens=20)
    width, inner, positions, tokens = 64, 4 * 16, 16 + 20, 16 * views
    weights = 2 * width * inner * (positions + tokens) * 2 + 2 * 2 * ffn * width * width * positions
    assert part(planned, "stacking").forward_flops == 4 * (weights + 4 * positions * tokens * inner)
    assert part(planned, "stacking").parameters == 4 * (
        4 * width * inner + 2 * width + 1 + (2 * ffn * width**2 + 2 * width + 1 if ffn else 0)
    )
    assert part(planned, "stacking").lr == 4e-3


def test_the_other_parts_cost_what_they_cost_with_deepstack_l(tmp_path):
    ours = plan(compose(_Arm().file(tmp_path)), text_tokens=20)
    theirs = plan(compose(QUICKSTART), text_tokens=20)
    for name in ("vision_encoder", "projector", "language_model"):
        assert part(ours, name) == part(theirs, name)
    assert (ours.visual_tokens, ours.context_length) == (theirs.visual_tokens, theirs.context_length) == (80, 16)
    assert part(theirs, "stacking").forward_flops == 0


def test_the_plan_of_a_marker_is_short_in_context(tmp_path, capsys):
    assert main(["plan", str(_Arm({"in_context": "marker", "source": "tiles"}).file(tmp_path))]) == 0
    text = capsys.readouterr().out
    assert "visual tokens    80 read, 1 in the context" in text
    assert "language_model layer 3     gated cross-attention to base and crop tokens" in text
    assert "stacking        CrossAttention" in text


@pytest.mark.parametrize("frozen", [(), pytest.param(("vision_encoder", "projector"), marks=SLOW), ("language_model",)])
def test_the_plans_activations_are_what_autograd_keeps(tmp_path, make_views, frozen):
    """At the widths of the recipe, with the parts of the recipe, on random pixels."""
    values = compose(_Arm().file(tmp_path), ["data.global_batch_size=1"])
    values["stage"] = values["stage"] | {
        "train": {k: v for k, v in values["stage"]["train"].items() if k not in frozen}
    }
    from dslight.recipe.build import _assemble, parse

    model = _assemble(parse(values)).model.train()
    ids = torch.randint(3, 30, (1, 36))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 2:18] = True
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(Batch(ids, torch.ones_like(ids), mask, views=make_views([(2, 2)])))
    predicted = plan(values, text_tokens=20).memory.activations
    assert predicted == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.05)
