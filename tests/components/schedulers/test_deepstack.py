"""The engine: which token stands in which slot, against loops written out, for every value of every axis."""

from functools import partial

import pytest
import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

from dslight.components import ConditionedGate, DeepStack, GatedAdd, MLPProjector, Stack
from dslight.components.stacking import EncoderPass
from dslight.types import Batch, Views
from dslight.vlm import VLM

MIXED = [(2, 2), (1, 2), (1, 2), (3, 1), (2, 2)]
FOUR = [0, 1, 2, 3]


def dilated(crops, grid):
    """Group (i, j): the tokens at rows i::rows and columns j::cols of the crops laid side by side, ``[4, 4, C]``."""
    rows, cols = grid
    lines = [torch.cat([crops[r * cols + c].view(4, 4, -1) for c in range(cols)], dim=1) for r in range(rows)]
    large = torch.cat(lines, dim=0)
    return [large[i::rows, j::cols] for i in range(rows) for j in range(cols)]


def each_image(views):
    """The views of each image, and its grid."""
    return zip(views.pixels.split(views.per_image), views.grids, strict=True)


def features(encoder, pixels, *taps):
    return [one.unflatten(1, encoder.grid) for one in encoder(pixels, taps=taps or ("final",))]


def fine_views(grids, up, seed=0):
    generator = torch.Generator().manual_seed(seed)
    count = sum((1 + rows * cols) * (1 + up**2) for rows, cols in grids)
    return Views(torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator), grids, up)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# --- source: view x tap, sampler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["final", 0, 2, -2])
def test_the_base_level_is_the_base_views_features_at_the_tap(tiny_encoder, make_views, tap):
    encoder, views = tiny_encoder(), make_views(MIXED)
    (level,) = DeepStack(tap=tap)(encoder, views)
    torch.testing.assert_close(level, features(encoder, views.base(), tap)[0])


def test_several_taps_are_side_by_side_along_the_channels(tiny_encoder, make_views):
    """transformers' ``vision_feature_layer: [1, 3, -1]``."""
    encoder, views = tiny_encoder(), make_views(MIXED)
    scheduler = DeepStack(tap=[1, 3, "final"])
    (level,) = scheduler(encoder, views)
    torch.testing.assert_close(level, torch.cat(features(encoder, views.base(), 1, 3, "final"), dim=-1))
    assert scheduler.widths(encoder) == [48]


def test_crops_become_the_dilated_groups_of_their_mosaic(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views(MIXED)
    levels = DeepStack([Stack(FOUR, tap=3)])(encoder, views)
    for image, (pixels, grid) in enumerate(each_image(views)):
        final, third = features(encoder, pixels, "final", 3)
        torch.testing.assert_close(levels[0][image], final[0])
        groups = dilated(third[1:], grid)
        for s in range(4):
            expected = groups[s] if s < len(groups) else torch.zeros(4, 4, 16)
            torch.testing.assert_close(levels[1 + s][image], expected)


def test_block_takes_crop_after_crop(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(2, 2), (1, 3)])
    levels = DeepStack([Stack(FOUR, sampler="block")])(encoder, views)
    for image, (pixels, _) in enumerate(each_image(views)):
        for s, crop in enumerate(features(encoder, pixels[1:])[0]):
            torch.testing.assert_close(levels[1 + s][image], crop)


def test_1d_takes_every_nth_token_of_the_mosaic(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(1, 2)])
    levels = DeepStack([Stack([0, 1], sampler="1d")])(encoder, views)
    left, right = features(encoder, views.crops())[0]
    tokens = torch.cat([left, right], dim=1).flatten(0, 1)
    for s in range(2):
        torch.testing.assert_close(levels[1 + s][0].flatten(0, 1), tokens[s::2])


def test_patch_merge_puts_the_cells_of_a_place_side_by_side(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(2, 2), (2, 2)])
    scheduler = DeepStack([Stack([1], sampler="patch_merge")])
    _, merged = scheduler(encoder, views)
    for image, (pixels, grid) in enumerate(each_image(views)):
        expected = torch.cat(dilated(features(encoder, pixels[1:])[0], grid), dim=-1)
        torch.testing.assert_close(merged[image], expected)
    assert scheduler.widths(encoder) == [16, 64]


