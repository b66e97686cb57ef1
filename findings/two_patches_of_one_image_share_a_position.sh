#!/usr/bin/env bash
# transformers 5.24.0: Idefics3's vision tower (also SmolVLM's; Idefics2's in the same way) finds the position of a patch by
# comparing i * (1/n) with multiples of 1/n in float32. Where a product is rounded below its boundary, the patch gets the
# position before, which is its neighbour's: of a full square image with 25 patches a side 361 of 625 positions are used, and an
# image with rows 4 and 5 of patches exchanged is, to the tower, the same set. With 26 a side (364/14) and 32 (512/16) all are
# used, so the common tile sizes do not show it. Idefics2's tower with 70 a side (980/14) is right when full, but an image of 25
# patches a side lies there at 13 instead of 14, 27 instead of 28 and so on. Seen: 361/625 and means that agree within 1e-6 at
# 25; 676/676 and means that differ by more than 1e-4 at 26.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 numpy==2.4.6
cat > "$folder/run.py" <<'PY'
import torch
import transformers
from transformers import Idefics2VisionConfig, Idefics3VisionConfig, SmolVLMVisionConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

print("transformers", transformers.__version__, "torch", torch.__version__)


def tower(kind, config, side):
    torch.manual_seed(0)
    model = kind(config(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=2,
                        image_size=2 * side)).eval()
    model.seen = []
    model.embeddings.position_embedding.register_forward_hook(lambda module, given, out: model.seen.append(given[0]))
    with torch.no_grad():
        model.embeddings.position_embedding.weight.normal_()
    return model


def positions(model, side):
    """The index of a position that the tower gives each patch of a square image, (side, side)."""
    with torch.no_grad():
        model(pixel_values=torch.randn(1, 3, 2 * side, 2 * side),
              patch_attention_mask=torch.ones(1, side, side, dtype=torch.bool))
    return model.seen[-1].reshape(side, side)


def told_apart(model, side):
    """By how much the mean over patches changes when rows 4 and 5 of patches are exchanged."""
    pixels = torch.randn(1, 3, 2 * side, 2 * side)
    other = pixels.clone()
    other[..., 8:10, :], other[..., 10:12, :] = pixels[..., 10:12, :], pixels[..., 8:10, :]
    mask = torch.ones(1, side, side, dtype=torch.bool)
    with torch.no_grad():
        one, two = (model(pixel_values=x, patch_attention_mask=mask).last_hidden_state.mean(1) for x in (pixels, other))
    return float((one - two).abs().max())


for kind, config in ((Idefics3VisionTransformer, Idefics3VisionConfig), (SmolVLMVisionTransformer, SmolVLMVisionConfig)):
    used = {}
    for side in (19, 25, 26, 29, 31, 32, 38):
        used[side] = len(positions(tower(kind, config, side), side).unique()), side * side
    print(kind.__name__, "positions used, by patches a side:", {side: f"{a}/{b}" for side, (a, b) in used.items()})
    assert used[26] == (676, 676) and used[32] == (1024, 1024)
    assert all(used[side][0] < used[side][1] for side in (19, 25, 29, 31, 38)), "patches no longer share positions"
    apart = {side: told_apart(tower(kind, config, side), side) for side in (25, 26)}
    print(kind.__name__, "rows 4 and 5 exchanged, change of the mean:", {k: f"{v:.1e}" for k, v in apart.items()})
    assert apart[25] < 1e-6 and apart[26] > 1e-4

model = tower(Idefics2VisionTransformer, Idefics2VisionConfig, 70)
assert len(positions(model, 70).unique()) == 4900
rows = (positions(model, 25)[:, 0] // 70).tolist()
exact = [i * 70 // 25 for i in range(25)]
wrong = {i: (rows[i], exact[i]) for i in range(25) if rows[i] != exact[i]}
print("Idefics2, 25 of 70 a side, row: (given, exact)", wrong)
assert wrong and all(given == right - 1 for given, right in wrong.values()), "no row lies before its place any more"
PY
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore "$folder/run.py"
