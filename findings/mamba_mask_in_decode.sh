#!/usr/bin/env bash
# transformers 5.24.0: an attention mask of ones, as long as the sequence so far, is what every attention decoder takes in a
# decode step. Mamba and FalconMamba take it too, are right in the first step behind the prefill, and wrong from the second
# on: logits of ordinary size, no warning. Mamba-2, with the same calls, is right. `generate` drops the mask and is not
# affected; a decoding loop of one's own is. Seen: the largest difference of logits per step to a pass over the whole
# sequence is about 1e-6 in step 1, above 0.5 in steps 2 to 5; 1e-6 in all steps without the mask.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

print("transformers", transformers.__version__, "torch", torch.__version__)
own = {"mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1}}
for kind in ("mamba", "falcon_mamba", "mamba2"):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, hidden_size=32, num_hidden_layers=4, vocab_size=64, **own.get(kind, {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    ids = torch.randint(3, 64, (1, 14))
    apart = {}
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        for masked in (True, False):
            cache, steps = DynamicCache(config=model.config), []
            mask = lambda n: {"attention_mask": torch.ones(1, n, dtype=torch.int64)} if masked else {}
            model(input_ids=ids[:, :9], cache=cache, use_cache=True, **mask(9))
            for t in range(9, 14):
                out = model(input_ids=ids[:, t : t + 1], cache=cache, use_cache=True, **mask(t + 1)).logits
                steps.append(float((out[:, -1] - whole[:, t]).abs().max()))
            apart[masked] = steps
            print(f"{kind:13} {'with a mask' if masked else 'without    '}", " ".join(f"{x:.1e}" for x in steps))
    assert max(apart[False]) < 1e-4 and apart[True][0] < 1e-4, kind
    if kind == "mamba2":
        assert max(apart[True]) < 1e-4
    else:
        assert min(apart[True][1:]) > 0.5, f"{kind}: no longer wrong"
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
