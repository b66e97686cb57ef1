"""Schedulers: which token stands in which slot, against loops written out; and what they refuse, word for word."""

import pytest
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

from dslight.components import DeepStackL, DeepStackV, LowResolution, SequenceConcat

MIXED = [(2, 2), (1, 2), (1, 2), (3, 1), (2, 2)]


def schedulers(**options):
    return {
        "LowResolution": LowResolution(**options),
        "DeepStackL": DeepStackL(num_stacks=4, **options),
        "DeepStackL block": DeepStackL(num_stacks=4, sampler="block", **options),
        "DeepStackL 1d": DeepStackL(num_stacks=5, sampler="1d", **options),
        "DeepStackL base": DeepStackL(num_stacks=2, source="base", **options),
        "DeepStackV": DeepStackV(num_stacks=4, start=0, **{k: v for k, v in options.items() if k != "position"}),
        "SequenceConcat": SequenceConcat(**options),
        "SequenceConcat 2d": SequenceConcat(sampler="2d", **options),
    }


def dilated(crops, grid):
    """Group (i, j): the tokens at rows i::rows and columns j::cols of the crops laid side by side, ``[16, C]`` each."""
    rows, cols = grid
    lines = [torch.cat([crops[r * cols + c].view(4, 4, -1) for c in range(cols)], dim=1) for r in range(rows)]
    large = torch.cat(lines, dim=0)
    return [large[i::rows, j::cols].reshape(16, -1) for i in range(rows) for j in range(cols)]


def each_image(views):
    """The views of each image: base first."""
    sizes = [1 + rows * cols for rows, cols in views.grids]
    return zip(views.pixels.split(sizes), views.grids, strict=True)


@pytest.mark.parametrize("name", schedulers())
@pytest.mark.parametrize("tap", ["final", -2])
def test_images_of_a_batch_do_not_touch_each_other(tiny_encoder, make_views, name, tap):
    scheduler, encoder, views = schedulers(tap=tap)[name], tiny_encoder(), make_views(MIXED)
    if name == "DeepStackV" and tap == -2:
        scheduler = DeepStackV(num_stacks=4, start=0, tap=-2)
    together = scheduler(encoder, views)
    layout = scheduler.slot_layout(encoder)
    alone = [scheduler(encoder, type(views)(pixels, [grid])) for pixels, grid in each_image(views)]
    assert [part.shape[1] for part in alone] == [layout(grid) for grid in MIXED]
    assert together.shape == (1 + len(scheduler.sites), sum(layout(grid) for grid in MIXED), encoder.width)
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_deepstack_l_is_the_base_view_and_the_dilated_crops(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views(MIXED)
    slots = DeepStackL(num_stacks=4)(encoder, views).unflatten(1, (-1, 16))
    for image, (pixels, grid) in enumerate(each_image(views)):
        (features,) = encoder(pixels)
        torch.testing.assert_close(slots[0, image], features[0])
        groups = dilated(features[1:], grid)
        for s in range(4):
            expected = groups[s] if s < len(groups) else torch.zeros(16, 16)
            torch.testing.assert_close(slots[1 + s, image], expected)


def test_missing_stacks_are_exactly_zero(tiny_encoder, make_views):
    for grids in ([(1, 2)] * 3, [(1, 2), (2, 2)]):  # one grid for all, and mixed, are two paths
        slots = DeepStackL(num_stacks=4)(tiny_encoder(), make_views(grids)).unflatten(1, (-1, 16))
        assert not slots[3:, 0].any()
        assert all(slots[s, 0].any() for s in range(3))


def test_missing_stacks_are_named_slot_by_slot(tiny_encoder):
    encoder, four = tiny_encoder(), DeepStackL(num_stacks=4)
    missing = four.missing(encoder, [(2, 2), (1, 2), (0, 0)])
    assert missing.shape == (5, 48)
    assert missing[:, ::16].tolist() == [
        [False, False, False],
        [False, False, True],
        [False, False, True],
        [False, True, True],
        [False, True, True],
    ]
    assert torch.equal(missing, missing[:, ::16].repeat_interleave(16, dim=1))
    assert four.missing(encoder, [(2, 2), (4, 1)]) is None
    assert DeepStackL(num_stacks=4, source="base").missing(encoder, [(0, 0)]) is None
    assert LowResolution().missing(encoder, [(0, 0)]) is None


def test_images_without_crops_among_others_have_zero_stacks(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(0, 0), (2, 1), (0, 0)])
    slots = DeepStackL(num_stacks=2)(encoder, views).unflatten(1, (-1, 16))
    assert not slots[1:, [0, 2]].any()
    assert slots[1:, 1].abs().sum() > 0
    torch.testing.assert_close(slots[0], encoder(views.base())[0])


