"""Every kind of part, composed, written and opened by the Auto classes of transformers: our logits and our answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import dslight
from dslight.checkpoints.write import write_tensors
from dslight.in_transformers.write import write_own
from dslight.matrix.tiny import tiny

SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
SHAPE = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "hidden_size": 16}
CLIP = {"model_type": "clip_vision_model", **SHAPE, "image_size": 16, "patch_size": 4}
DINO = {"model_type": "dinov3_vit", **SHAPE, "image_size": 16, "patch_size": 4}
LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip

vit = partial(dslight.TimmEncoder, "vit_tiny_patch16_224", model_args=SIZES)
NAFLEX = {
    "model_type": "siglip2_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "patch_size": 4, "num_patches": 16,
}  # fmt: skip
TOWER = {
    "model_type": "qwen3_vl_vision", "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
    "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 48,
    "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2],
}  # fmt: skip
AXES = {
    "model_type": "qwen3_vl_text", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "vocab_size": 64,
    "max_position_embeddings": 512, "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
}  # fmt: skip

llama = partial(dslight.HFCausalLM, config=LLAMA)


def decoder(kind: str, **more: Any) -> Any:
    return lambda: dslight.HFCausalLM(config={**tiny(kind), **more})


class Averaging(dslight.LanguageModel):
    """A stranger's decoder, which knows no cache: the mean of what it has seen so far."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.net = Net(width)
        self.width, self.vocabulary = width, 40

    layers = property(lambda self: self.net.blocks)
    embedding = property(lambda self: self.net.embed)
    decoder = property(lambda self: self.net)

    def logits(self, input_ids: Any, attention_mask: Any) -> Any:
        return self.net(input_ids, attention_mask)


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, width)
        self.blocks = nn.ModuleList(Mean(width) for _ in range(4))
        self.out = nn.Linear(width, 40)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids) * attention_mask[..., None]
        for block in self.blocks:
            x = block(x)
        return self.out(x)


class Mean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(1, x.shape[1] + 1)[None, :, None]
        return x + torch.tanh(self.linear(x.cumsum(1) / steps))


