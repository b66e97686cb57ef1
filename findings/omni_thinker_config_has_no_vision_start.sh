#!/usr/bin/env bash
# transformers 5.24.0: the positions of Qwen3-Omni's thinker read `vision_start_token_id` of its configuration, which declares no
# such field (the talker's and Qwen3-VL's do). A thinker made from a configuration of one's own, every declared field given,
# raises AttributeError in any pass with an attention mask, text alone included, and so in `generate` and in training on a padded
# batch; without a mask the same pass is right. Whether files of published checkpoints carry the key as an extra was not seen.
# Seen: AttributeError in a masked pass and in `generate`; with the key handed over as an extra both run, and the masked pass
# agrees exactly with the one without a mask.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

print("transformers", transformers.__version__, "torch", torch.__version__)
ids = torch.tensor([[5, 6, 7, 8]])
mask = torch.ones_like(ids)


def thinker(**extra):
    config = Qwen3OmniMoeThinkerConfig(
        text_config=dict(hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_experts=2,
                         num_experts_per_tok=1, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         head_dim=8, vocab_size=64, max_position_embeddings=128, pad_token_id=0,
                         rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1])),
        vision_config=dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4,
                           out_hidden_size=32, num_position_embeddings=16, deepstack_visual_indexes=[0]),
        audio_config=dict(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=16, output_dim=32,
                          num_mel_bins=16),
        image_token_id=60, video_token_id=61, audio_token_id=62, audio_start_token_id=63, user_token_id=59,
        position_id_per_seconds=25, **extra)
    torch.manual_seed(0)
    return Qwen3OmniMoeThinkerForConditionalGeneration(config).eval()


def declared(config):
    return "vision_start_token_id" in config.__dataclass_fields__


for name in ("Qwen3OmniMoeThinkerConfig", "Qwen3OmniMoeTalkerConfig", "Qwen3VLConfig"):
    print(name, "declares vision_start_token_id:", declared(getattr(transformers, name)))
assert not declared(Qwen3OmniMoeThinkerConfig) and declared(transformers.Qwen3OmniMoeTalkerConfig)

model = thinker()
with torch.no_grad():
    bare = model(input_ids=ids).logits
    print("no mask: logits", tuple(bare.shape))
    for what, call in {"forward with a mask": lambda: model(input_ids=ids, attention_mask=mask),
                       "generate": lambda: model.generate(ids, attention_mask=mask, max_new_tokens=2)}.items():
        try:
            call()
        except AttributeError as error:
            print(f"{what}: AttributeError:", error)
            assert "vision_start_token_id" in str(error)
        else:
            raise SystemExit(f"{what} no longer raises")
    model = thinker(vision_start_token_id=58)
    apart = float((model(input_ids=ids, attention_mask=mask).logits - bare).abs().max())
    answer = model.generate(ids, attention_mask=mask, max_new_tokens=2, do_sample=False)
print(f"with the key as an extra: difference to the pass without a mask {apart:.1e}, generate gives {tuple(answer.shape)}")
assert apart == 0 and answer.shape == (1, 6)
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
