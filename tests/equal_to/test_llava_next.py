"""A whole LLaVA-NeXT against transformers' ``LlavaNextForConditionalGeneration`` on the same random weights.

Compared: from pictures of several shapes to logits and greedily generated ids: the any-resolution tiles (the choice of
the grid and the pixels, against ``LlavaNextImageProcessor``), the vision tower, the projector, the mosaic without its
padding, the newline tokens, and Llama: :class:`~dslight.components.SequenceConcat` with ``newline`` and ``unpad``.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

from dslight.checkpoints import load_checkpoint
from dslight.components import HFCausalLM, HFVisionEncoder, MLPProjector, SequenceConcat
from dslight.data.images import AnyResViews
from dslight.types import Batch, Views
from dslight.vlm import VLM

IMAGE = 63
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_hidden_layers": 4, "image_size": 28, "patch_size": 7,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 64, "max_position_embeddings": 512,
    "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
SIZES = [(60, 41), (40, 90), (90, 33), (56, 56), (30, 28), (100, 101), (25, 120)]


@pytest.fixture
def models(tmp_path):
    torch.manual_seed(0)
    config = LlavaNextConfig(
        vision_config=VISION,
        text_config=TEXT,
        image_token_index=IMAGE,
        image_grid_pinpoints=[[28 * rows, 28 * cols] for rows, cols in GRIDS],
    )
    theirs = LlavaNextForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    stacking = SequenceConcat(tap=-2, newline=True, unpad=True)
    ours = VLM(HFVisionEncoder(config=VISION), MLPProjector, stacking, HFCausalLM(config=TEXT)).eval()
    load_checkpoint(ours, tmp_path)
    assert ours.stacking.newline.abs().max() > 0.1
    return ours, theirs


def pictures(sizes=SIZES):
    """Smooth pictures of (height, width)."""
    generator = np.random.default_rng(0)
    small = [generator.integers(0, 256, (5, 5, 3), dtype=np.uint8) for _ in sizes]
    return [
        Image.fromarray(one).resize((w, h), Image.Resampling.BICUBIC) for one, (h, w) in zip(small, sizes, strict=True)
    ]


def our_views(images):
    policy, made = AnyResViews(GRIDS), []
    for image in images:
        made.append(policy(image, (28, 28)))
    sizes = [(image.height, image.width) for image in images]
    return Views(torch.cat([pixels for pixels, _ in made]), [grid for _, grid in made], sizes=sizes)


def their_inputs(encoder, views):
    """Our pixels the way transformers' model takes them: normalised, a row per image, zeros behind."""
    images = encoder.normalise(views.pixels).split(views.per_image)
    most = max(len(image) for image in images)
    padded = [torch.cat([image, image.new_zeros(most - len(image), *image.shape[1:])]) for image in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(views.sizes)}


def make_batch(model, views):
    """Two rows, the first two images in the first and the others in the second; left-padded."""
    layout = model.stacking.slot_layout(model.vision_encoder, model.projector)
    slots = [layout(grid, size) for grid, size in zip(views.grids, views.sizes, strict=True)]
    rows = [[5, 6, 7], [8, 9]]
    for image, count in enumerate(slots):
        rows[image > 1] += [IMAGE] * count + [10 + image, 20 + image]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return Batch(ids, attention, ids == IMAGE, views=views)


def test_the_views_are_transformers():
    """The same grids; pixels up to rounding, because its processor resizes with torch and ours with Pillow."""
    processing = pytest.importorskip("transformers.models.llava_next.image_processing_llava_next")
    processor = processing.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=False,
        image_grid_pinpoints=[[28 * rows, 28 * cols] for rows, cols in GRIDS], do_normalize=False, do_rescale=False,
    )  # fmt: skip
    images = pictures()
    views = our_views(images)
    given = processor(images, return_tensors="pt")
    assert given["image_sizes"].tolist() == [list(size) for size in views.sizes]
    for theirs, pixels, grid in zip(
        given["pixel_values"], views.pixels.split(views.per_image), views.grids, strict=True
    ):
        assert not theirs[1 + grid[0] * grid[1] :].any()
        difference = (theirs[1 : len(pixels)].float() - pixels[1:].float()).abs()
        assert difference.max() <= 2
        assert difference.mean() < 0.5


@torch.no_grad()
def test_the_image_features_are_transformers_for_pictures_of_every_shape(models):
    ours, theirs = models
    views = our_views(pictures())
    expected = theirs.model.get_image_features(
        **their_inputs(ours.vision_encoder, views), return_dict=True
    ).pooler_output
    slots = ours.see(views).slots[0]
    layout = ours.stacking.slot_layout(ours.vision_encoder, ours.projector)
    assert [len(one) for one in expected] == [layout(g, s) for g, s in zip(views.grids, views.sizes, strict=True)]
    assert len({len(one) for one in expected}) > 3
    torch.testing.assert_close(slots, torch.cat(list(expected)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_logits_and_the_generated_ids_are_transformers(models):
    ours, theirs = models
    views = our_views(pictures())
    batch = make_batch(ours, views)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    inputs |= their_inputs(ours.vision_encoder, views)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    expected, real = theirs(**inputs, position_ids=positions).logits, batch.attention_mask.bool()
    assert expected[real].std() > 0.1
    torch.testing.assert_close(ours(batch)[real], expected[real], atol=1e-5, rtol=1e-5)
    ids = ours.generate(batch, max_new_tokens=10, pad_token_id=0)
    theirs_ids = theirs.generate(**inputs, max_new_tokens=10, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert ids.tolist() == theirs_ids.tolist()
    assert len(set(ids.flatten().tolist())) > 3


@torch.no_grad()
def test_one_image_without_crops_is_transformers_too(models):
    """transformers packs an image of one view as its tokens and one newline."""
    ours, theirs = models
    views = Views(our_views(pictures()[:1]).pixels[:1], [(0, 0)], sizes=[SIZES[0]])
    pixels = ours.vision_encoder.normalise(views.pixels)
    tokens = theirs.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    packed, _ = theirs.model.pack_image_features(
        [theirs.model.multi_modal_projector(tokens)], torch.tensor([SIZES[0]]), "default", theirs.model.image_newline
    )
    torch.testing.assert_close(ours.see(views).slots[0], packed[0], atol=1e-5, rtol=1e-5)
