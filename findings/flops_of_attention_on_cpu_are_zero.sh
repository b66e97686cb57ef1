#!/usr/bin/env bash
# torch 2.13.0: torch.utils.flop_counter.FlopCounterMode counts no FLOPs for scaled_dot_product_attention on a CPU, where it
# runs as _scaled_dot_product_flash_attention_for_cpu, an operator that the counter has no formula for and passes over in
# silence. On the meta device the same call runs as products that are counted, so a model's FLOPs depend on where they are
# counted, and at long context most of them may be missing.
# Seen: one head of 64, 256 positions: 0 on the CPU, 4 T^2 D = 16,777,216 by hand.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
from torch.utils.flop_counter import FlopCounterMode


def flops(device):
    q = torch.zeros(1, 1, 256, 64, device=device)
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    return counter.get_total_flops()


by_hand = 4 * 256 * 256 * 64
found = {device: flops(device) for device in ("cpu", "meta")}
print("torch", torch.__version__, found, "by hand", by_hand)
assert found == {"cpu": 0, "meta": by_hand}, found
PY
"$folder/venv/bin/python" -W ignore "$folder/run.py"
