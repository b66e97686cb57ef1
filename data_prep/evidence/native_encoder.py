"""The evidence's vision encoder as one of any image size: the same weights under SigLIP 2's names.

Run: ``python -m data_prep.evidence.native_encoder --encoder runs/evidence/encoder/weights/vision_encoder.safetensors
--out runs/evidence/encoder/weights/native.safetensors``. A plain ViT of timm's computes what SigLIP 2's tower computes
(with ``hidden_act: gelu``); at its own size the two give the same features, at others the table of positions is
resized.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from data_prep.processes import program

_LAYER = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def native_weights(timm: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A :class:`dslight.TimmEncoder`'s weights for a :class:`dslight.NaFlexEncoder` of the same sizes.

    Raises:
        KeyError: for weights that no plain ViT has.
    """
    made: dict[str, Tensor] = {}
    for name, tensor in timm.items():
        head, _, kind = name.rpartition(".")
        if name == "model.pos_embed":
            made["model.embeddings.position_embedding.weight"] = tensor[0]
        elif head == "model.patch_embed.proj":  # pixels of a patch: row, column, channel
            value = tensor.permute(0, 2, 3, 1).flatten(1) if kind == "weight" else tensor
            made[f"model.embeddings.patch_embedding.{kind}"] = value
        elif head == "model.norm":
            made[f"model.post_layernorm.{kind}"] = tensor
        else:
            _, _, number, part = head.split(".", 3)
            layer = f"model.encoder.layers.{number}"
            if part == "attn.qkv":
                for piece, one in zip("qkv", tensor.chunk(3), strict=True):
                    made[f"{layer}.self_attn.{piece}_proj.{kind}"] = one
            else:
                made[f"{layer}.{_LAYER[part]}.{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in made.items()}


def main(argv: list[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    save_file(native_weights(load_file(args.encoder)), args.out)
    print(f"{args.out}: written")


if __name__ == "__main__":
    program(main)
