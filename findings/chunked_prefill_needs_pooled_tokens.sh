#!/usr/bin/env bash
# transformers 5.24.0: `generate(prefill_chunk_size=n)` cuts what an encoder gives for images into pieces, and reads
# `pooler_output` of every encoder. Granite 4 Vision's gives none: its visual tokens are stacks alone, zeros stand in the
# sequence. So a prompt with an image that is longer than a chunk raises KeyError, while the model's own passes over pieces,
# handed the features of each piece, are right. Qwen3-VL with the same call answers as without. Seen: KeyError:
# 'pooler_output' for granite4_vision, equal ids for qwen3_vl; passes over pieces within 1e-5 of a pass over the whole.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import copy

import torch
import transformers
from transformers import DynamicCache

print("transformers", transformers.__version__, "torch", torch.__version__)
text = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=64, max_position_embeddings=128, eos_token_id=None, bos_token_id=1, pad_token_id=0)
granite = transformers.Granite4VisionConfig(
    vision_config=dict(model_type="siglip_vision_model", hidden_size=64, intermediate_size=16, num_attention_heads=2,
                       num_hidden_layers=2, image_size=16, patch_size=4),
    text_config=dict(model_type="granite4_vision_text", **text),
    image_token_index=60, image_grid_pinpoints=[[16, 32]], downsample_rate="2/4", vision_feature_select_strategy="full",
    deepstack_layer_map=[[-2, 3]], spatial_target_layers=[1, 0])
qwen = transformers.Qwen3VLConfig(
    vision_config=dict(depth=4, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32,
                       num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2]),
    text_config=dict(text, head_dim=8, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])),
    image_token_id=60, vision_start_token_id=61, vision_end_token_id=62, video_token_id=63)


def random(kind, config):
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
        model.lm_head.weight[57:] = 0  # no placeholder in an answer
    return model


def prompt(tokens):
    ids = torch.tensor([[5, 6, *[60] * tokens, 7, 8, 9]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


torch.manual_seed(1)
model = random(transformers.Qwen3VLForConditionalGeneration, qwen)
inputs = prompt(6) | {"pixel_values": torch.randn(24, 96), "image_grid_thw": torch.tensor([[1, 4, 6]])}
inputs["mm_token_type_ids"] = (inputs["input_ids"] == 60).int()
whole = model.generate(**inputs, max_new_tokens=6, do_sample=False)
pieces = model.generate(**inputs, max_new_tokens=6, do_sample=False, prefill_chunk_size=4)
print("qwen3_vl        whole", whole[0, 11:].tolist(), "in pieces of 4", pieces[0, 11:].tolist())
assert torch.equal(whole, pieces)

model = random(transformers.Granite4VisionForConditionalGeneration, granite)
images = {"pixel_values": torch.randn(1, 3, 3, 16, 16), "image_sizes": torch.tensor([[16, 32]])}
with torch.no_grad():
    seen = model.get_image_features(**images, return_dict=True)
inputs = prompt(sum(len(one) for one in seen.deepstack_features[0][1]))
length = inputs["input_ids"].shape[1]
whole = model.generate(**inputs, **images, max_new_tokens=6, do_sample=False)
print("granite4_vision whole", whole[0, length:].tolist())
with torch.no_grad():  # pieces by hand
    logits = model(**inputs, **images, use_cache=False).logits
    cache, apart = DynamicCache(config=model.config), 0.0
    is_image = inputs["input_ids"][0] == 60
    for start in range(0, length, 4):
        ids, rows = inputs["input_ids"][:, start : start + 4], (is_image.cumsum(0) - 1)[start : start + 4]
        rows = rows[is_image[start : start + 4]]
        more = {}
        if len(rows):
            cut = copy.copy(seen)
            cut["deepstack_features"] = [(layer, [torch.cat(list(one))[rows]]) for layer, one in seen.deepstack_features]
            more = {"mm_encoder_outputs": {"image": cut}}
        mask = torch.ones(1, start + ids.shape[1], dtype=torch.int64)
        out = model(input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, **more).logits
        apart = max(apart, float((out - logits[:, start : start + 4]).abs().max()))
    print(f"granite4_vision pieces of 4 by hand, largest difference of logits {apart:.1e}")
    assert apart < 1e-4
try:
    model.generate(**inputs, **images, max_new_tokens=6, do_sample=False, prefill_chunk_size=4)
except KeyError as error:
    print("granite4_vision generate(prefill_chunk_size=4): KeyError:", error)
    assert error.args == ("pooler_output",)
else:
    raise SystemExit("granite4_vision: chunked prefill no longer raises")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
