"""A tiny LLaVA of transformers, and the same model out of our parts: what checkpoints go from and to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration

from dslight.components import HFCausalLM, HFVisionEncoder, LowResolution, MLPProjector
from dslight.types import Batch, Views
from dslight.vlm import VLM

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "projection_dim": 16,
}  # fmt: skip
TEXT = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGE = 63
PATCHES = 16


def _theirs(kind: str = "llama", **text: Any) -> LlavaForConditionalGeneration:
    """A random LLaVA of transformers; its logits differ by much more than rounding."""
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config={"model_type": kind, **TEXT, **text}, vision_config=VISION, image_token_index=IMAGE
    )  # type: ignore[arg-type]
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def _ours(
    kind: str = "llama", stacking: Any = None, encoder: Any = None, projector: Any = MLPProjector, **text: Any
) -> VLM:
    """The same out of our four parts, with other random weights."""
    torch.manual_seed(1)
    return VLM(
        vision_encoder=encoder or HFVisionEncoder(config=VISION),
        projector=projector,
        stacking=stacking or LowResolution(tap=-2),
        language_model=HFCausalLM(config={"model_type": kind, **TEXT, **text}),
    ).eval()


@pytest.fixture
def batch() -> Batch:
    """Two rows: one image at position 2 and text behind it; text alone."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (2, 24), generator=generator)
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 2 : 2 + PATCHES] = True
    ids[mask] = IMAGE
    pixels = torch.randint(0, 256, (1, 3, 28, 28), dtype=torch.uint8, generator=generator)
    return Batch(ids, torch.ones_like(ids), mask, views=Views(pixels, [(0, 0)]))


@pytest.fixture
def agree(batch) -> Callable[..., None]:
    """``agree(our model, their model)``: equal logits."""

    @torch.no_grad()
    def check(model: VLM, reference: Any) -> None:
        pixels = model.vision_encoder.normalise(batch.views.pixels)
        expected = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask, pixel_values=pixels).logits
        torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-5)

    return check


def _official(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """Its tensors under the names of the official LLaVA code."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        new = name.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        new = new.replace("model.language_model.", "model.")
        new = new.replace("model.multi_modal_projector.linear_1", "model.mm_projector.0")
        new = new.replace("model.multi_modal_projector.linear_2", "model.mm_projector.2")
        state[new] = tensor.clone()
    return state


@pytest.fixture(scope="session")
def theirs() -> Callable[..., LlavaForConditionalGeneration]:
    """``theirs(kind, **text)``: a random LLaVA of transformers."""
    return _theirs


@pytest.fixture(scope="session")
def ours() -> Callable[..., VLM]:
    """``ours(kind, stacking, encoder, projector, **text)``: the same out of our four parts, otherwise random."""
    return _ours


@pytest.fixture(scope="session")
def official() -> Callable[[LlavaForConditionalGeneration], dict[str, Tensor]]:
    """``official(model)``: its tensors under the names of the official LLaVA code."""
    return _official
