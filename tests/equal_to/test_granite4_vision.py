"""A whole Granite 4 Vision against transformers' ``Granite4VisionForConditionalGeneration`` on the same random weights.

Compared: from pictures of several shapes to logits and greedily generated ids. It is a point on the axes: every view of
LLaVA-NeXT's any-resolution tiles stands in the sequence as zeros (``base: zero``, newline, unpad), and stacks of these
views write on them: two taps of the encoder (``deepstack_layer_map``) and four corners of the blocks of a third
(``spatial_target_layers``), each through a window Q-Former of its own, at layers named one by one.
"""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from dslight.components import DeepStack, HFCausalLM, HFVisionEncoder, Stack, WindowQFormerProjector
from dslight.data.images import AnyResViews
from dslight.types import Batch, Views
from dslight.vlm import VLM

if not hasattr(transformers, "Granite4VisionForConditionalGeneration"):
    pytest.skip("this version of transformers has no Granite 4 Vision", allow_module_level=True)

IMAGE = 63
GRIDS = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
SIZES = [(120, 82), (80, 180), (180, 66), (112, 112), (50, 240)]
TAPS = [(-2, 4), (1, 0)]  # (vision layer, language model layer), not in the order of the layers
SPATIAL = (-1, [1, 2, 3, 5])
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 48, "num_attention_heads": 4,
    "num_hidden_layers": 4, "image_size": 56, "patch_size": 7,
}  # fmt: skip
TEXT = {
    "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 6, "vocab_size": 64, "max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": 1,
    "pad_token_id": 0, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
}  # fmt: skip
CORNERS = ["top_left", "top_right", "bottom_left", "bottom_right"]


def random_theirs():
    torch.manual_seed(0)
    config = transformers.Granite4VisionConfig(
        vision_config=VISION,
        text_config={"model_type": "granite4_vision_text", **TEXT},
        image_token_index=IMAGE,
        image_grid_pinpoints=[[56 * rows, 56 * cols] for rows, cols in GRIDS],
        downsample_rate="2/4",
        deepstack_layer_map=TAPS,
        spatial_vision_layer=SPATIAL[0],
        spatial_target_layers=SPATIAL[1],
    )
    model = transformers.Granite4VisionForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=0.15)
    return model


def same_ours(theirs):
    stacks = [Stack([site], "base", "identity", tap) for tap, site in TAPS]
    stacks += [Stack([site], "base", "identity", SPATIAL[0]) for site in SPATIAL[1]]
    stacking = DeepStack(stacks, sequence="tiles", base="zero", newline=True, unpad=True)

    def projector(in_widths, out_width):
        return WindowQFormerProjector(
            in_widths, out_width, window=4, queries=2, queries_from=["area"] * len(TAPS) + CORNERS, per_level=True
        )

    lm = HFCausalLM(config={"model_type": "granite", **TEXT})
    ours = VLM(HFVisionEncoder(config=VISION), projector, stacking, lm).eval().requires_grad_(False)
    state = theirs.model.vision_tower.state_dict()
    ours.vision_encoder.model.load_state_dict({k: state[k] for k in ours.vision_encoder.model.state_dict()})
    nets = [*theirs.model.layerwise_projectors, *theirs.model.spatial_projectors]
    for net, given in zip(ours.projector.nets, nets, strict=True):
        net.load_state_dict(given.state_dict())
    ours.stacking.newline.copy_(theirs.model.image_newline)
    ours.language_model.model.model.load_state_dict(theirs.model.language_model.state_dict())
    ours.language_model.model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return ours


@pytest.fixture(scope="module")
def models():
    theirs = random_theirs()
    return same_ours(theirs), theirs


@pytest.fixture(scope="module")
def views():
    """Tiles of smooth pictures of several shapes."""
    generator, policy, made = np.random.default_rng(0), AnyResViews(GRIDS), []
    for height, width in SIZES:
        small = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        made.append(policy(small.resize((width, height), Image.Resampling.BICUBIC), (56, 56)))
    return Views(torch.cat([pixels for pixels, _ in made]), [grid for _, grid in made], sizes=SIZES)


def their_inputs(encoder, views):
    """Our pixels the way transformers' model takes them: normalised, a row per image, zeros behind."""
    images = encoder.normalise(views.pixels).split(views.per_image)
    most = max(len(image) for image in images)
    padded = [torch.cat([image, image.new_zeros(most - len(image), *image.shape[1:])]) for image in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(views.sizes)}


def make_batch(model, views):
    """Two rows, the first two images in the first and the others in the second; left-padded."""
    layout = model.stacking.slot_layout(model.vision_encoder, model.projector)
    rows = [[5, 6, 7], [8, 9]]
    for image, (grid, size) in enumerate(zip(views.grids, views.sizes, strict=True)):
        rows[image > 1] += [IMAGE] * layout(grid, size) + [10 + image, 20 + image]
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return Batch(ids, attention, ids == IMAGE, views=views)


@torch.no_grad()
def test_the_slots_are_its_deepstack_features(models, views):
    ours, theirs = models
    visual = ours.see(views)
    expected = theirs.model.get_image_features(**their_inputs(ours.vision_encoder, views), return_dict=True)
    assert visual.sites == tuple(layer for layer, _ in expected.deepstack_features) == (4, 0, 1, 2, 3, 5)
    assert not visual.base.any()
    for stack, (_, features) in zip(visual.stacks, expected.deepstack_features, strict=True):
        torch.testing.assert_close(stack, torch.cat(list(features)), atol=1e-5, rtol=1e-5)
    assert len({len(one) for one in expected.deepstack_features[0][1]}) > 3
    assert all((visual.stacks[0] - one).abs().max() > 0.1 for one in visual.stacks[1:])


@torch.no_grad()
def test_the_logits_and_the_generated_ids_are_its_own(models, views):
    ours, theirs = models
    batch = make_batch(ours, views)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    inputs |= their_inputs(ours.vision_encoder, views)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    expected, real = theirs(**inputs, position_ids=positions).logits, batch.attention_mask.bool()
    assert expected[real].std() > 0.1
    torch.testing.assert_close(ours(batch)[real], expected[real], atol=1e-5, rtol=1e-5)
    ids = ours.generate(batch, max_new_tokens=8, pad_token_id=0)
    generated = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert ids.tolist() == generated.tolist()
    assert len(set(ids.flatten().tolist())) > 3


@torch.no_grad()
def test_the_corner_sampler_takes_its_queries(models, views):
    """Without its Q-Former a spatial group is our sampler ``corner``: the token at one corner of every block."""
    from transformers.models.granite4_vision.modeling_granite4_vision import spatial_offset_downsample

    ours, _ = models
    levels = DeepStack([Stack(SPATIAL[1], "base", "corner", -1)], base="zero", sequence="tiles")(
        ours.vision_encoder, views
    )
    (tokens,) = ours.vision_encoder(views.pixels[views.tile_index], taps=[-1])
    for offset, level in enumerate(levels):
        torch.testing.assert_close(level.flatten(1, 2), spatial_offset_downsample(tokens, 8, offset))
