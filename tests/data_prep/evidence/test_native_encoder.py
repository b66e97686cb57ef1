"""The evidence's encoder as one of any size computes what it computed as one of one size."""

import pytest
import torch
from safetensors.torch import save_file

from data_prep.evidence.native_encoder import main, native_weights
from dslight.components import NaFlexEncoder, TimmEncoder

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
NATIVE = {
    "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "patch_size": 8, "num_patches": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip


def test_at_its_own_size_the_features_are_the_same(tmp_path):
    torch.manual_seed(0)
    plain = {"class_token": False, "global_pool": ""}
    one = TimmEncoder("vit_tiny_patch16_224", model_args=SMALL | plain, mean=(0.8,) * 3, std=(0.3,) * 3).eval()
    save_file(one.state_dict(), tmp_path / "one.safetensors")
    main(["--encoder", str(tmp_path / "one.safetensors"), "--out", str(tmp_path / "native.safetensors")])
    native = NaFlexEncoder(config=NATIVE, merge=2, mean=(0.8,) * 3, std=(0.3,) * 3).eval()
    native.load_weights(tmp_path / "native.safetensors")
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    pieces = image.view(1, 3, 2, 16, 2, 16).permute(2, 4, 0, 1, 3, 5).flatten(0, 2)
    with torch.no_grad():
        (expected,), (found,) = one(image), native(pieces, pieces=[(2, 2)])
    order = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)  # patch by patch within a piece
    torch.testing.assert_close(found, expected[0][order], atol=1e-5, rtol=1e-5)


def test_weights_of_another_kind_of_network_are_refused_by_name():
    with pytest.raises(KeyError, match=r"ls1"):
        native_weights({"model.blocks.0.ls1.gamma": torch.ones(4)})
