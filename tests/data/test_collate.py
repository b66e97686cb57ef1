"""Padding, slots and the policy for rows that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dslight.data.collate import Collate, Item
from dslight.data.conversation import IMAGE
from dslight.data.sample import BadSample
from dslight.layout import SlotLayout
from dslight.types import IGNORE, Question

X = IGNORE
SIZE = (3, 5)
PAD = 9


def image(grid=(0, 0)) -> torch.Tensor:
    return torch.full((1 + grid[0] * grid[1], 3, 2, 2), 7, dtype=torch.uint8)


LAYOUT = SlotLayout((1, 2))


def collate(items, layout=LAYOUT, **settings):
    return Collate(layout, PAD, **settings)(items)


TEXT = Item("text", [1, 2, 3], [X, 2, 3])
PHOTO = Item("photo", [1, IMAGE, 4], [X, X, 4], [image((1, 2))], [(1, 2)], [SIZE])


def test_an_image_becomes_its_slots_and_rows_are_padded_on_the_right():
    batch = collate([TEXT, PHOTO])
    assert batch.input_ids.tolist() == [[1, 2, 3, PAD], [1, PAD, PAD, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.visual_mask.tolist() == [[False] * 4, [False, True, True, False]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[X, 2, 3, X], [X, X, X, 4]]
    assert batch.views is not None
    assert batch.views.grids == [(1, 2)]
    assert batch.views.pixels.shape == (3, 3, 2, 2)
    assert list(batch.keys) == ["text", "photo"]


WEIGHED = [
    replace(TEXT, weights=np.array([0, 0.5, 2], np.float32)),
    replace(PHOTO, weights=np.array([0, 0, 3], np.float32)),
]


def test_weights_stand_with_their_labels_and_others_count_once():
    batch = collate([*WEIGHED, TEXT])
    assert batch.weights is not None
    assert batch.weights.tolist() == [[0, 0.5, 2, 1], [0, 0, 0, 3], [1, 1, 1, 1]]
    places = batch.places
    assert places.weights is not None
    assert places.targets is not None
    assert places.targets.tolist() == [2, 3, 4, 2, 3]
    assert places.weights.tolist() == [0.5, 2, 3, 1, 1]
    moved = batch.to("cpu")
    assert moved.weights is not None
    assert moved.weights.equal(batch.weights)
    plain = collate([TEXT, PHOTO])
    assert plain.weights is plain.places.weights is None


def test_weights_of_packed_rows_are_those_of_their_documents():
    batch = collate([(*WEIGHED, TEXT)])
    places = batch.places
    assert places.weights is not None
    assert places.targets is not None
    assert places.targets.tolist() == [2, 3, 4, 2, 3]
    assert places.weights.tolist() == [0.5, 2, 3, 1, 1]


def test_a_row_that_is_cut_has_the_weights_of_what_is_left():
    batch = collate([WEIGHED[0]], max_length=2)
    assert batch.weights is not None
    assert batch.weights.tolist() == [[0, 0.5]]


def test_crops_take_slots_when_the_layout_gives_them_some():
    batch = collate([PHOTO, TEXT], SlotLayout((1, 2), crops=True))
    assert batch.visual_mask.sum(1).tolist() == [2 + 2 * 2, 0]


def test_every_image_takes_the_slots_of_its_own_size():
    """Two images of one row and one of another, all on a 2 x 2 grid: only the padding of each is left out."""
    layout = SlotLayout((2, 2), crops=True, newline=True, unpad=True)
    sizes = [(40, 40), (10, 40), (40, 20)]  # of the mosaic's 4 x 4 tokens remain 4 x 4, 2 x 4 (10/40 of 4 is 1), 4 x 2
    slots = [4 + 4 * (4 + 1), 4 + 2 * (4 + 1), 4 + 4 * (2 + 1)]
    pair = Item("pair", [IMAGE, 1, IMAGE, 2], [X, X, X, 2], [image((2, 2))] * 2, [(2, 2)] * 2, sizes[:2])
    one = Item("one", [1, IMAGE, 2], [X, X, 2], [image((2, 2))], [(2, 2)], sizes[2:])
    batch = collate([pair, TEXT, one], layout)
    assert batch.visual_mask.sum(1).tolist() == [slots[0] + slots[1], 0, slots[2]]
    assert batch.input_ids[0, slots[0]] == 1
    assert batch.views is not None
    assert batch.views.sizes == sizes
    assert batch.views.grids == [(2, 2)] * 3


def test_the_views_know_their_fine_crops():
    pixels = torch.zeros(3 * 5, 3, 2, 2, dtype=torch.uint8)
    item = Item("hd", [IMAGE, 4], [X, 4], [pixels], [(1, 2)], [SIZE])
    batch = collate([item], fine=2)
    assert batch.views is not None
    assert batch.views.fine == 2
    assert batch.views.fine_index.tolist() == list(range(3, 15))
    with pytest.raises(ValueError, match=r"15 views, but the grids \[\(1, 2\)\] need 3"):
        collate([item])


def test_questions_are_padded_on_the_left_and_carry_no_labels():
    asked = [Question("1", "a", ("x",)), Question("2", "b", ("y",), valid=False)]
    rows = [Item("a", [IMAGE, 1], None, [image()], [(0, 0)], [SIZE], asked[0]), Item("b", [5], question=asked[1])]
    batch = collate(rows)
    assert batch.input_ids.tolist() == [[PAD, PAD, 1], [PAD, PAD, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.visual_mask.tolist() == [[True, True, False], [False] * 3]
    assert batch.labels is None
    assert list(batch.questions) == asked


def test_a_batch_of_text_has_no_views():
    assert collate([TEXT]).views is None


def test_a_long_text_is_cut_at_its_end():
    batch = collate([Item("long", [1, IMAGE, 4, 5, 6], [X, X, 4, 5, 6], [image()], [(0, 0)], [SIZE])], max_length=4)
    assert batch.input_ids.tolist() == [[1, PAD, PAD, 4]]


CUT_IMAGE = Item("cut", [1, 2, IMAGE, 4], [X, 2, X, 4], [image()], [(0, 0)], [SIZE])
NOTHING = Item("nothing", [IMAGE, 3, 4], [X, X, 4], [image()], [(0, 0)], [SIZE])


@pytest.mark.parametrize(
    ("item", "reason"),
    [(CUT_IMAGE, "cut: 5 positions, .* would cut an image"), (NOTHING, "nothing: no supervised token in its first 3")],
)
def test_an_unusable_row_is_an_error_that_says_why(item, reason):
    with pytest.raises(BadSample, match=reason):
        collate([item], max_length=3)


@pytest.mark.parametrize("item", [CUT_IMAGE, NOTHING])
def test_a_dropped_row_keeps_its_place_without_image_or_loss(item):
    batch = collate([TEXT, item], max_length=3, on_unusable="drop")
    assert batch.labels is not None
    assert batch.labels.tolist() == [[X, 2, 3], [X, X, X]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert not batch.visual_mask.any()
    assert batch.views is None
    assert list(batch.keys) == ["text", item.key]


def test_a_question_that_is_too_long_is_never_cut():
    with pytest.raises(BadSample, match=r"q: question 7 takes 4 positions, data\.max_length 3"):
        collate([Item("q", [1, 2, 3, 4], question=Question("7", "", ("x",)))], max_length=3, on_unusable="drop")


def test_text_and_pixels_must_have_equally_many_images():
    with pytest.raises(BadSample, match="x: its text has places for 2 images, it has 1"):
        collate([Item("x", [IMAGE, IMAGE, 1], [X, X, 1], [image()], [(0, 0)], [SIZE])])


# --- shrink: the conversation ends with its last whole answer that fits
# -----------------------------------------------------------------------------------------------

TALK = Item(
    "talk",
    [1, IMAGE, 2, 3, 4, 5, IMAGE, 6, 7],
    [X, X, X, 3, 4, X, X, 6, 7],
    [image((1, 2)), image()],
    [(1, 2), (0, 0)],
    [SIZE, (8, 9)],
)  # of 11 positions; its first answer ends at 6, its second image stands at 7 and 8


@pytest.mark.parametrize("limit", [7, 8])
def test_a_conversation_is_cut_after_the_last_answer_before_an_image_that_does_not_fit(limit):
    batch = collate([TALK, TEXT], max_length=limit, on_unusable="shrink")
    assert batch.input_ids.tolist() == [[1, PAD, PAD, 2, 3, 4], [1, 2, 3, PAD, PAD, PAD]]
    assert batch.labels is not None
    assert batch.labels[0].tolist() == [X, X, X, X, 3, 4]
    assert batch.views is not None
    assert (batch.views.grids, batch.views.sizes) == ([(1, 2)], [SIZE])
    assert (list(batch.shrunk), list(batch.dropped)) == (["talk"], [])


def test_what_fits_or_is_only_cut_in_its_text_is_not_shrunk():
    for limit, length in ((11, 11), (10, 10), (9, 9)):
        batch = collate([TALK], max_length=limit, on_unusable="shrink")
        assert (batch.input_ids.shape[1], list(batch.shrunk)) == (length, [])


@pytest.mark.parametrize("item", [CUT_IMAGE, NOTHING])
def test_a_conversation_without_a_whole_answer_before_the_limit_is_dropped(item):
    limit = {"cut": 3, "nothing": 2}[item.key]
    answered = replace(item, labels=[X] * len(item.ids)) if item.key == "cut" else item
    batch = collate([TEXT, answered], max_length=limit, on_unusable="shrink")
    assert (list(batch.dropped), list(batch.shrunk)) == ([item.key], [])
    assert batch.attention_mask[1].sum() == 1


def test_an_answer_that_the_limit_cuts_is_not_whole():
    item = replace(TALK, ids=[1, 2, 3, 4, 5, IMAGE, 6], labels=[X, 2, X, 4, 5, X, 6], pixels=[image()], grids=[(0, 0)],
                   sizes=[SIZE])  # fmt: skip
    batch = collate([item], SlotLayout((1, 9)), max_length=4, on_unusable="shrink")
    assert batch.input_ids.tolist() == [[1, 2]]
    assert collate([item], SlotLayout((1, 9)), max_length=5, on_unusable="shrink").input_ids.tolist() == [
        [1, 2, 3, 4, 5]
    ]
