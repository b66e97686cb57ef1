#!/usr/bin/env bash
# transformers 5.24.0: Qwen3-VL counts its positions itself where none are given, and keeps the offset that images left
# (`rope_deltas`) on the module. In a decode step of one's own
#  - an attention mask as long as the sequence so far, which every other decoder takes, raises RuntimeError: positions are made
#    for all of the mask's columns and not for the token alone;
#  - without a mask, a second request that was computed in between leaves its offset to the first: logits of ordinary size,
#    no warning. One request alone is right.
# `generate` hands positions on and is not affected; a decoding loop or a server that keeps two requests on one model is.
# Seen: RuntimeError with a mask; without, the largest difference of logits to a pass over the whole sequence is about 1e-6
# alone, and above 1 with a request in between.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers import DynamicCache

print("transformers", transformers.__version__, "torch", torch.__version__)
config = transformers.Qwen3VLConfig(
    vision_config=dict(depth=4, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32,
                       num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2]),
    text_config=dict(hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=64, max_position_embeddings=128, head_dim=8,
                     rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])),
    image_token_id=60, vision_start_token_id=61, vision_end_token_id=62, video_token_id=63)
torch.manual_seed(0)
model = transformers.Qwen3VLForConditionalGeneration(config).eval()
with torch.no_grad():
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=0.2)


def request(rows, cols):
    ids = torch.tensor([[5, 6, 61, *[60] * (rows * cols // 4), 62, 7, 8, 9]])
    patches = torch.randn(rows * cols, 96)
    return {"input_ids": ids, "pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, cols]]),
            "mm_token_type_ids": (ids == 60).int()}


def followed(one, token):
    """The same request with a token more."""
    ids = torch.cat([one["input_ids"], torch.tensor([[token]])], dim=1)
    return {**one, "input_ids": ids, "mm_token_type_ids": (ids == 60).int()}


one, other = request(4, 6), request(8, 8)
with torch.no_grad():
    whole = model(**followed(one, 17), use_cache=False).logits[:, -1]
    found = {}
    for between in (False, True):
        cache = DynamicCache(config=config)
        model(**one, cache=cache, use_cache=True)
        if between:
            model(**other, cache=DynamicCache(config=config), use_cache=True)
        step = model(input_ids=torch.tensor([[17]]), cache=cache, use_cache=True).logits[:, -1]
        found[between] = float((step - whole).abs().max())
    print(f"decode step without a mask: alone {found[False]:.1e}, another request in between {found[True]:.1e}")
    assert found[False] < 1e-4
    assert found[True] > 0.1, "another request no longer makes a difference"
    cache = DynamicCache(config=config)
    model(**one, cache=cache, use_cache=True)
    mask = torch.ones(1, one["input_ids"].shape[1] + 1, dtype=torch.int64)
    try:
        model(input_ids=torch.tensor([[17]]), attention_mask=mask, cache=cache, use_cache=True)
    except RuntimeError as error:
        print("decode step with a mask: RuntimeError:", error)
    else:
        raise SystemExit("a decode step with a mask no longer raises")
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