MODELS: dict[str, tuple[Any, Any, Any, Any]] = {
    "low": (vit, dslight.MLPProjector, dslight.LowResolution, llama),
    "deepstack_l": (vit, partial(dslight.MLPProjector, per_level=True), partial(dslight.DeepStackL, crops=4), llama),
    "deepstack_hd": (vit, dslight.MLPProjector, dslight.DeepStackHD, llama),
    "deepstack_v": (vit, dslight.MLPProjector, partial(dslight.DeepStackV, start=0), llama),
    "taps, DINO": (
        lambda: dslight.HFVisionEncoder(config=DINO),
        partial(dslight.MLPProjector, per_level=True),
        partial(dslight.DeepStackTaps, taps=(1, 2)),
        llama,
    ),
    "sequence, CLIP, pooled": (
        lambda: dslight.HFVisionEncoder(config=CLIP),
        dslight.AveragePoolProjector,
        dslight.SequenceConcat,
        llama,
    ),
    "channels, pixel shuffle": (vit, dslight.PixelShuffleMLPProjector, dslight.ChannelConcat, llama),
    "gated, tied qwen2": (
        vit,
        dslight.MLPProjector,
        partial(dslight.DeepStackL, crops=2, operation=partial(dslight.GatedAdd, init=0.3)),
        decoder("qwen2", tie_word_embeddings=True),
    ),
    "conditioned gate, gemma3": (
        vit,
        dslight.MLPProjector,
        partial(dslight.DeepStackL, crops=2, operation=dslight.ConditionedGate),
        decoder("gemma3_text"),
    ),
    "cross-attention, resampler": (
        vit,
        partial(dslight.PerceiverResamplerProjector, grid=(2, 2), depth=1, heads=2),
        dslight.CrossAttention,
        llama,
    ),
    "fused encoders, gpt2": (
        lambda: dslight.FusedEncoder([dslight.HFVisionEncoder(config=CLIP), dslight.HFVisionEncoder(config=DINO)]),
        dslight.MLPProjector,
        partial(dslight.DeepStackL, crops=2),
        decoder("gpt2"),
    ),
    "feature maps, C-Abstractor, opt": (
        lambda: dslight.TimmFeatureMaps(
            "resnet18", model_args={"channels": [8, 8, 16, 24]}, image_size=(32, 32), stage=1
        ),
        partial(dslight.CAbstractorProjector, depth=1, width=16),
        dslight.LowResolution,
        decoder("opt"),
    ),
    "images as they are, positions of several axes": (
        partial(dslight.NativeVisionEncoder, config=TOWER, mean=(0.5,) * 3, std=(0.5,) * 3),
        dslight.PixelShuffleMLPProjector,
        lambda: dslight.DeepStackTaps(taps=[1, 3]),
        partial(dslight.HFCausalLM, config=AXES),
    ),
    "NaFlex, a native DeepStack-L": (
        partial(dslight.NaFlexEncoder, config=NAFLEX, merge=2, mean=(0.5,) * 3, std=(0.5,) * 3),
        dslight.PixelShuffleMLPProjector,
        partial(dslight.DeepStackL, crops=4),
        llama,
    ),
    "window Q-Former": (
        vit,
        partial(dslight.WindowQFormerProjector, window=4, queries=2, heads=2, hidden=24),
        partial(dslight.DeepStackL, crops=2),
        llama,
    ),
    "no projector": (
        vit,
        dslight.IdentityProjector,
        dslight.LowResolution,
        partial(dslight.HFCausalLM, config={**LLAMA, "hidden_size": 16}),
    ),
    "mamba": (vit, dslight.MLPProjector, partial(dslight.DeepStackL, crops=2), decoder("mamba")),
    "a stranger's decoder": (vit, dslight.MLPProjector, partial(dslight.DeepStackL, crops=2), Averaging),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, pages, tmp_path_factory) -> tuple[Any, Any, Any]:
    """Ours, and what transformers opens of the folder: model and processor."""
    encoder, projector, stacking, lm = MODELS[request.param]
    torch.manual_seed(0)
    ours = dslight.VLM(encoder(), projector, stacking(), lm()).eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    ours.tokenizer = AutoTokenizer.from_pretrained(pages / "tokenizer")
    folder: Path = tmp_path_factory.mktemp("folder")
    write_own(ours, ours.processor, ours.to_recipe(), folder)
    state = {f"vlm.{name}": tensor for name, tensor in ours.state_dict().items()}
    write_tensors(state, folder, "200KB")
    theirs, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    return ours, theirs, AutoProcessor.from_pretrained(folder)


def asked(ours: Any, processor: Any) -> tuple[Any, Any]:
    """A batch of two questions, about a picture and about two; ours, and what the processor makes."""
    rng = np.random.default_rng(0)
    one, two, three = (Image.fromarray(rng.integers(0, 255, (size, 40, 3), dtype=np.uint8)) for size in (24, 40, 90))
    batch = ours.processor.ask(["A1", "B2 C3 A1"], [one, [two, three]])

    def talk(text: str, *pictures: Any) -> list[Any]:
        images = [{"type": "image", "image": picture} for picture in pictures]
        return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]

    given = processor.apply_chat_template(
        [talk("A1", one), talk("B2 C3 A1", two, three)], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return batch, given


def test_logits_and_greedy_answers_are_ours(pair):
    ours, theirs, processor = pair
    batch, given = asked(ours, processor)
    assert torch.equal(given["pixel_values"], batch.views.pixels)
    assert torch.equal(given["input_ids"] == theirs.config.image_token_id, batch.visual_mask)
    assert torch.equal(given["input_ids"][~batch.visual_mask], batch.input_ids[~batch.visual_mask])
    with torch.no_grad():
        torch.testing.assert_close(theirs(**given).logits, ours(batch), atol=1e-6, rtol=0)
    options = {"max_new_tokens": 5, "pad_token_id": ours.tokenizer.pad_token_id}
    said = ours.generate(batch, eos_token_id=ours.processor.stop_ids, **options)
    answered = theirs.generate(**given, max_new_tokens=5)
    assert torch.equal(answered[:, : given["input_ids"].shape[1]], given["input_ids"])
    assert torch.equal(answered[:, given["input_ids"].shape[1] :], said)
    assert said.unique().numel() > 1 or not hasattr(ours.language_model, "model")
