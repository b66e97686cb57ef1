#!/usr/bin/env bash
# transformers 5.24.0: `deepstack_visual_indexes` of Qwen3-VL's vision tower looks like a list of which block goes to which
# language model layer. It is not: features leave in the order of the blocks, whatever the list's, and the place in the list
# chooses the merger. So [2, 0] still sends block 0 to the first layer, but merged by the second merger, and an index named
# twice makes a merger that is never called. Seen with three blocks: the first feature of [2, 0] is the first of [0, 2] once
# the two mergers are exchanged (difference exactly 0), and differs by more than 0.1 with the mergers as they are.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

print("transformers", transformers.__version__, "torch", torch.__version__)


def tower(indexes):
    config = Qwen3VLVisionConfig(depth=3, hidden_size=32, intermediate_size=64, num_heads=4, patch_size=4,
                                 spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=16,
                                 num_position_embeddings=16, deepstack_visual_indexes=indexes)
    return Qwen3VLVisionModel(config).eval()


def features(model):
    with torch.no_grad():
        return model(PIXELS, grid_thw=torch.tensor([[1, 4, 4]])).deepstack_features


torch.manual_seed(0)
PIXELS = torch.randn(16, 3 * 2 * 4 * 4)
rising, falling = tower([0, 2]), tower([2, 0])
with torch.no_grad():
    for parameter in rising.parameters():
        parameter.normal_(std=0.2)
weights = rising.state_dict()
falling.load_state_dict(weights)
first = features(rising)[0]
as_is = float((features(falling)[0] - first).abs().max())
swapped = {name.replace("merger_list.0", "merger_list.x").replace("merger_list.1", "merger_list.0").replace(
    "merger_list.x", "merger_list.1"): value for name, value in weights.items()}
falling.load_state_dict(swapped)
exchanged = float((features(falling)[0] - first).abs().max())
print(f"first feature of [2, 0] against that of [0, 2]: {as_is:.2f} apart; {exchanged:.2f} with the mergers exchanged")
assert as_is > 0.1
assert exchanged == 0, "the order of the list now chooses which block comes first"
twice = tower([2, 0, 2])
called = []
for index, merger in enumerate(twice.deepstack_merger_list):
    merger.register_forward_hook(lambda module, args, out, index=index: called.append(index))
count = len(features(twice))
print(f"[2, 0, 2]: {len(twice.deepstack_merger_list)} mergers, {count} features, by the mergers {called}")
assert count == 2 and called == [1, 0]
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