def test_the_dummy_control_repeats_the_base_tokens(tiny_encoder, make_views):
    encoder, views, ran = tiny_encoder(), make_views(MIXED), []
    encoder.layers[0].register_forward_hook(lambda m, args, out: ran.append(len(out)))
    scheduler = DeepStackL(num_stacks=3, source="base")
    slots = scheduler(encoder, views)
    assert ran == [len(MIXED)]  # crops are not even encoded
    assert slots.shape == (4, 16 * len(MIXED), 16)
    assert all(torch.equal(stack, slots[0]) for stack in slots)
    assert not scheduler.uses_crops


def test_low_resolution_is_the_base_views_features(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views(MIXED)
    torch.testing.assert_close(
        LowResolution(tap=2)(encoder, views), encoder(views.base(), taps=[2])[0].flatten(0, 1)[None]
    )


def test_deepstack_v_stacks_the_crops_inside_the_encoder(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views(MIXED)
    ours = DeepStackV(num_stacks=2, start=1, interval=2, tap="final")(encoder, make_views([(1, 2), (2, 1)]))
    views = make_views([(1, 2), (2, 1)])
    for image, (pixels, grid) in enumerate(each_image(views)):
        (early,) = encoder(pixels[1:], taps=[1])
        stacks = torch.stack(dilated(early, grid))[:, None]
        (expected,) = encoder(pixels[:1], stacks=stacks, sites=(1, 3))
        torch.testing.assert_close(ours[0, image * 16 : image * 16 + 16], expected[0])


def test_crops_leave_the_encoder_where_stacking_begins(tiny_encoder, make_views):
    encoder, views, rows = tiny_encoder(), make_views([(2, 2)] * 3), []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    scheduler = DeepStackV(num_stacks=2, start=2)
    with pytest.raises(ValueError, match="num_stacks"):
        scheduler.check_grids(views.grids)
    DeepStackV(num_stacks=4, start=0)(encoder, views)
    assert rows == [12, 3, 3, 3, 3]  # a tap at 0 needs the patch embedding; layer 0 runs to show its input
    assert scheduler.encoded_layers(encoder) == {"base": 4, "crop": 2}


def test_sequence_concat_lays_crop_after_crop_behind_the_base(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views(MIXED)
    expected = [encoder(pixels)[0].flatten(0, 1) for pixels, _ in each_image(views)]
    torch.testing.assert_close(SequenceConcat()(encoder, views), torch.cat(expected)[None])
    dilating = [
        torch.cat([features[0], *dilated(features[1:], grid)])
        for pixels, grid in each_image(views)
        for (features,) in [encoder(pixels)]
    ]
    torch.testing.assert_close(SequenceConcat(sampler="2d")(encoder, views), torch.cat(dilating)[None])


def test_sequence_concat_takes_images_without_crops(tiny_encoder, make_views):
    encoder, grids = tiny_encoder(), [(0, 0), (1, 2)]
    slots = SequenceConcat()(encoder, make_views(grids))
    layout = SequenceConcat().slot_layout(encoder)
    assert slots.shape[1] == sum(layout(grid) for grid in grids) == 16 + 48


@pytest.mark.parametrize("name", ["LowResolution", "DeepStackL", "DeepStackL base", "SequenceConcat"])
def test_the_position_code_is_timms_on_the_grid_of_the_place(tiny_encoder, make_views, name):
    encoder, views = tiny_encoder(), make_views([(2, 2)])
    plain = schedulers()[name](encoder, views)
    added = schedulers(position=0.5)[name](encoder, views) - plain
    small = 0.5 * build_sincos2d_pos_embed([4, 4], 16)
    large = 0.5 * build_sincos2d_pos_embed([8, 8], 16).view(8, 8, 16)
    torch.testing.assert_close(added[0, :16], small)
    if name == "DeepStackL base":
        torch.testing.assert_close(added, small.expand(3, 16, 16))
    if name == "DeepStackL":
        expected = [large[i::2, j::2].reshape(16, 16) for i in range(2) for j in range(2)]
        torch.testing.assert_close(added[1:], torch.stack(expected))
    if name == "SequenceConcat":
        expected = [large[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(16, 16) for i in range(2) for j in range(2)]
        torch.testing.assert_close(added[0, 16:], torch.cat(expected))


def test_sites_and_placements_follow_start_and_interval():
    assert DeepStackL().sites == (1, 2, 3, 4)
    assert DeepStackL(num_stacks=3, start=0, interval=4).sites == (0, 4, 8)
    assert DeepStackL(num_stacks=2, start=3).placements == [
        ("language_model", 0, "base tokens, in the sequence"),
        ("language_model", 3, "+ stack 1"),
        ("language_model", 4, "+ stack 2"),
    ]
    vit = DeepStackV(num_stacks=2, start=20, interval=2)
    assert (vit.sites, vit.encoder_sites) == ((), (20, 22))
    assert vit.placements[:2] == [("vision_encoder", 20, "+ stack 1"), ("vision_encoder", 22, "+ stack 2")]
    assert LowResolution().sites == SequenceConcat().sites == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start: must be at least 0, got -1"),
        ({"interval": 0}, "interval: must be at least 1, got 0"),
        ({"num_stacks": 0}, "num_stacks: must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("kind", [DeepStackL, DeepStackV])
def test_sites_that_make_no_sense_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        kind(**options)


CHECKS = [
    (
        DeepStackL(num_stacks=4, start=1),
        "start: 4 stacks at layers 1, 2, 3, 4 need 5 layers; the language model has 4",
    ),
    (
        DeepStackL(num_stacks=2, start=0, interval=9),
        "start: 2 stacks at layers 0, 9 need 10 layers; the language model has 4",
    ),
    (DeepStackV(num_stacks=3, start=2), "start: 3 stacks at layers 2, 3, 4 need 5 layers; the vision encoder has 4"),
    (
        DeepStackV(num_stacks=3, start=1, tap=-3),
        "tap: features are read at layer 2, before the last stack is added at layer 3",
    ),
    (LowResolution(tap=9), "tap: tap 9 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4"),
    (
        DeepStackV(num_stacks=1, start=0, tap=-6),
        "tap: tap -6 is beyond the encoder's depth: it has 4 layers, so taps 0 to 4",
    ),
]


@pytest.mark.parametrize(("scheduler", "message"), CHECKS)
def test_parts_that_do_not_fit_are_refused_word_for_word(tiny_encoder, scheduler, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        scheduler.check(tiny_encoder(), 4)
    assert str(caught.value) == message


def test_a_width_that_the_position_code_cannot_fill_is_refused(tiny_encoder):
    scheduler = LowResolution(position=0.1)
    scheduler.check(tiny_encoder(), 4)
    with pytest.raises(
        ValueError, match=r"position: the 2-D sine-cosine code needs a width divisible by 4; the encoder's is 18"
    ):
        scheduler.check(tiny_encoder(embed_dim=18), 4)


def test_parts_that_just_fit_are_taken(tiny_encoder):
    DeepStackL(num_stacks=4, start=0).check(tiny_encoder(), 4)
    DeepStackV(num_stacks=4, start=0).check(tiny_encoder(), 1)
    DeepStackV(num_stacks=3, start=1, tap=-2).check(tiny_encoder(), 1)  # read at the last site, as the authors do


@pytest.mark.parametrize("scheduler", [DeepStackL(num_stacks=3), DeepStackV(num_stacks=3)])
def test_grids_of_more_crops_than_stacks_are_refused(scheduler):
    scheduler.check_grids([(1, 3), (0, 0)])
    with pytest.raises(ValueError, match=r"^num_stacks: 3 stacks cannot take the 4 crops that the views may cut$"):
        scheduler.check_grids([(1, 3), (2, 2)])
    name = type(scheduler).__name__
    with pytest.raises(
        ValueError, match=rf"^{name} looks at high-resolution crops, but the views have none: choose views"
    ):
        scheduler.check_grids([(0, 0)])


def test_schedulers_that_need_no_stack_take_any_grid():
    for scheduler in (LowResolution(), DeepStackL(num_stacks=1, source="base")):
        scheduler.check_grids([(0, 0)])
        scheduler.check_grids([(9, 9)])
    SequenceConcat().check_grids([(9, 9)])
    with pytest.raises(ValueError, match="SequenceConcat looks at high-resolution crops"):
        SequenceConcat().check_grids([(0, 0)])


@pytest.mark.parametrize("name", ["DeepStackL", "DeepStackV", "SequenceConcat"])
def test_a_batch_without_any_crop_is_the_baseline(tiny_encoder, make_views, name):
    encoder, views = tiny_encoder(), make_views([(0, 0), (0, 0)])
    slots = schedulers()[name](encoder, views)
    torch.testing.assert_close(slots[:1], LowResolution()(encoder, views))
    assert not slots[1:].any()
