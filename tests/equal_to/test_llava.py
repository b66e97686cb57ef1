"""A whole LLaVA-1.5 against transformers' ``LlavaForConditionalGeneration`` on the same random weights.

Compared: from pixels to logits and to greedily generated ids, through the vision tower, the projector and Llama. The
checkpoint is saved by transformers and read by :func:`dslight.checkpoints.load_checkpoint`.
"""

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from dslight.checkpoints import load_checkpoint
from dslight.components import HFCausalLM, HFVisionEncoder, LowResolution, MLPProjector
from dslight.types import Batch, Views
from dslight.vlm import VLM

IMAGE = 63
SIDE = 4
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4}
TOWERS = {
    "clip": VISION | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 7},
    "siglip": VISION | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7},
}
TEXT = {
    "model_type": "llama", "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": 64, "max_position_embeddings": 256,
    "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def both(tmp_path, tower="clip", layer=-2):
    """The two models with the same weights; transformers' has a small init (0.02) that would leave logits alike."""
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=TOWERS[tower],
        text_config=TEXT,
        image_token_index=IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    theirs = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    theirs.save_pretrained(tmp_path)
    stacking = LowResolution(tap=layer)
    ours = VLM(HFVisionEncoder(config=TOWERS[tower]), MLPProjector, stacking, HFCausalLM(config=TEXT)).eval()
    load_checkpoint(ours, tmp_path)
    return ours, theirs


def make_batch(images=(1, 2, 0)):
    """Rows with so many images each, left-padded."""
    generator = torch.Generator().manual_seed(0)
    slots = SIDE * SIDE
    rows = []
    for row, count in enumerate(images):
        ids = torch.randint(3, 60, (3 + row,), generator=generator).tolist()
        for _ in range(count):
            ids += [IMAGE] * slots + torch.randint(3, 60, (2,), generator=generator).tolist()
        rows.append(ids)
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    attention = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    pixels = torch.randint(0, 256, (sum(images), 3, 28, 28), dtype=torch.uint8, generator=generator)
    return Batch(ids, attention, ids == IMAGE, views=Views(pixels, [(0, 0)] * sum(images)))


@pytest.mark.parametrize(
    ("tower", "layer"),
    [("clip", -2), ("clip", -1), ("clip", 2), ("clip", [1, -2]), ("clip", [-3, -2, -1]), ("siglip", -1)],
)
@torch.no_grad()
def test_the_logits_are_transformers(tmp_path, tower, layer):
    ours, theirs = both(tmp_path, tower, layer)
    batch = make_batch()
    pixels = ours.vision_encoder.normalise(batch.views.pixels)
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, pixel_values=pixels
    ).logits
    real = batch.attention_mask.bool()
    assert expected[real].std() > 0.1
    torch.testing.assert_close(ours(batch)[real], expected[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_generated_ids_are_transformers(tmp_path):
    ours, theirs = both(tmp_path)
    batch = make_batch((1, 2))
    expected = theirs.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=ours.vision_encoder.normalise(batch.views.pixels),
        max_new_tokens=12,
        do_sample=False,
    )[:, batch.input_ids.shape[1] :]
    ids = ours.generate(batch, max_new_tokens=12, pad_token_id=0)
    assert ids.tolist() == expected.tolist()
    assert len(set(ids.flatten().tolist())) > 3


def test_the_gradients_are_transformers(tmp_path):
    ours, theirs = both(tmp_path)
    batch = make_batch((1, 2))
    real = batch.attention_mask.bool()
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    pixels = ours.vision_encoder.normalise(batch.views.pixels)
    expected = theirs(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, pixel_values=pixels
    ).logits
    expected[real].square().mean().backward()
    ours(batch)[real].square().mean().backward()
    for mine, their in (
        (ours.projector.net[0], theirs.model.multi_modal_projector.linear_1),
        (ours.vision_encoder.layers[0].mlp.fc1, theirs.model.vision_tower.encoder.layers[0].mlp.fc1),
        (ours.language_model.layers[2].mlp.up_proj, theirs.model.language_model.layers[2].mlp.up_proj),
    ):
        assert their.weight.grad.abs().max() > 1e-4
        torch.testing.assert_close(mine.weight.grad, their.weight.grad, atol=1e-5, rtol=1e-4)