def test_pool_is_the_mean_of_the_cells_of_a_place(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(2, 2), (1, 3), (0, 0)])
    _, first, second = DeepStack([Stack([1, 3], sampler="pool")])(encoder, views)
    for image, (pixels, grid) in enumerate(each_image(views)):
        groups = dilated(features(encoder, pixels[1:])[0], grid) if grid[0] else [torch.zeros(4, 4, 16)]
        torch.testing.assert_close(first[image], torch.stack(groups).mean(0))
    assert torch.equal(first, second)  # one group, at both sites


def test_identity_takes_the_view_at_the_stacks_own_tap(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views(MIXED)
    levels = DeepStack([Stack([s], "base", "identity", tap) for s, tap in ((1, 1), (2, 3), (3, None))])(encoder, views)
    for level, expected in zip(levels, features(encoder, views.base(), "final", 1, 3, "final"), strict=True):
        torch.testing.assert_close(level, expected)


def test_corner_takes_one_token_of_each_block(tiny_encoder, make_views):
    """In transformers' order: top left, top right, bottom left, bottom right."""
    from transformers.models.granite4_vision.modeling_granite4_vision import spatial_offset_downsample

    encoder, views = tiny_encoder(), make_views(MIXED)
    scheduler = DeepStack([Stack(FOUR, "base", "corner", tap=2)], base="zero")
    levels = scheduler(encoder, views)
    (tokens,) = encoder(views.base(), taps=[2])
    for offset, level in enumerate(levels):
        torch.testing.assert_close(level.flatten(1, 2), spatial_offset_downsample(tokens, 4, offset))
    assert (len(levels), scheduler.map_grid(encoder)) == (4, (2, 2))


def test_blocks_of_four_have_sixteen_corners(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(0, 0)])
    levels = DeepStack([Stack([0] * 16, "base", "corner", merge=4)], base="zero")(encoder, views)
    torch.testing.assert_close(torch.stack(levels).view(4, 4, 16), features(encoder, views.base())[0][0])


@pytest.mark.parametrize("up", [2, 3])
def test_fine_crops_are_stacked_onto_the_base_view_and_onto_each_crop(tiny_encoder, up):
    grids = [(1, 2), (0, 0)]
    encoder, views = tiny_encoder(), fine_views(grids, up)
    levels = DeepStack([Stack([1] * up**2, "fine")], sequence="tiles")(encoder, views)
    maps = 0
    for pixels, grid in each_image(views):
        tiles = 1 + grid[0] * grid[1]
        (seen,) = features(encoder, pixels)
        for tile in range(tiles):
            torch.testing.assert_close(levels[0][maps], seen[tile])
            own = seen[tiles + tile * up**2 :][: up**2]
            for s, group in enumerate(dilated(own, (up, up))):
                torch.testing.assert_close(levels[1 + s][maps], group)
            maps += 1
    assert len(levels[0]) == maps == 4


@pytest.mark.parametrize(("sampler", "width"), [("patch_merge", 64), ("pool", 16)])
def test_fine_crops_can_be_one_group(tiny_encoder, sampler, width):
    encoder, views = tiny_encoder(), fine_views([(0, 0)], 2)
    scheduler = DeepStack([Stack([1], "fine", sampler)], sequence="tiles")
    groups = dilated(features(encoder, views.pixels[1:])[0], (2, 2))
    expected = torch.cat(groups, dim=-1) if sampler == "patch_merge" else torch.stack(groups).mean(0)
    torch.testing.assert_close(scheduler(encoder, views)[1][0], expected)
    assert scheduler.widths(encoder) == [16, width]


