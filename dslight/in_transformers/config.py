"""``config.json`` of an exported model: the recipe's section ``model``, and what transformers asks of any model."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from dslight.in_transformers.register import MODEL_TYPE, register_model


class DslightConfig(PreTrainedConfig):
    """What a model is made of.

    Attributes:
        recipe: ``{"model": ...}``, a recipe's section, in which nothing names a file.
        text_config: the decoder's configuration, in transformers' words.
        image_token_id: the id that stands at visual positions; it may lie behind the vocabulary, as no embedding of it
            is read.
    """

    model_type = MODEL_TYPE

    recipe: dict[str, Any] | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Make the decoder's configuration; from here on transformers knows the model's class, too."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

        setattr(type(self), "sub_configs", {"text_config": AutoConfig})  # noqa: B010 - a property of the class
        if not isinstance(self.text_config, PreTrainedConfig):
            said = dict(self.text_config or {})
            kind = said.get("model_type")
            self.text_config = CONFIG_MAPPING[kind](**said) if kind else PreTrainedConfig(**said)
        super().__post_init__(**kwargs)
        register_model()
