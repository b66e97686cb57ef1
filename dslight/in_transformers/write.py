"""What stands beside the weights of an exported model that is of our own class: its files for transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from dslight.components import HFCausalLM
from dslight.in_transformers.config import DslightConfig
from dslight.in_transformers.processor import DslightProcessor
from dslight.in_transformers.register import ARCHITECTURE
from dslight.in_transformers.settings import image_token_of, settings_of
from dslight.processor import Processor
from dslight.vlm import VLM


def write_own(
    model: VLM, processor: Processor, recipe: Mapping[str, Any], folder: Path, dtype: torch.dtype | None = None
) -> None:
    """``config.json``, ``generation_config.json``, tokenizer and processor.

    Args:
        model: whose tokenizer is known.
        processor: what it is asked through.
        recipe: its section ``model``, which names no file of weights.
        folder: where to.
        dtype: of the written weights; ``None``: the model's. Of parts that differ, the widest: transformers reads a
            model in one.

    Raises:
        RecipeError: for views or a template that no file can name.
    """
    lm: Any = model.language_model
    image = image_token_of(model.tokenizer, lm.vocabulary)
    settings = settings_of(processor, image)
    section = deepcopy(dict(recipe))
    (section["language_model"].get("init_args") or {}).pop("tokenizer", None)
    kinds = {tensor.dtype for tensor in model.parameters()}
    config = DslightConfig(
        recipe={"model": json.loads(json.dumps(section))},
        text_config=_text_config(lm),
        image_token_id=image,
        architectures=[ARCHITECTURE],
        dtype=dtype or reduce(torch.promote_types, kinds),
    )
    config.save_pretrained(folder)
    stops = processor.stop_ids
    pad = next(i for i in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id, stops[-1]) if i is not None)
    made = GenerationConfig.from_model_config(lm.model.config) if isinstance(lm, HFCausalLM) else GenerationConfig()
    made.update(eos_token_id=stops, pad_token_id=pad, do_sample=False)
    made.save_pretrained(folder)
    DslightProcessor(model.tokenizer, settings, chat_template=model.tokenizer.chat_template).save_pretrained(folder)


def _text_config(lm: Any) -> dict[str, Any]:
    if isinstance(lm, HFCausalLM):
        return {key: value for key, value in lm.model.config.to_dict().items() if key != "_name_or_path"}
    return {"vocab_size": lm.vocabulary, "hidden_size": lm.width, "num_hidden_layers": lm.depth}
