"""The slots of our own are added as the authors' code adds them: the class that the kit's numbers for them come from,
Granite 4 Vision's text model, with the weights and the stacks of the authors' goldens, gives the authors' logits.
"""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

ROOT = Path(os.environ.get("DSLIGHT_GOLDENS", Path(__file__).parents[1] / "golden" / "deepstack_vl"))
CASES = ["deepstack_l_2d", "deepstack_l_2d_start0_interval2"]
if not hasattr(transformers, "Granite4VisionForConditionalGeneration"):
    pytest.skip("this version of transformers has no Granite 4 Vision", allow_module_level=True)


@pytest.mark.golden_model
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_text_model_that_the_numbers_of_slots_come_from_gives_the_authors_logits(case):
    from transformers.models.granite4_vision.modeling_granite4_vision import (
        Granite4VisionTextConfig,
        Granite4VisionTextModel,
    )

    if not (ROOT / case).is_dir():
        pytest.skip(f"{case} is not in this folder of goldens (DSLIGHT_GOLDENS)")
    said, found = json.loads((ROOT / case / "config.json").read_text()), load_file(ROOT / case / "outputs.safetensors")
    width, heads = said["llm_hidden_size"], said["llm_heads"]
    config = Granite4VisionTextConfig(
        hidden_size=width, intermediate_size=said["llm_intermediate_size"], num_hidden_layers=said["llm_layers"],
        num_attention_heads=heads, num_key_value_heads=said["llm_kv_heads"], vocab_size=said["vocab_size"],
        rms_norm_eps=said["rms_norm_eps"], attention_multiplier=(width // heads) ** -0.5,
        max_position_embeddings=said["max_position_embeddings"], pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": said["rope_theta"]},
    )  # fmt: skip
    weights = load_file(ROOT / said["weights_file"])
    model = Granite4VisionTextModel(config).eval()
    model.load_state_dict({name: weights[f"model.{name}"] for name in model.state_dict()})
    if "stack_groups_file" in said:  # of another case with the same images
        found = load_file(ROOT / said["stack_groups_file"]) | found
    groups = found["stack_groups"]
    mask = found["expanded_attention_mask"]
    visual, (batch, length), count = torch.zeros_like(mask, dtype=torch.bool), mask.shape, groups.shape[2]
    ids, given = torch.zeros(batch, length, dtype=torch.int64), load_file(ROOT / said["inputs_file"])["input_ids"]
    for row, start in found["image_positions"].tolist():
        visual[row, start : start + count] = True
        ids[row, :start] = given[row, :start]
        ids[row, start + count :] = given[row, start + 1 :][: length - start - count]
    embedded = weights["model.embed_tokens.weight"][ids]
    embedded[visual] = found["base_tokens"].flatten(0, 1)
    sites = [said["start"] + i * said["interval"] for i in range(len(groups))]
    hidden = model(
        inputs_embeds=embedded, attention_mask=mask, vision_mask=visual[..., None], use_cache=False,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        deepstack_features={site: group.flatten(0, 1) for site, group in zip(sites, groups, strict=True)},
    ).last_hidden_state  # fmt: skip
    logits = hidden @ weights["lm_head.weight"].T
    real = mask.bool()
    assert real.sum() > visual.sum()
    torch.testing.assert_close(logits[real], found["logits"][real], atol=2e-4, rtol=0)
    without = model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state
    assert (without @ weights["lm_head.weight"].T - found["logits"])[real].abs().max() > 0.5
