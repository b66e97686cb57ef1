#!/usr/bin/env bash
# transformers 5.24.0, Qwen2-VL: text behind a video gets positions from max(height, width) of its grid on, whatever its length in
# time: behind a clip of more temporal patches than it is wide, text stands at positions that frames before it have, too. The
# `rope_deltas` that get_rope_index returns beside them count from the largest position of all, so whoever decodes with them
# continues elsewhere than `generate`, which goes on behind the text. Clips no longer than wide are as one would think. Seen for a grid
# of 12 x 4 x 4 patches (2 x 2 merged): frames up to 13, text from 4 to 7, the next token of generate at 8, by rope_deltas at 14.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

print("transformers", transformers.__version__, "torch", torch.__version__)
transformers.logging.set_verbosity_error()
VIDEO, BEGIN, END, SIDE = 91, 92, 93, 4
text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
torch.manual_seed(0)
model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=90,
                                                      video_token_id=VIDEO, vision_start_token_id=BEGIN, vision_end_token_id=END)).eval()


decoded = []
model.model.language_model.register_forward_pre_hook(
    lambda module, args, options: decoded.append(int(options["position_ids"][-1, 0, -1])), with_kwargs=True)


def look(patches):
    """Position of the last frame, of the first text behind it, and of the next token: by generate, and by rope_deltas."""
    ids = torch.tensor([[5, BEGIN, *[VIDEO] * (patches * SIDE), END, 6, 7, 8]])
    given = {"video_grid_thw": torch.tensor([[patches, 4, 4]]), "attention_mask": torch.ones_like(ids),
             "mm_token_type_ids": (ids == VIDEO).int() * 2}
    positions, delta = model.model.get_rope_index(ids, **given)
    decoded.clear()
    model.generate(ids, **given, pixel_values_videos=torch.randn(patches * 16, 3 * 2 * 4 * 4), max_new_tokens=2, min_new_tokens=2,
                   do_sample=False)
    behind = 2 + patches * SIDE
    return int(positions[:, 0, behind - 1].max()), int(positions[0, 0, behind]), decoded[1], ids.shape[1] + int(delta)


found = {patches: look(patches) for patches in (2, 12)}
for patches, (frame, first, generated, by_delta) in found.items():
    print(f"{patches} temporal patches: last frame at {frame}, text behind from {first}; "
          f"next token: by generate at {generated}, by rope_deltas at {by_delta}")
assert found[2] == (3, 4, 8, 8), "short clips have other positions now"
assert found[12] == (13, 4, 8, 14), "long clips have other positions now"
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