# --- target ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tap", ["final", -2])
def test_stacks_enter_the_encoder_at_their_sites(tiny_encoder, make_views, tap):
    encoder, views = tiny_encoder(), make_views([(1, 2), (2, 1)])
    (level,) = DeepStack(encoder_stacks=[Stack([1, 3])], tap=tap)(encoder, views)
    for image, (pixels, grid) in enumerate(each_image(views)):
        (early,) = features(encoder, pixels[1:], 1)  # by default they leave where the first is added
        stacks = torch.stack(dilated(early, grid)).flatten(1, 2)[:, None]
        (expected,) = encoder(pixels[:1], taps=[tap], stacks=stacks, sites=(1, 3))
        torch.testing.assert_close(level[image].flatten(0, 1), expected[0])


def test_one_and_the_same_stack_into_encoder_and_language_model_is_read_twice(tiny_encoder, make_views):
    encoder, views, stack = tiny_encoder(), make_views([(2, 2)]), Stack(FOUR)
    levels = DeepStack([stack], [stack], tap=-1)(encoder, views)
    (early,), (late,) = (features(encoder, views.crops(), tap) for tap in (0, -1))
    inside = torch.stack(dilated(early, (2, 2))).flatten(1, 2)[:, None]
    (expected,) = encoder(views.base(), taps=[-1], stacks=inside, sites=FOUR)
    torch.testing.assert_close(levels[0].flatten(1, 2), expected)
    for level, group in zip(levels[1:], dilated(late, (2, 2)), strict=True):
        torch.testing.assert_close(level[0], group)


def test_fine_crops_enter_the_encoder_too(tiny_encoder):
    encoder, views = tiny_encoder(), fine_views([(1, 2)], 2)
    (level,) = DeepStack(encoder_stacks=[Stack([2] * 4, "fine")], sequence="tiles")(encoder, views)
    (early,) = features(encoder, views.pixels[3:], 2)
    stacks = torch.stack([torch.stack(dilated(early[4 * m : 4 * m + 4], (2, 2))) for m in range(3)], dim=1)
    (expected,) = encoder(views.pixels[:3], stacks=stacks.flatten(2, 3), sites=(2,) * 4)
    torch.testing.assert_close(level.flatten(1, 2), expected)


def test_crops_leave_the_encoder_where_stacking_begins(tiny_encoder, make_views):
    encoder, views, rows = tiny_encoder(), make_views([(2, 2)] * 3), []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda m, args, out: rows.append(len(out)))
    DeepStack(encoder_stacks=[Stack(FOUR)])(encoder, views)
    assert rows == [12, 3, 3, 3, 3]  # a tap at 0 needs the patch embedding; layer 0 runs to show its input
    rows.clear()
    DeepStack(encoder_stacks=[Stack([2, 2, 3, 3])])(encoder, views)
    assert rows == [12, 12, 3, 3, 3, 3]


PASSES = [
    (DeepStack(), [(1, ("final",))]),
    (DeepStack(tap=[1, -2]), [(1, (1, -2))]),
    (DeepStack([Stack(FOUR)]), [(5, ("final",))]),
    (DeepStack([Stack(FOUR, tap=2)]), [(4, (2,)), (1, ("final",))]),
    (DeepStack([Stack(FOUR)], base="zero"), [(4, ("final",))]),
    (DeepStack([Stack([1], "base", "identity", 2)]), [(1, ("final", 2))]),
    (DeepStack([Stack([1], "base", "identity", 2)], base="zero"), [(1, (2,))]),
    (DeepStack(encoder_stacks=[Stack(FOUR)]), [(4, (0,)), (1, ("final",))]),
    (DeepStack([Stack(FOUR)], [Stack(FOUR)]), [(4, ("final", 0)), (1, ("final",))]),
    (DeepStack(sequence="crops"), [(4, ("final",))]),
    (DeepStack(sequence="tiles"), [(5, ("final",))]),
    (DeepStack([Stack(FOUR, "fine")], sequence="tiles"), [(25, ("final",))]),
    (DeepStack([Stack([1] * 9, "fine", tap=1)], sequence="tiles"), [(45, (1,)), (5, ("final",))]),
]


