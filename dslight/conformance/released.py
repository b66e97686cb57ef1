"""A checkpoint of transformers put into the form that released ones have, so that engines read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import torch as torch_safetensors

from dslight.conformance.tiny import AUDIO, END, IMAGE, PATCH, START, VIDEO


def name_as_released(folder: Path) -> None:
    """Names that released checkpoints have, and engines look for, where transformers writes others by now."""
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    text, vision = settings["text_config"], settings["vision_config"]
    rope = text.get("rope_parameters")
    if rope and "mrope_section" in rope:
        text["rope_theta"] = rope.pop("rope_theta")
        text["rope_scaling"] = text.pop("rope_parameters")
        if settings["model_type"] in ("qwen3_vl", "qwen3_vl_moe"):
            vision["model_type"] = settings["model_type"]
    if "num_local_experts" in text:
        text["num_experts"] = text.pop("num_local_experts")
    file.write_text(json.dumps(settings, indent=2) + "\n")
    weights = torch_safetensors.load_file(folder / "model.safetensors")
    if vision["model_type"] == "siglip_vision_model":
        tower = "model.vision_tower."
        weights = {name.replace(tower, f"{tower}vision_model."): value for name, value in weights.items()}
    if settings["model_type"] == "qwen3_vl_moe":  # [experts, in, out]
        turned = {name: value.transpose(1, 2).contiguous() for name, value in weights.items() if ".experts." in name}
        weights |= turned
    torch_safetensors.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_processor(folder: Path, images: bool) -> None:
    """What a server needs to be asked in words and pictures: word n is the token n."""
    words = {"<|pad|>": 0} | {f"w{i}": i for i in range(1, AUDIO)}
    special = {
        "<|im_end|>": AUDIO,
        "<|image_pad|>": IMAGE,
        "<|vision_start|>": START,
        "<|vision_end|>": END,
        "<|video_pad|>": VIDEO,
    }
    added = [
        {"id": i, "content": name, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for name, i in ({"<|pad|>": 0} | special).items()
    ]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None,
        "decoder": None, "model": {"type": "WordLevel", "vocab": words | special, "unk_token": "<|pad|>"},
    }  # fmt: skip
    part = "{% if one.type == 'text' %} {{ one.text }} {% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    template = (
        "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
        f"{{% for one in message.content %}}{part}{{% endfor %}}{{% endif %}}"
        "{% if message.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    )
    size = {"shortest_edge": 64, "longest_edge": 4096}
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size, "processor_class": "Qwen3VLProcessor",
    }  # fmt: skip
    files: dict[str, Any] = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|pad|>",
            "eos_token": "<|im_end|>", "chat_template": template,
            "model_max_length": 128, "processor_class": "Qwen3VLProcessor",
        },
    }  # fmt: skip
    if images:
        files["preprocessor_config.json"] = dict(settings)
        files["chat_template.json"] = {"chat_template": template}
        del settings["image_processor_type"]
        files["video_preprocessor_config.json"] = {**settings, "video_processor_type": "Qwen3VLVideoProcessor"}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
