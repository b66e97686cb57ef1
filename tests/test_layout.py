"""Slots against transformers' LLaVA-NeXT, which packs features in the order that our layout names."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlavaNextConfig, LlavaNextModel
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

from dslight.data.images import AnyResViews
from dslight.layout import NEWLINE, ZERO, SlotLayout
from dslight.positions import token_grids

SIZES = [(40, 90), (90, 40), (64, 64), (5, 7), (13, 13), (37, 41), (10, 300), (299, 17), (1, 500), (500, 1), (336, 335)]
ANYRES = SlotLayout((3, 3), crops=True, newline=True, unpad=True)


@pytest.fixture(scope="module")
def llava_next() -> LlavaNextModel:
    """LLaVA-NeXT for views of 12 pixels in 3 x 3 patches; on the meta device, since it only packs."""
    width = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", "image_size": 12, "patch_size": 4, **width},
        text_config={"model_type": "llama", "vocab_size": 8, **width},
        image_grid_pinpoints=[[rows * 12, cols * 12] for rows, cols in AnyResViews().grids()],
    )
    with torch.device("meta"):
        return LlavaNextModel(config)


def packed(model: LlavaNextModel, features: torch.Tensor, size: tuple[int, int]) -> list[int]:
    """The order in which LLaVA-NeXT lays out features that are their own indices."""
    newline = torch.tensor([float(NEWLINE)])
    (order,), _ = model.pack_image_features([features], torch.tensor([size]), "default", newline)
    return order[:, 0].int().tolist()


@pytest.mark.parametrize("size", SIZES)
def test_the_order_is_that_of_llava_next(llava_next, size):
    rows, cols = grid = AnyResViews().choose(size, (12, 12))
    features = torch.arange((1 + rows * cols) * 9.0).reshape(1 + rows * cols, 9, 1)
    assert list(ANYRES.order(grid, size)) == packed(llava_next, features, size)


def test_an_image_without_crops_ends_in_one_newline_as_in_llava_next(llava_next):
    order = ANYRES.order((0, 0), (20, 30))
    assert list(order) == packed(llava_next, torch.arange(9.0).reshape(1, 9, 1), (20, 30))
    assert order[-1] == NEWLINE


@pytest.mark.parametrize("tokens", [(3, 3), (24, 24), (2, 5), (7, 1)])
def test_the_number_of_slots_is_that_which_llava_nexts_processor_makes_room_for(tokens):
    layout = SlotLayout(tokens, crops=True, newline=True, unpad=True)
    count: Callable[..., tuple[int, int]] = LlavaNextProcessor._get_unpadded_features  # never looks at ``self``
    for height, width in SIZES:
        for rows, cols in AnyResViews().grids():
            features, newlines = count(None, height, width, *tokens, rows, cols)
            assert layout((rows, cols), (height, width)) == tokens[0] * tokens[1] + features + newlines


@pytest.mark.parametrize(
    ("rows", "cols", "length"),
    [(2, 2, 2928), (2, 1, 1776), (1, 2, 1752), (3, 1, 2376), (4, 1, 2976), (1, 4, 2904)],
)
def test_deepstack_hd_has_the_authors_length(rows, cols, length):
    assert SlotLayout((24, 24), crops=True, newline=True)((rows, cols)) == length


def test_without_newlines_maps_follow_each_other():
    assert SlotLayout((2, 3)).order((2, 2)) == tuple(range(6))
    assert SlotLayout((2, 3), crops=True).order((1, 2)) == tuple(range(18))
    assert SlotLayout((2, 3), base=False, crops=True).order((1, 2)) == tuple(range(12))


def test_missing_crops_are_filled_up_with_zeros():
    layout = SlotLayout((1, 2), crops=True, fill_to=3)
    assert layout.order((1, 2)) == (0, 1, 2, 3, 4, 5, ZERO, ZERO)
    assert layout.order((2, 2)) == tuple(range(10))
    assert layout((0, 0)) == layout((1, 2)) == layout((3, 1)) == 8


def test_the_mosaic_alone_begins_with_its_first_token():
    assert SlotLayout((1, 2), base=False, crops=True, newline=True).order((2, 1)) == (0, 1, NEWLINE, 2, 3, NEWLINE)


def test_the_size_counts_only_where_padding_is_left_out():
    assert SlotLayout((3, 3), crops=True, newline=True)((2, 2), (10, 300)) == 9 + 6 * 7
    with pytest.raises(ValueError, match="unpad needs the size of every image"):
        ANYRES((2, 2))


def test_layouts_travel_to_workers():
    assert pickle.loads(pickle.dumps(ANYRES)) == ANYRES


def test_a_shrunk_mosaic_has_as_many_slots_as_llava_onevision_s_processor_counts():
    """``LlavaOnevisionProcessor._get_unpadded_features`` of transformers, over many shapes."""
    from transformers import LlavaOnevisionProcessor

    layout = SlotLayout((6, 6), crops=True, newline=True, unpad=True, most=3)
    said: Any = SimpleNamespace(vision_aspect_ratio="anyres_max_3")
    shrunk = 0
    for grid in [(1, 1), (1, 2), (2, 2), (3, 3), (5, 2), (1, 6)]:
        for size in [(40, 40), (37, 91), (200, 33), (500, 499)]:
            counted = LlavaOnevisionProcessor._get_unpadded_features(said, *size, 6, 6, *grid)
            assert layout(grid, size) == 36 + sum(counted)
            shrunk += layout.shrunk(grid, size) is not None
            order = layout.order(grid, size)
            assert max(order) < layout.maps(grid) * 36
    assert 0 < shrunk < 24
    last = replace(layout, thumbnail="last")
    assert last.order((2, 2), (40, 40)) == layout.order((2, 2), (40, 40))[36:] + tuple(range(36))
    assert [grid.rows for grid in token_grids(last, (1, 2), (40, 80))] == [6, 6]