@pytest.mark.parametrize(("scheduler", "expected"), PASSES)
def test_the_passes_are_what_the_encoder_is_really_asked_for(tiny_encoder, scheduler, expected):
    encoder, asked = tiny_encoder(), []
    encoder.register_forward_pre_hook(
        lambda m, args, kwargs: asked.append(EncoderPass(len(args[0]), tuple(kwargs["taps"]))), with_kwargs=True
    )
    scheduler(encoder, fine_views([(2, 2)], scheduler.fine))
    assert [(one.views, one.taps) for one in asked] == expected
    assert scheduler.passes((2, 2)) == asked


def test_an_image_without_crops_costs_one_view():
    assert DeepStack([Stack(FOUR, tap=2)]).passes((0, 0)) == [EncoderPass(1, ("final",))]
    assert DeepStack([Stack(FOUR)]).passes((0, 0)) == [EncoderPass(1, ("final",))]


# --- sites, base policy, operation ----------------------------------------------------------------------------------


def test_sites_are_named_one_by_one_or_counted_behind_layers():
    assert DeepStack([Stack([3, 1]), Stack([0, 2], after=True)]).sites == (3, 1, 1, 3)
    assert DeepStack(encoder_stacks=[Stack([5, 5], after=True)]).encoder_sites == (6, 6)


def test_the_placements_say_what_enters_where_layer_by_layer():
    both = DeepStack([Stack([4]), Stack([2], "base", "identity", 1)], [Stack([7, 8])])
    assert both.placements == [
        ("vision_encoder", 7, "+ stack 1 (crops, 2d, tap 7)"),
        ("vision_encoder", 8, "+ stack 2 (crops, 2d, tap 7)"),
        ("language_model", 0, "base tokens, in the sequence (tap final)"),
        ("language_model", 2, "+ stack 4 (base, identity, tap 1)"),
        ("language_model", 4, "+ stack 3 (crops, 2d, tap final)"),
    ]
    assert both.num_stacks == 4
    alone = DeepStack([Stack([1])], base="zero")
    assert alone.placements[0] == ("language_model", 0, "zeros, in the sequence")
    tiles = DeepStack(sequence="tiles", tap=[-2, 3])
    assert tiles.placements == [("language_model", 0, "base and crop tokens, in the sequence (tap -2 and 3)")]


def test_base_zero_leaves_slot_0_to_the_stacks(tiny_encoder, make_views, lay_out):
    views = make_views([(2, 2), (1, 2)])
    scheduler = DeepStack([Stack(FOUR)], base="zero")
    visual = lay_out(scheduler, tiny_encoder(), views)
    assert visual.slots.shape == (5, 32, 16)
    assert not visual.slots[0].any()
    assert visual.slots[1:, :16].abs().amax((1, 2)).all()
    assert scheduler.widths(tiny_encoder()) == [16] * 4


def test_the_operation_is_handed_on_with_the_sites(tiny_encoder, make_views, lay_out):
    scheduler = DeepStack([Stack([2, 0]), Stack([1], "base", "identity")], operation=GatedAdd)
    visual = lay_out(scheduler, tiny_encoder(), make_views([(1, 2)]))
    assert isinstance(visual.operation, GatedAdd)
    assert visual.operation is scheduler.operation
    assert (visual.operation.width, visual.operation.stacks, visual.sites) == (16, 3, (2, 0, 1))
    assert [name for name, _ in scheduler.named_parameters()] == ["operation.gate"]
    assert lay_out(DeepStack([Stack([1])]), tiny_encoder(), make_views([(0, 0)])).operation is None


