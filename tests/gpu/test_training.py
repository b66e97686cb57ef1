"""On a CUDA device: a stacked model trains under bf16-mixed, and the injector gives there what it gives on the CPU."""

from __future__ import annotations

import copy
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from dslight.components import DeepStackL, DeepStackV, HFCausalLM, MLPProjector, TimmEncoder
from dslight.train.optim import PartTraining, Stage
from dslight.types import Batch, Views
from dslight.vlm import VLM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CONFIG = {
    "model_type": "llama", "vocab_size": 40, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip


@pytest.fixture(params=[DeepStackL, DeepStackV], ids=lambda scheduler: scheduler.__name__)
def model(request) -> VLM:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 5, "num_heads": 2}
    encoder = TimmEncoder("vit_tiny_patch16_224", model_args=size)
    return VLM(encoder, MLPProjector, request.param(num_stacks=4, start=1), HFCausalLM(config=CONFIG))


def batch() -> Batch:
    """An image with four crops between text, and a row of text alone."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (2, 24), generator=generator)
    visual = torch.zeros(2, 24, dtype=torch.bool)
    visual[0, 3:19] = True
    pixels = torch.randint(0, 256, (5, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = torch.where(visual, -100, ids)
    return Batch(ids, torch.ones_like(ids), visual, labels, Views(pixels, [(2, 2)]), keys=["a", "b"])


def test_a_stacked_model_trains_under_bf16_mixed(model, tmp_path):
    model.stage = Stage({name: PartTraining(1e-3) for name in ("vision_encoder", "projector", "language_model")})
    before = copy.deepcopy(model.state_dict())
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model, DataLoader([batch(), batch()], batch_size=None))
    assert trainer.global_step == 2
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    after = {name: value.cpu() for name, value in model.state_dict().items()}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in after.values())
    unmoved = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert not unmoved


def test_injected_logits_are_those_of_the_cpu(model):
    model.eval()
    with torch.inference_mode():
        expected = model(batch())
        plain = model.language_model.logits(batch().input_ids, batch().attention_mask)
        got = model.cuda()(batch().to("cuda")).cpu()
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(expected, plain, atol=1e-1)


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_forward_and_backward_pass_never_wait_for_the_device(model, packed):
    """Packed rows by torch's variable-length kernel, which takes half precision."""
    made = batch()
    if packed:
        half = made.input_ids.shape[1] // 2
        segments = torch.where(torch.arange(2 * half) < half, 1, 2).expand_as(made.input_ids[:, : 2 * half])
        made = replace(made, segments=torch.nn.functional.pad(segments, (0, made.input_ids.shape[1] - 2 * half)))
    made, there = made.pin_memory(), model.cuda().train()
    with torch.autocast("cuda", torch.bfloat16):
        there.loss(made.to("cuda"))[0].backward()  # libraries wait once, when they are loaded
        torch.cuda.set_sync_debug_mode("error")
        try:
            total, _ = there.loss(made.to("cuda"))
            total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    with torch.inference_mode():
        expected, _ = model.cpu().loss(made)
    torch.testing.assert_close(total.detach().float().cpu(), expected, rtol=3e-2, atol=0)
