"""The authors' own state dict, read as the released checkpoints are, gives the authors' numbers."""

import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from dslight.checkpoints import load_checkpoint
from dslight.components import DeepStackL, DeepStackV, HFCausalLM, HFVisionEncoder, LowResolution, MLPProjector
from dslight.types import Batch, Views
from dslight.vlm import VLM

CASES = {
    "baseline_llava": LowResolution,
    "deepstack_l_2d": DeepStackL,
    "deepstack_l_2d_phi3": DeepStackL,
    "deepstack_v_n2": partial(DeepStackV, start=2),
    "deepstack_v_n6_post_encoder": partial(DeepStackV, start=6),
}


class NormalisedPixels(HFVisionEncoder):
    """Takes the pixels as the goldens hold them: normalised already."""

    def normalise(self, pixels):
        return pixels


@pytest.mark.golden_model
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_the_authors_gives_their_logits(golden, same, case, tmp_path):
    config, outputs = golden.config(case), golden.outputs(case)
    extra = config.get("extra_weights_file", f"{case}/weights_extra.safetensors" if "post_encoder" in case else None)
    phi, more = case.endswith("phi3"), 5 if "post_encoder" in case else 0
    state = golden.tensors("weights.safetensors") | (golden.tensors(extra) if extra else {})
    if phi:  # the goldens' files keep what phi has in other tensors
        split = re.compile(
            r"model\.layers\.(\d+)\.(self_attn\.[qkv]_proj|mlp\.(gate|up)_proj)\.|model\.layers\.[5-9]\."
        )
        state = {name: tensor for name, tensor in state.items() if not split.match(name)}
    tower = "model.vision_tower.vision_tower.vision_model."
    for kind in ("weight", "bias"):  # never used; the trimmed goldens are without it
        state.setdefault(f"{tower}post_layernorm.{kind}", torch.ones(32))
    save_file(state, tmp_path / "model.safetensors")

    vision = {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 7,
    }  # fmt: skip
    text = {
        "model_type": "phi3" if phi else "llama", "hidden_size": 48, "intermediate_size": 96, "vocab_size": 128,
        "num_hidden_layers": config["llm_layers"], "num_attention_heads": 4, "rms_norm_eps": 1e-5,
        "num_key_value_heads": config["llm_kv_heads"],
        "max_position_embeddings": 1024, "pad_token_id": 0,
    }  # fmt: skip
    model = VLM(
        NormalisedPixels(config=vision, extra_layers=more),
        MLPProjector,
        CASES[case](tap=config["vision_select_layer"]),
        HFCausalLM(config=text),
    ).eval()
    report = load_checkpoint(model, tmp_path)
    assert set(report.ignored) <= {"model.image_newline"}

    inputs = golden.tensors(config["inputs_file"])
    ids = inputs["input_ids"]
    grids = golden.grids(case) if config["grids"] else [(0, 0)] * len(ids)
    pixels = [inputs[f"pixel_values.{i}"][: 1 + rows * cols] for i, (rows, cols) in enumerate(grids)]
    wide = torch.stack([torch.cat([row[:at], torch.full((16,), -200), row[at + 1 :]]) for row, at in zip(
        ids, (ids == -200).int().argmax(-1).tolist(), strict=True
    )])  # fmt: skip
    attention = outputs["expanded_attention_mask"].long()
    with torch.no_grad():
        logits = model(Batch(wide.clamp(min=0), attention, wide == -200, views=Views(torch.cat(pixels), grids)))
    same(logits[attention.bool()], outputs["logits"][attention.bool()])
