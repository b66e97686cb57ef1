"""What stands beside the weights of a model that is a LLaVA to transformers: how it answers, and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dslight.checkpoints.write import write_json
from dslight.components import HFCausalLM, HFVisionEncoder
from dslight.data.images import SingleView
from dslight.data.sample import IMAGE_TOKEN
from dslight.processor import Processor

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers, which preprocessor_config.json holds."""


def write_generation(asked: Processor, lm: HFCausalLM, image_token: int, folder: Path) -> None:
    """``generation_config.json``: greedy, and never the placeholder."""
    from transformers import GenerationConfig

    settings = GenerationConfig.from_model_config(lm.model.config)
    settings.eos_token_id = asked.stop_ids
    settings.suppress_tokens = [image_token]
    settings.do_sample = False
    if settings.pad_token_id is None:
        settings.pad_token_id = asked.stop_ids[-1]
    settings.save_pretrained(folder)


def write_processor(asked: Processor, encoder: HFVisionEncoder, tokenizer: Any, config: Any, folder: Path) -> None:
    """Transformers' processor where it can make our views, else the tokenizer and the facts about pixels."""
    from transformers import LlavaProcessor

    images = image_processor(asked.rows.views, encoder)
    write_json(images.to_dict() if images is not None else _pixels(encoder), folder / "preprocessor_config.json")
    if images is None:
        tokenizer.save_pretrained(folder)
        return
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=encoder.prefix_tokens,
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template if asked.to_recipe()["template"] == "tokenizer" else None,
    )
    processor.save_pretrained(folder)


def image_processor(views: Any, encoder: HFVisionEncoder) -> Any:
    """The image processor of transformers that makes our views; ``None``: there is none."""
    from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

    size = {"height": encoder.image_size[0], "width": encoder.image_size[1]}
    options: dict[str, Any] = {"size": size, "crop_size": size, "do_center_crop": False}
    options |= {"resample": FILTERS[views.resample], "image_mean": list(encoder.mean), "image_std": list(encoder.std)}
    if not isinstance(views, SingleView) or views.fit == "squash":  # others squash their base view too
        return CLIPImageProcessorPil(**options)
    theirs = tuple(int(value * 255) for value in encoder.mean)
    return LlavaImageProcessorPil(**options, do_pad=True) if tuple(views.pad_color) == theirs else None


def _pixels(encoder: Any) -> dict[str, Any]:
    return {
        "size": {"height": encoder.image_size[0], "width": encoder.image_size[1]},
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
        "rescale_factor": 1 / 255,
    }
