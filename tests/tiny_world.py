"""A folder in which the calls of the documentation run: tiny models under the names of real ones, a few shards, a page.

Transformers takes a folder of a name before it asks the Hub, so ``HuggingFaceTB/SmolLM2-135M-Instruct`` below the
working directory is a random model of six narrow layers.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, PreTrainedTokenizerFast

import dslight
from data_prep.digits import main as digits
from data_prep.digits import png
from dslight.data.shards import ShardWriter

LM = "HuggingFaceTB/SmolLM2-135M-Instruct"
CLIP = "openai/clip-vit-large-patch14-336"
MARKS = ["<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}
"""Of a timm ViT."""


QUICK: dict[str, Any] = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
"""Arguments of a Trainer."""


def write(root: Path) -> Path:
    """Fill ``root``."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(root / LM)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(root / LM)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4
    )
    CLIPVisionModel(vision).save_pretrained(root / CLIP)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (24, 40, 3), dtype=np.uint8) for _ in range(8)]
    with ShardWriter(root / "data/mine") as writer:
        for i, picture in enumerate(pictures):
            turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"Number {i}."}]
            writer.write(f"m{i}", [png(picture)], {"conversations": turns})
    with ShardWriter(root / "data/eval/textvqa") as writer:
        for i, picture in enumerate(pictures[:4]):
            asked = {"question_id": str(i), "question": "What is written?" + "?" * i, "answers": ["a"] * 10, "type": ""}
            writer.write(f"q{i}", [png(picture)], {"questions": [asked]})
    digits(["--out", str(root / "data/digits"), "--train-pages", "8", "--val-pages", "2"])
    Image.fromarray(pictures[0]).save(root / "page.png")
    with contextlib.chdir(root):
        made = parts()
        model = dslight.VLM(made["encoder"], dslight.MLPProjector, dslight.DeepStackL(crops=4), made["lm"])
        data = dslight.Data(train=["data/mine"], val={"textvqa": "data/eval/textvqa"}, global_batch_size=4)
        dslight.fit(model, data, {"projector": 1e-2}, {**QUICK, "max_steps": 4, "log_every_n_steps": 2}, "runs/mine")
    return root


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the marks of its chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*MARKS, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=MARKS[1], pad_token=MARKS[1])
    made.add_special_tokens({"additional_special_tokens": MARKS[:1]})  # type: ignore[arg-type]
    made.chat_template = CHATML  # type: ignore[assignment]
    return made


def parts() -> dict[str, Any]:
    """What the examples of docstrings call ``encoder`` and ``lm``, made anew; in the folder that is written."""
    torch.manual_seed(0)
    encoder = dslight.TimmEncoder("vit_tiny_patch16_224", model_args=SIZES)
    return {"dslight": dslight, "torch": torch, "np": np, "encoder": encoder, "lm": dslight.HFCausalLM(LM)}


def lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a ``.jsonl`` file."""
    return [json.loads(line) for line in file.read_text().splitlines()]