@pytest.mark.parametrize("operation", [None, lambda d, s: GatedAdd(d, s, 0.5), lambda d, s: ConditionedGate(d, s, 0.3)])
def test_what_is_added_is_what_the_operation_says(tiny_encoder, tiny_lm, make_views, operation):
    """The residual stream before and behind the layer's input, at the visual positions and elsewhere."""
    scheduler = DeepStack([Stack([1, 3])], operation=operation)
    vlm = VLM(tiny_encoder(), MLPProjector, scheduler, tiny_lm()).eval()
    batch = batch_of(vlm, make_views([(1, 2)]))
    visual, seen = vlm.see(batch.views), {}
    for site in (0, 2):
        vlm.language_model.layers[site].register_forward_hook(lambda m, a, out, s=site: seen.update({s: out}))
    for site in (1, 3):
        vlm.language_model.layers[site].input_layernorm.register_forward_pre_hook(
            lambda m, args, s=site: seen.update({s: args[0]})
        )
    vlm(batch)
    for stack, site in enumerate((1, 3)):
        before, behind = seen[site - 1], seen[site]
        at = batch.visual_mask
        assert torch.equal(before[~at], behind[~at])
        values = visual.stacks[stack]
        if operation is not None:
            values = scheduler.operation(stack, before[at], values)
        torch.testing.assert_close(behind[at], before[at] + values)
        assert (behind[at] - before[at]).abs().max() > 0.01


def batch_of(vlm, views):
    layout = vlm.stacking.slot_layout(vlm.vision_encoder, vlm.projector)
    sizes = views.sizes or [None] * len(views)
    slots = sum(layout(grid, size) for grid, size in zip(views.grids, sizes, strict=True))
    ids = torch.arange(slots + 6)[None] % 60 + 3
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2 : 2 + slots] = True
    return Batch(ids, torch.ones_like(ids), mask, views=views)


# --- the sequence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", ["base", "crops", "tiles"])
def test_the_sequence_holds_the_tokens_of_these_views(tiny_encoder, make_views, lay_out, sequence):
    encoder, views = tiny_encoder(), make_views([(1, 2), (3, 1)])
    scheduler = DeepStack(sequence=sequence)
    (level,) = scheduler(encoder, views)
    expected = []
    for pixels, _ in each_image(views):
        (seen,) = features(encoder, pixels)
        expected += {"base": seen[:1], "crops": seen[1:], "tiles": seen}[sequence]
    torch.testing.assert_close(level, torch.stack(expected))
    layout = scheduler.slot_layout(encoder, MLPProjector([16], 16))
    assert lay_out(scheduler, encoder, views).slots.shape == (1, layout((1, 2)) + layout((3, 1)), 16)
    assert layout((1, 2)) == {"base": 16, "crops": 32, "tiles": 48}[sequence]


@pytest.mark.parametrize("order", ["2d", "1d"])
def test_the_crops_tokens_can_stand_group_by_group(tiny_encoder, make_views, order):
    encoder, views = tiny_encoder(), make_views([(2, 1), (0, 0), (2, 2)])
    (level,) = DeepStack(sequence="tiles", order=order)(encoder, views)
    expected = []
    for pixels, grid in each_image(views):
        (seen,) = features(encoder, pixels)
        expected.append(seen[0])
        if grid == (0, 0):
            continue
        if order == "2d":
            expected += dilated(seen[1:], grid)
        else:
            lines = [torch.cat(list(seen[1 + r * grid[1] :][: grid[1]]), dim=1) for r in range(grid[0])]
            tokens, n = torch.cat(lines).flatten(0, 1), grid[0] * grid[1]
            expected += [tokens[s::n].view(4, 4, -1) for s in range(n)]
    torch.testing.assert_close(level, torch.stack(expected))


def hf_mosaic(tiles, grid, size, newline, unpad):
    """LLaVA-NeXT's own packing of one image, from tiles ``[1 + rows * cols, 16, D]``."""
    from transformers import LlavaNextConfig, LlavaNextModel

    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 16, "patch_size": 4, "hidden_size": 16,
                       "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        text_config={"model_type": "llama", "hidden_size": tiles.shape[-1], "num_hidden_layers": 1,
                     "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 64},
        image_grid_pinpoints=[[16 * grid[0], 16 * grid[1]]],
    )  # fmt: skip
    model = LlavaNextModel(config)
    sizes = torch.tensor([size if unpad else (16 * grid[0], 16 * grid[1])])
    packed, _ = model.pack_image_features([tiles], sizes, "default", newline)
    return packed[0]


