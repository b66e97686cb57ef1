"""What it takes to begin from a released model: how its configuration reads as a recipe, and what its tensors are
called here.

A :class:`Family` is a table. Names on the left are transformers' names *in memory*, which are the same whatever a file
calls them: transformers' own table of old names and joined experts is applied before
(:class:`~dslight.checkpoints.converted.Converted`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dslight.components.transformers_config import unread

Section = dict[str, Any]
"""Of a recipe."""

Names = tuple[tuple[str, str], ...]

HEAD = (r"lm_head\.", "language_model.model.lm_head.")
TEXT = (r"model\.language_model\.", "language_model.model.model.")
"""A decoder that transformers has as a causal language model, too."""
TEXT_OF_ITS_OWN = (r"model\.language_model\.", "language_model.model.model.language_model.")
"""One that it has inside of the multimodal model alone."""
TOWER = (r"model\.vision_tower\.(?:vision_model\.)?", "vision_encoder.model.")


@dataclass(frozen=True)
class Family:
    """A kind of released model.

    Attributes:
        title: what people call it.
        model: its configuration as the section ``model`` of a recipe, classes named in short.
        names: (what a name in transformers' memory begins with, what stands there in ours); the first that fits counts.
        views: its configuration and its image processor's as ``data.views``; ``None``: what the stacking asks for.
        video: the same of its video processor's as ``data.video``.
        levels: names that depend on the configuration: of the nets of levels. They count before the others.
        left_out: (pattern of a name in transformers' memory, why the recipe has no place for it).
        changed: of a tensor (our name, the tensor, configuration), what is written instead.
        inside: of a release of several models, which one it is: the attribute of its configuration, and what the names
            of its tensors begin with in the file.
        around: what its processor, and not its chat template, puts before and behind the tokens of an image; ``{name}``
            is the token whose id its configuration calls so, ``{bos}`` the tokenizer's beginning.
        written: what its configuration calls the id of the token that its chat template writes for an image.
        template: how a question is written where no chat template says so; and whether the tokenizer puts its own
            beginning first.
        tiles: its configuration and its image processor's as what differs where that cuts images into tiles:
            ``stacking``, ``views``, and ``tile_marks`` and ``around`` for texts between them; ``None``: it does not.
        turned: our names of tensors that the file holds with rows and columns exchanged.
        remarks: sentences about what is not as in the release, or easily taken for something else.
    """

    title: str
    model: Callable[[Any], Section]
    names: Names
    views: Callable[[Any, Section], Section | None] = lambda config, pixels: None
    video: Callable[[Any, Section], Section | None] = lambda config, pixels: None
    levels: Callable[[Any], Names] = lambda config: ()
    left_out: Names = ()
    changed: Callable[[str, Tensor, Any], Tensor] = lambda name, tensor, config: tensor
    inside: tuple[str, str] | None = None
    around: tuple[str, str] = ("", "")
    written: str = "image_token_id"
    template: Section | None = None
    tiles: Callable[[Any, Section], Section | None] = lambda config, pixels: None
    turned: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def ours(self, name: str, config: Any) -> str | None:
        """Our name of a tensor; ``None``: the recipe has no place for it."""
        for pattern, replacement in (*self.levels(config), *self.names):
            if match := re.match(pattern, name):
                return match.expand(replacement) + name[match.end() :]
        return None

    def reason(self, name: str) -> str | None:
        """Why there is no place for a tensor, where that is known."""
        return next((why for pattern, why in self.left_out if re.match(pattern, name)), None)


_NOT_SAID = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache")


def written(config: Any, **changes: Any) -> Section:
    """A configuration of transformers as a recipe has it: its type, and what differs from its defaults; without keys
    that no configuration of its type has, which a file may hold and nothing reads.
    """
    fields = {"model_type": config.model_type, **config.to_diff_dict(), **changes}
    left = {*_NOT_SAID, *unread(fields["model_type"], fields)} - {"model_type"}
    return json.loads(json.dumps({key: value for key, value in fields.items() if key not in left}, default=str))


def dtype_of(config: Any) -> str:
    """Of the weights."""
    kind = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or "float32"
    return str(kind).removeprefix("torch.")


def decoder(config: Any, tied: bool, **changes: Any) -> Section:
    """The language model.

    Args:
        config: of the whole model.
        tied: whether the head is the embedding.
        changes: fields that the recipe says otherwise.
    """
    text = written(config.get_text_config(), tie_word_embeddings=tied, **changes)
    return {"HFCausalLM": {"config": text, "dtype": dtype_of(config)}}


def resample(pixels: Section) -> Section:
    """The filter of a checkpoint's image processor, as views say it."""
    names = dict(enumerate(("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")))
    return {"resample": names[pixels["resample"]]} if pixels.get("resample") in names else {}


def tower(config: Any, **changes: Any) -> Section:
    """A vision encoder of one size."""
    return {"HFVisionEncoder": {"config": written(config.vision_config, **changes), "dtype": dtype_of(config)}}


def is_tied(config: Any) -> bool:
    """Whether the head is the embedding, which either configuration may say."""
    text = config.get_text_config()
    said = [one.to_dict().get("tie_word_embeddings") for one in (config, text)]
    return bool(said[0] if said[0] is not None else said[1])


def grids(config: Any) -> list[list[int]]:
    """LLaVA-NeXT's ``image_grid_pinpoints``, in views."""
    side = config.vision_config.image_size
    return [[height // side, width // side] for height, width in config.image_grid_pinpoints]


def needs(config: Any, expected: Mapping[str, Any], family: str) -> None:
    """Refuse a configuration whose fields say what no recipe says.

    Raises:
        ValueError: naming the field.
    """
    for key, value in expected.items():
        if (found := getattr(config, key, value)) != value:
            raise ValueError(f"{family}: {key}: {found!r}; only {value!r} has a recipe here")
