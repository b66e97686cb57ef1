"""What ``processor_config.json`` keeps of a processor, and the processor made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dslight.data.datamodule import ShardData
from dslight.data.images import ViewPolicy
from dslight.data.rows import RowMaker
from dslight.data.sample import IMAGE_TOKEN
from dslight.layout import SlotLayout
from dslight.processor import Processor
from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import Section
from dslight.recipe.strangers import refuse_strangers
from dslight.written import unwritten

WHERE = "processor_config.json"


def image_token_of(tokenizer: Any, vocabulary: int) -> int:
    """The id that stands at visual positions: that of ``<image>`` where the tokenizer has one, else one that no token
    has.
    """
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    return max(vocabulary, len(tokenizer)) if found is None else int(found)


def settings_of(processor: Processor, image_token_id: int) -> dict[str, Any]:
    """A processor as plain values.

    Raises:
        RecipeError: for views or a template that no file can name.
    """
    made = processor.to_recipe()
    for key, what in unwritten(made).items():
        raise RecipeError(f"data.{key}: {what} was made in Python, and no file can name it")
    slots = asdict(processor.slots)
    return {
        "data": made,
        "image_size": list(processor.rows.image_size),
        "slots": {**slots, "tokens": list(slots["tokens"])},
        "image_token_id": image_token_id,
    }


def processor_of(settings: Mapping[str, Any], tokenizer: Any) -> Processor:
    """The processor again.

    Raises:
        RecipeError: naming the key that is wrong, or code that nobody imported.
    """
    said = dict(settings["data"])
    refuse_strangers({"data": said}, WHERE)
    data: ShardData = Section("data", ShardData, said).build()
    views: Any = data.views
    if not isinstance(views, ViewPolicy):
        raise RecipeError(f"{WHERE}: settings.data.views is missing")
    if data.template is None:
        raise RecipeError(f"{WHERE}: settings.data.template is missing")
    height, width = settings["image_size"]
    rows = RowMaker(
        data.template_of(data.template, data.thinking), tokenizer, views, (height, width), said["pixels"],
        said["exif"], said["alpha"],
    )  # fmt: skip
    slots = settings["slots"]
    layout = SlotLayout(**{**slots, "tokens": (slots["tokens"][0], slots["tokens"][1])})
    return Processor(rows, layout, int(said["max_length"]), frames=data.video)
