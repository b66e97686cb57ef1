"""Positions of several axes against the ids that transformers' own models make."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dslight.layout import SlotLayout
from dslight.places import TokenGrid
from dslight.positions import axis_positions, clip_grids, token_grids

transformers = pytest.importorskip("transformers")

TEXT, IMAGE, VIDEO = 0, 1, 2
LARGE, TALL, CLIP = (1, 4, 6), (1, 8, 2), (3, 4, 4)
"""Grids of patches; 2 x 2 of them are a token."""


def theirs(kind: str, types: Tensor, mask: Tensor, images: list[tuple], clips: list[tuple], seconds: float = 1) -> Any:
    """``get_rope_index`` of a family, without a model: it reads its configuration alone."""
    module = __import__(f"transformers.models.{kind}.modeling_{kind}", fromlist=["x"])
    name = {"qwen2_vl": "Qwen2VLModel", "qwen2_5_vl": "Qwen2_5_VLModel", "qwen3_vl": "Qwen3VLModel",
            "cohere_compass": "CohereCompassModel"}[kind]  # fmt: skip
    of = getattr(module, name)
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)),
        get_vision_position_ids=lambda *args, **options: of.get_vision_position_ids(None, *args, **options),
    )
    options = {"second_per_grid_ts": torch.full((len(clips),), seconds)} if kind == "qwen2_5_vl" else {}
    return of.get_rope_index(
        model,
        types,
        types,
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(clips) if clips else None,
        attention_mask=mask,
        **options,
    )


def tokens(patches: tuple[int, int, int], step: float = 1.0) -> TokenGrid:
    return TokenGrid(patches[0], patches[1] // 2, patches[2] // 2, step)


def padded(*rows: list[int], left: bool) -> tuple[Tensor, Tensor]:
    """Types and mask ``[B, T]``."""
    longest = max(map(len, rows))
    made = [[(0, 0)] * (left * (longest - len(row))) + [(kind, 1) for kind in row] for row in rows]
    made = [row + [(0, 0)] * (longest - len(row)) for row in made]
    types, mask = torch.tensor(made).unbind(-1)
    return types, mask


def slots(grid: TokenGrid, kind: int = IMAGE) -> list[int]:
    return [kind] * grid.tokens


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "cohere_compass"])
def test_images_of_several_shapes_stand_where_each_family_puts_them(kind, left):
    large, tall = tokens(LARGE), tokens(TALL)
    rows = [
        [0, 0, *slots(large), 0, *slots(tall), 0, 0, 0],
        [*slots(tall), 0, 0],
        [0, 0, 0],
        [0, *slots(large)],
    ]
    types, mask = padded(*rows, left=left)
    expected, deltas = theirs(kind, types, mask, [LARGE, TALL, TALL, LARGE], [])
    found, behind = axis_positions(mask, types == IMAGE, [large, tall, tall, large])
    real = mask.bool()
    assert torch.equal(found[:, real], expected[:, real])
    assert not found[:, ~real].any()
    assert torch.equal(behind - mask.sum(-1), deltas.squeeze(1))
    assert len(found[:, real].unique(dim=0)) == 3  # the axes do differ


def test_frames_between_timestamps_are_grids_of_one_frame_each():
    frame = tokens((1, *CLIP[1:]))
    types, mask = padded([0, *slots(frame, 2), 0, 0, *slots(frame, 2), 0, 0, *slots(frame, 2), 0], left=True)
    expected, deltas = theirs("qwen3_vl", types, mask, [], [CLIP])
    found, behind = axis_positions(mask, types == VIDEO, [frame] * 3)
    assert torch.equal(found, expected)
    assert torch.equal(behind - mask.sum(-1), deltas.squeeze(1))


def test_the_frames_of_a_clip_stand_as_far_apart_as_their_seconds_say():
    clip = tokens(CLIP, step=2 * 1.25)
    types, mask = padded([0, 0, *slots(clip, VIDEO)], left=True)
    expected, deltas = theirs("qwen2_5_vl", types, mask, [], [CLIP], seconds=1.25)
    found, behind = axis_positions(mask, types == VIDEO, [clip])
    assert found[0, 0, 2:].unique().tolist() == [2, 4, 7]  # 2.5 and 5 positions apart, rounded down
    assert torch.equal(found, expected)
    assert torch.equal(behind - mask.sum(-1), deltas.squeeze(1))


def test_each_document_of_a_row_begins_anew():
    large, tall = tokens(LARGE), tokens(TALL)
    one, other, text = [0, *slots(large), 0, 0], [*slots(tall), 0, *slots(tall), 0], [0, 0, 0]
    types, mask = torch.tensor([one + other + text + [0, 0]]), torch.tensor([[1] * 26 + [0, 0]])
    mask[:, len(one + other + text) :] = 0
    sizes = [len(one), len(other), len(text)]
    segments = torch.tensor([[*(n for n, size in enumerate(sizes, 1) for _ in range(size)), 0, 0]])
    found, _ = axis_positions(mask[:, : types.shape[1]], types == IMAGE, [large, tall, tall], segments)
    alone = [
        axis_positions(torch.ones(1, len(row)).long(), torch.tensor([row]) == IMAGE, grids)[0]
        for row, grids in [(one, [large]), (other, [tall, tall]), (text, [])]
    ]
    assert torch.equal(found[..., : sum(sizes)], torch.cat(alone, dim=-1))


def test_grids_of_other_tokens_than_there_are_slots_are_refused():
    mask = torch.tensor([[False, True, True]])
    with pytest.raises(ValueError, match="grids of 4 tokens for 2 visual slots"):
        axis_positions(torch.ones(1, 3).long(), mask, [TokenGrid(1, 2, 2)])


@pytest.mark.parametrize(
    ("layout", "crops", "size", "expected"),
    [
        (SlotLayout((2, 3)), (2, 2), None, [(2, 3)]),
        (SlotLayout((2, 3), crops=True), (1, 2), None, [(2, 3)] * 3),
        (SlotLayout((2, 3), base=False, crops=True), (1, 2), None, [(2, 3)] * 2),
        (SlotLayout((2, 3), crops=True, fill_to=3), (1, 2), None, [(2, 3)] * 4),
        (SlotLayout((2, 3), crops=True, newline=True), (0, 0), None, [(2, 3), (1, 1)]),
        (SlotLayout((2, 2), crops=True, newline=True, unpad=True), (2, 2), (10, 20), [(2, 2), (2, 5)]),
    ],
)
def test_the_grids_of_an_image_are_its_maps_or_its_mosaic(layout, crops, size, expected):
    grids = token_grids(layout, crops, size)
    assert [(grid.rows, grid.columns) for grid in grids] == expected
    assert sum(grid.tokens for grid in grids) == layout(crops, size)


@pytest.mark.parametrize(
    ("layout", "up", "expected"),
    [
        (SlotLayout((1, 1), native=True), 0, [(3, 5)]),
        (SlotLayout((2, 2), native=True), 2, [(6, 10)]),
        (SlotLayout((1, 1), crops=True, native=True), 2, [(3, 5), (6, 10)]),
        (SlotLayout((1, 1), crops=True, newline=True, native=True), 2, [(3, 5), (6, 11)]),
        (SlotLayout((1, 1), base=False, crops=True, native=True), 2, [(6, 10)]),
    ],
)
def test_the_grids_of_an_image_of_a_size_of_its_own_are_its_views(layout, up, expected):
    grids = token_grids(layout, (up, up), None, (3, 5))
    assert [(grid.rows, grid.columns) for grid in grids] == expected
    assert sum(grid.tokens for grid in grids) == layout((up, up), None, (3, 5))


def test_text_behind_a_long_video_begins_behind_its_last_frame():
    """As in transformers up to 5.2; later versions count on from height and width alone."""
    grids = clip_grids([[TokenGrid(1, 1, 2)]] * 5, [(1, 0.0), (4, 1.5)], per_second=2)
    assert grids == (TokenGrid(1, 1, 2), TokenGrid(4, 1, 2, 3.0))
    mask = torch.tensor([[False] + [True] * 10 + [False]])
    found, following = axis_positions(torch.ones_like(mask).long(), mask, grids)
    assert found[0, 0].tolist() == [0, 1, 1, 3, 3, 6, 6, 9, 9, 12, 12, 13]
    assert following.tolist() == [14]


def test_temporal_patches_of_several_grids_keep_their_own():
    pair = [TokenGrid(1, 1, 2), TokenGrid(1, 2, 4)]
    assert clip_grids([pair, pair], [(2, 1.0)], per_second=2) == (*pair, *pair)
    assert clip_grids([pair[:1]] * 2, [(2, 1.0)], per_second=None) == (TokenGrid(2, 1, 2, 1.0),)