@pytest.mark.parametrize("unpad", [False, True])
@pytest.mark.parametrize(
    ("grid", "size"),
    [((2, 2), (33, 50)), ((1, 2), (20, 70)), ((3, 1), (90, 20)), ((2, 1), (64, 60)), ((2, 3), (9, 90))],
)
def test_newline_and_unpad_are_llava_nexts(tiny_encoder, lay_out, make_views, grid, size, unpad):
    encoder, views = tiny_encoder(), make_views([grid])
    views = Views(views.pixels, views.grids, sizes=[size])
    plain = lay_out(DeepStack(sequence="tiles"), encoder, views).slots[0].view(-1, 16, 16)
    scheduler = DeepStack(sequence="tiles", newline=True, unpad=unpad)
    slots = lay_out(scheduler, encoder, views).slots[0]
    torch.testing.assert_close(slots, hf_mosaic(plain, grid, size, torch.full((16,), 7.0), unpad))


def test_an_image_without_crops_gets_one_newline(tiny_encoder, lay_out, make_views):
    scheduler = DeepStack(sequence="tiles", newline=True)
    slots = lay_out(scheduler, tiny_encoder(), make_views([(0, 0), (1, 1)])).slots[0]
    assert slots.shape[0] == 17 + 16 + 20
    assert (slots == 7).all(-1).nonzero().flatten().tolist() == [16, 37, 42, 47, 52]


@pytest.mark.parametrize(("newline_in_stacks", "value"), [(True, 7.0), (False, 0.0)])
def test_the_newline_is_added_again_by_every_stack_or_by_none(tiny_encoder, lay_out, newline_in_stacks, value):
    scheduler = DeepStack([Stack(FOUR, "fine")], sequence="tiles", newline=True, newline_in_stacks=newline_in_stacks)
    slots = lay_out(scheduler, tiny_encoder(), fine_views([(0, 0)], 2)).slots
    assert (slots[0, 16] == 7).all()
    assert (slots[1:, 16] == value).all()


def test_with_zeros_in_the_sequence_the_newline_comes_from_the_stacks_alone(tiny_encoder, lay_out, make_views):
    scheduler = DeepStack([Stack([1], "base", "identity")], base="zero", sequence="tiles", newline=True)
    slots = lay_out(scheduler, tiny_encoder(), make_views([(1, 2)])).slots
    assert not slots[0].any()
    assert (slots[1] == 7).all(-1).nonzero().flatten().tolist() == [24, 33, 42, 51]


def test_fill_to_lays_zeros_behind_the_crops_of_images_that_have_fewer(tiny_encoder, lay_out, make_views):
    encoder, views = tiny_encoder(), make_views([(1, 2), (1, 3), (0, 0)])
    plain = lay_out(DeepStack(sequence="tiles"), encoder, views).slots[0]
    filled = lay_out(DeepStack(sequence="tiles", fill_to=3), encoder, views).slots[0].view(3, 4, 16, 16)
    torch.testing.assert_close(filled[0, :3].flatten(0, 1), plain[:48])
    torch.testing.assert_close(filled[1].flatten(0, 1), plain[48:112])
    torch.testing.assert_close(filled[2, 0], plain[112:])
    assert not filled[0, 3:].any()
    assert not filled[2, 1:].any()


def test_unpad_needs_to_know_the_size_of_the_image(tiny_encoder, lay_out, make_views):
    with pytest.raises(ValueError, match="unpad needs the size of every image, and these views have none"):
        lay_out(DeepStack(sequence="tiles", newline=True, unpad=True), tiny_encoder(), make_views([(1, 2)]))


def test_the_newline_starts_at_zero_and_is_the_stackings_own_parameter():
    scheduler = DeepStack(sequence="tiles", newline=True)
    scheduler.connect(24)
    assert [(name, p.shape) for name, p in scheduler.named_parameters()] == [("newline", (24,))]
    assert not scheduler.newline.any()
    DeepStack().connect(24)


# --- batches --------------------------------------------------------------------------------------------------------

