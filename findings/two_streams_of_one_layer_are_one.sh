#!/usr/bin/env bash
# transformers 5.24.0: Granite 4 Vision takes any map of vision layers to language model layers, and adds each projected stream
# at the input of its layer. Two streams that are mapped to one layer do not add up: the later one stays, the other is computed
# and dropped, without a warning. Seen: with both streams at layer 0, clearing the first projector changes no logit (difference
# exactly 0); with the first at layer 2 instead it changes them by more than 0.1, and with two at one layer the second does.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers

print("transformers", transformers.__version__, "torch", torch.__version__)


def cleared(layers, projector):
    """By how much logits change when one of the two projectors gives zeros."""
    config = transformers.Granite4VisionConfig(
        vision_config=dict(model_type="siglip_vision_model", hidden_size=64, intermediate_size=16,
                           num_attention_heads=2, num_hidden_layers=2, image_size=16, patch_size=4),
        text_config=dict(model_type="granite4_vision_text", hidden_size=32, intermediate_size=32, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=2, vocab_size=64, max_position_embeddings=128),
        image_token_index=60, image_grid_pinpoints=[[16, 32]], downsample_rate="2/4",
        vision_feature_select_strategy="full", spatial_target_layers=[],
        deepstack_layer_map=[[-2, layers[0]], [-1, layers[1]]])
    torch.manual_seed(0)
    model = transformers.Granite4VisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
        images = {"pixel_values": torch.randn(1, 3, 3, 16, 16), "image_sizes": torch.tensor([[16, 32]])}
        tokens = len(model.get_image_features(**images, return_dict=True).deepstack_features[0][1][0])
        ids = torch.tensor([[5, 6, *[60] * tokens, 7, 8]])
        before = model(input_ids=ids, **images).logits
        for parameter in model.model.layerwise_projectors[projector].out_linear.parameters():
            parameter.zero_()
        return float((model(input_ids=ids, **images).logits - before).abs().max())


apart = cleared((2, 0), 0), cleared((2, 0), 1)
print(f"streams at layers 2 and 0: clearing the first changes logits by {apart[0]:.2f}, the second by {apart[1]:.2f}")
assert min(apart) > 0.1
both = cleared((0, 0), 0), cleared((0, 0), 1)
print(f"both at layer 0: clearing the first changes logits by {both[0]:.2f}, the second by {both[1]:.2f}")
assert both[1] > 0.1
assert both[0] == 0, "two streams at one layer no longer drop the first"
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
