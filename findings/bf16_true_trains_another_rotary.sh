#!/usr/bin/env bash
# lightning 2.6.6 with transformers 5.24.0: `precision="bf16-true"` casts every buffer of the model, so the rotary frequencies of
# a decoder are rounded to bfloat16. `from_pretrained(dtype=torch.bfloat16)` keeps them in float32. What was trained under
# Lightning is therefore not what transformers computes from the saved weights: the angles drift with the position. Seen
# (LLaMA shape, head width 128, the same bfloat16 weights): frequencies differ by up to 0.37 %, the angle at position 2,047 by
# 2.5 radians, and logits of Lightning's model leave those of transformers' further the later the position.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 lightning==2.6.6 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import logging
import sys

import lightning
import torch
import transformers

print("lightning", lightning.__version__, "transformers", transformers.__version__, "torch", torch.__version__)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
FOLDER, LENGTH = sys.argv[1], 2048


class Wrapped(lightning.LightningModule):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def predict_step(self, batch, index):
        return self.decoder(batch).logits.float()


torch.manual_seed(0)
config = transformers.LlamaConfig(hidden_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                                  intermediate_size=256, vocab_size=64, max_position_embeddings=LENGTH)
decoder = transformers.LlamaForCausalLM(config).eval()
with torch.no_grad():
    for parameter in decoder.parameters():
        if parameter.ndim == 2:
            parameter.normal_(std=0.1)
decoder.to(torch.bfloat16).save_pretrained(FOLDER)
ids = torch.randint(0, 64, (1, LENGTH))

theirs = transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()
ours = Wrapped(transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16).eval())
trainer = lightning.Trainer(precision="bf16-true", accelerator="cpu", logger=False, enable_checkpointing=False,
                            enable_progress_bar=False, enable_model_summary=False)
(lightnings,) = trainer.predict(ours, torch.utils.data.DataLoader(ids, batch_size=1))
exact, rounded = theirs.model.rotary_emb.inv_freq, ours.decoder.model.rotary_emb.inv_freq
print("frequencies: transformers", exact.dtype, "Lightning", rounded.dtype)
assert exact.dtype == torch.float32
assert rounded.dtype == torch.bfloat16, "bf16-true leaves the rotary frequencies alone now"
share = float(((rounded.float() - exact) / exact).abs().max())
angle = float(((rounded.float() - exact).abs() * (LENGTH - 1)).max())
print(f"they differ by up to {share:.2%}; the angle at position {LENGTH - 1:,} by up to {angle:.1f} radians")
assert 0.002 < share < 0.004 and 2 < angle < 3
with torch.no_grad():
    logits = theirs(ids).logits.float()
    full = transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()(ids).logits
for name, found in (("transformers in bfloat16", logits), ("Lightning in bf16-true", lightnings)):
    off = (found - full).abs().mean((0, 2))
    print(f"{name}: mean distance from float32 {off[:256].mean():.4f} in the first 256 positions, {off[-256:].mean():.4f} in the last")
late = [float((found - full).abs()[:, -256:].mean()) for found in (logits, lightnings)]
assert late[1] > 1.3 * late[0], "the drift no longer shows in the logits"
PY
mkdir "$folder/weights"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py" "$folder/weights"