ANY_GRID = {
    "sequence base": lambda: DeepStack(),
    "sequence tiles": lambda: DeepStack(sequence="tiles"),
    "sequence tiles, 2d": lambda: DeepStack(sequence="tiles", order="2d", position=0.5),
    "newline": lambda: DeepStack(sequence="tiles", newline=True),
    "fill_to": lambda: DeepStack(sequence="tiles", fill_to=4),
    "2d": lambda: DeepStack([Stack(FOUR)]),
    "2d, another tap": lambda: DeepStack([Stack(FOUR, tap=2)]),
    "block": lambda: DeepStack([Stack(FOUR, sampler="block")]),
    "1d": lambda: DeepStack([Stack([0] * 5, sampler="1d")], position=0.5),
    "pool": lambda: DeepStack([Stack([1, 2], sampler="pool")]),
    "base": lambda: DeepStack([Stack([1, 2], "base", "identity", 1)]),
    "corner": lambda: DeepStack([Stack(FOUR, "base", "corner")], base="zero"),
    "zero": lambda: DeepStack([Stack(FOUR)], base="zero"),
    "encoder": lambda: DeepStack(encoder_stacks=[Stack(FOUR)]),
    "both": lambda: DeepStack([Stack(FOUR)], [Stack([1, 2, 2, 3])]),
    "fine": lambda: DeepStack([Stack(FOUR, "fine")], sequence="tiles"),
}


@pytest.mark.parametrize("name", ANY_GRID)
@pytest.mark.parametrize("grids", [MIXED, [(1, 2), (0, 0), (2, 1)], [(0, 0), (0, 0)]], ids=["mixed", "some", "none"])
def test_images_of_a_batch_do_not_touch_each_other(tiny_encoder, lay_out, name, grids):
    encoder, scheduler = tiny_encoder(), ANY_GRID[name]()
    views = fine_views(grids, scheduler.fine)
    together = lay_out(scheduler, encoder, views).slots
    layout = scheduler.slot_layout(encoder, MLPProjector(scheduler.widths(encoder), 16, per_level=True))
    alone = [
        lay_out(scheduler, encoder, Views(pixels, [grid], scheduler.fine)).slots for pixels, grid in each_image(views)
    ]
    assert [part.shape[1] for part in alone] == [layout(grid) for grid in grids]
    assert together.shape == (1 + len(scheduler.sites), sum(layout(grid) for grid in grids), 16)
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_stacks_without_a_crop_are_exactly_zero_behind_the_projectors_bias(tiny_encoder, make_views, lay_out):
    for grids in ([(1, 2)] * 3, [(1, 2), (2, 2), (0, 0)]):  # one grid for all, and mixed, are two paths
        slots = lay_out(DeepStack([Stack(FOUR)]), tiny_encoder(), make_views(grids)).slots.unflatten(1, (-1, 16))
        some = slots.abs().amax((2, 3)).bool()
        for image, grid in enumerate(grids):
            assert some[:, image].tolist() == [True] + [s < grid[0] * grid[1] for s in range(4)]


def test_one_group_stacks_are_zero_only_where_there_is_no_crop_at_all(tiny_encoder, make_views, lay_out):
    scheduler = DeepStack([Stack([1, 2], sampler="pool"), Stack([3], "base", "identity")])
    slots = lay_out(scheduler, tiny_encoder(), make_views([(1, 2), (0, 0)])).slots.unflatten(1, (-1, 16))
    assert slots.abs().amax((2, 3)).bool().tolist() == [[True, True], [True, False], [True, False], [True, True]]


def test_a_stack_that_enters_the_encoder_is_zero_where_there_is_no_crop(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(0, 0), (1, 2)])
    (level,) = DeepStack(encoder_stacks=[Stack(FOUR)])(encoder, views)
    (plain,) = features(encoder, views.base())
    torch.testing.assert_close(level[0], plain[0])
    assert (level[1] - plain[1]).abs().max() > 0.01


# --- positions ------------------------------------------------------------------------------------------------------


