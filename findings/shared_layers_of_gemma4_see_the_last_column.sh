#!/usr/bin/env bash
# transformers 5.24.0: the last layers of a Gemma 4 decoder reuse the keys and values of earlier ones (num_kv_shared_layers).
# When only the last logits are asked for, as generate does while it reads the prompt, those layers are called with the last
# column alone; the others see the whole prompt. So a hook there that adds to a column, probes it or records it acts on
# [B, 1, C] where a plain forward pass gives it [B, T, C], and what it adds to an earlier column reaches no token. Seen: 6
# layers, 3 shared, a prompt of 10: forward calls all six with 10 columns; logits_to_keep=1 and generate call layers 3 to 5 with 1.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers

print("transformers", transformers.__version__, "torch", torch.__version__)


def columns(shared):
    """How many columns each layer is called with: whole pass, last logits alone, first pass of generate."""
    config = transformers.AutoConfig.for_model(
        "gemma4_text", hidden_size=32, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        global_head_dim=8, intermediate_size=64, vocab_size=64, vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8, num_kv_shared_layers=shared, sliding_window=16, max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention"] * 3)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    seen = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    ids, found = torch.randint(3, 60, (1, 10)), []
    with torch.no_grad():
        for call in (lambda: model(ids), lambda: model(ids, logits_to_keep=1),
                     lambda: model.generate(ids, max_new_tokens=1, do_sample=False)):
            seen.clear()
            call()
            found.append(seen[:6])
    return found


for shared in (0, 3):
    whole, last, prompt = columns(shared)
    print(f"{shared} shared layers: forward {whole}, logits_to_keep=1 {last}, the prompt in generate {prompt}")
    assert whole == [10] * 6
    expected = [10] * (6 - shared) + [1] * shared
    assert last == prompt == expected, "layers that share keys and values are called otherwise now"
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
