"""What is written is opened by transformers with our logits, or by us bit for bit; never as another model."""

from functools import partial
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from dslight.checkpoints import load_checkpoint
from dslight.checkpoints.llava import llava_config, why_not_llava
from dslight.checkpoints.write import field_names, write_tensors
from dslight.components import (
    DeepStackL,
    HFCausalLM,
    HFVisionEncoder,
    LowResolution,
    MLPProjector,
    SequenceConcat,
    TimmEncoder,
)

TIMM = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 4, "num_heads": 4}
VISION = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7,
}  # fmt: skip


def written(model: Any, folder: Any, **options: Any) -> None:
    parts = model.parts()
    own = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in module.own_state().items()}
    state = {theirs: own[ours] for ours, theirs in field_names(parts).items()}
    write_tensors(state, folder, **{"shard_size": "5GB", **options})


def restless(model: Any) -> Any:
    """Weights that differ enough for logits to tell."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma"])
def test_transformers_opens_every_family_with_our_logits(kind, shard_size, ours, agree, tmp_path):
    model = restless(ours(kind, **({"head_dim": 12} if kind in ("gemma", "qwen3") else {})))
    assert why_not_llava(model.parts()) is None
    written(model, tmp_path, shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "40KB")
    llava_config(model.parts(), image_token=63, vocabulary=64).save_pretrained(tmp_path)
    theirs, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    agree(model, theirs.eval())


@pytest.mark.parametrize("encoder", ["clip", "siglip", "clip with more layers"])
@pytest.mark.parametrize("tap", [-1, -2, 1, [-2, -4]], ids=str)
def test_transformers_reads_the_encoder_where_we_do(encoder, tap, ours, agree, tmp_path):
    vision: Any = None
    if encoder == "siglip":
        vision = HFVisionEncoder(config=VISION)
    elif encoder != "clip":
        vision = HFVisionEncoder(config=VISION | {"model_type": "clip_vision_model"}, extra_layers=2)
    model = restless(ours(stacking=LowResolution(tap=tap), encoder=vision))
    assert why_not_llava(model.parts()) is None
    written(model, tmp_path)
    llava_config(model.parts(), image_token=63, vocabulary=64).save_pretrained(tmp_path)
    agree(model, LlavaForConditionalGeneration.from_pretrained(tmp_path).eval())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"stacking": DeepStackL(num_stacks=2, source="base", tap=-2)}, "would drop the 2 stacks that DeepStackL adds"),
        ({"stacking": LowResolution(tap=-2, position=1.0)}, "has no LowResolution with a position code"),
        ({"stacking": SequenceConcat(tap=-2)}, "has no SequenceConcat"),
        ({"stacking": LowResolution(tap="final")}, "without the last norm"),
        ({"encoder": TimmEncoder("vit_tiny_patch16_224", model_args=TIMM)}, "vision encoder than TimmEncoder"),
        ({"projector": partial(MLPProjector, per_level=True)}, "one projector of two linear layers"),
        ({"kind": "gemma2", "head_dim": 12}, "other logits with a gemma2"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_no_llava_but_is_read_back(changed, reason, ours, tmp_path):
    model, fresh = restless(ours(**changed)), ours(**changed)
    assert reason in why_not_llava(model.parts())
    written(model, tmp_path, shard_size="40KB")
    load_checkpoint(fresh, tmp_path)
    before, after = model.state_dict(), fresh.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "gemma3_text"])
def test_decoders_of_other_names_are_read_back(kind, tmp_path, ours):
    more = {"gemma3_text": {"head_dim": 12}, "gpt2": {"n_inner": None}}.get(kind, {})
    text = {"intermediate_size": 96, "num_key_value_heads": 2} if kind == "gemma3_text" else {}
    shape = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    models = []
    for _ in range(2):
        model = restless(ours())
        model.language_model = HFCausalLM(config={"model_type": kind, **shape, **text, **more})
        models.append(model)
    written(restless(models[0]), tmp_path)
    report = load_checkpoint(models[1], tmp_path)
    assert report.ignored == {}
    before, after = (model.state_dict() for model in models)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_another_dtype_may_be_written(ours, tmp_path):
    model = restless(ours())
    written(model, tmp_path, dtype=torch.bfloat16)
    fresh = ours()
    load_checkpoint(fresh, tmp_path)
    weight = model.projector.net[0].weight
    assert torch.equal(fresh.projector.net[0].weight, weight.bfloat16().float())
    assert not torch.equal(fresh.projector.net[0].weight, weight)