def test_the_position_code_is_timms_on_the_grid_of_the_place(tiny_encoder, make_views):
    encoder, views = tiny_encoder(), make_views([(2, 2)])
    small = 0.5 * build_sincos2d_pos_embed([4, 4], 16).view(4, 4, 16)
    large = 0.5 * build_sincos2d_pos_embed([8, 8], 16).view(8, 8, 16)
    tiles = [large[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] for i in range(2) for j in range(2)]
    groups = [large[i::2, j::2] for i in range(2) for j in range(2)]
    for options, expected in (
        ({}, [[small]]),
        ({"stacks": [Stack(FOUR)]}, [[small], *([group] for group in groups)]),
        ({"stacks": [Stack([1], sampler="pool")]}, [[small], [torch.stack(groups).mean(0)]]),
        ({"stacks": [Stack([1], sampler="patch_merge")]}, [[small], [torch.cat(groups, -1)]]),
        ({"stacks": [Stack([1], "base", "identity", 2)]}, [[small], [small]]),
        ({"sequence": "tiles"}, [[small, *tiles]]),
        ({"sequence": "crops"}, [tiles]),
        ({"sequence": "tiles", "order": "2d"}, [[small, *groups]]),
        ({"stacks": [Stack([1], "base", "identity", 2)], "sequence": "tiles"}, [[small, *tiles]] * 2),
    ):
        plain, added = DeepStack(**options)(encoder, views), DeepStack(**options, position=0.5)(encoder, views)
        for before, behind, code in zip(plain, added, expected, strict=True):
            torch.testing.assert_close(behind - before, torch.stack(code), msg=lambda m, o=options: f"{o}: {m}")


def test_fine_crops_carry_the_position_of_their_place_in_the_view(tiny_encoder):
    encoder, views = tiny_encoder(), fine_views([(0, 0)], 2)
    options = {"stacks": [Stack(FOUR, "fine")], "sequence": "tiles"}
    plain, added = DeepStack(**options)(encoder, views), DeepStack(**options, position=0.5)(encoder, views)
    large = 0.5 * build_sincos2d_pos_embed([8, 8], 16).view(8, 8, 16)
    for s, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)], 1):
        torch.testing.assert_close(added[s][0] - plain[s][0], large[i::2, j::2])


# --- what others ask ------------------------------------------------------------------------------------------------

SMALLEST = [
    (DeepStack(), (0, 0), 0),
    (DeepStack([Stack([1], "base", "identity")]), (0, 0), 0),
    (DeepStack([Stack(FOUR)]), (1, 1), 0),
    (DeepStack([Stack([1], sampler="patch_merge", merge=3)]), (3, 3), 0),
    (DeepStack(encoder_stacks=[Stack(FOUR)]), (1, 1), 0),
    (DeepStack(sequence="crops"), (1, 1), 0),
    (DeepStack(sequence="tiles", newline=True), (1, 1), 0),
    (DeepStack([Stack([1] * 9, "fine")], sequence="tiles"), (1, 1), 3),
    (DeepStack([Stack([1], "fine", "pool", merge=3)], sequence="tiles"), (1, 1), 3),
]


@pytest.mark.parametrize(("scheduler", "grid", "fine"), SMALLEST)
def test_a_batch_of_text_runs_every_module_on_the_smallest_grid(tiny_encoder, tiny_lm, scheduler, grid, fine):
    assert (scheduler.smallest_grid, scheduler.fine, scheduler.uses_crops) == (grid, fine, grid != (0, 0))
    vlm = VLM(tiny_encoder(), partial(MLPProjector, per_level=True), scheduler, tiny_lm())
    with torch.enable_grad():
        visual = vlm.see(None)
        assert visual.slots.shape == (1 + len(scheduler.sites), 0, 32)
        ids = torch.arange(3, 9)[None]
        batch = Batch(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))
        vlm(batch).sum().backward()
    assert [name for name, p in vlm.named_parameters() if p.grad is None] == []


def test_the_taps_are_wherever_the_encoder_is_read():
    assert DeepStack([Stack([1], tap=2)], tap=[3, "final"]).taps() == [3, "final", 2]
    assert DeepStack([Stack([1], tap=2)], base="zero").taps() == [2]
    assert DeepStack(encoder_stacks=[Stack([2, 3])]).taps() == ["final", 2]
