#!/usr/bin/env bash
# transformers 5.24.0 renamed the argument that hands on a KV cache from past_key_values to cache. The old name still works,
# but it is translated *inside* forward: a forward pre-hook of the module that was called sees the old name, one of the
# decoder inside it and of every layer sees the new name, and under generate() all of them see the new one. A hook that
# looks for past_key_values finds nothing, takes a decode step for the beginning of the sequence, and nothing warns. (With
# 5.23.0 all of them see past_key_values.) Seen: the table that this prints, the deprecation named in a FutureWarning.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/run.py" <<'PY'
import sys

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=None, pad_token_id=0)).eval()
seen = {}


def watch(name, module):
    def hook(module, args, kwargs):
        seen.setdefault(name, set()).update(k for k in ("cache", "past_key_values") if kwargs.get(k) is not None)

    module.register_forward_pre_hook(hook, with_kwargs=True)


for name, module in (("model", model), ("decoder", model.model), ("layer", model.model.layers[0])):
    watch(name, module)
ids = torch.randint(3, 64, (1, 6))
model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
generated, seen = {k: sorted(v) for k, v in seen.items()}, {}
model(input_ids=ids, past_key_values=DynamicCache(config=model.config))
called = {k: sorted(v) for k, v in seen.items()}
print("transformers", transformers.__version__)
print("  generate():                ", generated)
print("  called with the old name:  ", called)
new = transformers.__version__ == "5.24.0"
inside = ["cache"] if new else ["past_key_values"]
assert generated == {"model": inside, "decoder": inside, "layer": inside}, generated
assert called == {"model": ["past_key_values"], "decoder": inside, "layer": inside}, called
PY
for version in 5.23.0 5.24.0; do
  "$folder/venv/bin/pip" install --quiet torch==2.13.0 "transformers==$version" numpy==2.4.6
  "$folder/venv/bin/python" -W ignore "$folder/run.py"
done
