"""The way back of ``dslight import``: a model in the form of the release whose shape it has, for transformers to open.

Nothing is known of shapes but what the import knows: the configuration that the model would have is read as a recipe
once more, and where that recipe makes the same parts, the import's table of names is read from right to left. So a
model whose stack was changed goes back too, wherever the family can say it (no stacks, other layers of the tower), and
where it cannot, that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dslight.checkpoints.families import family_of
from dslight.checkpoints.share import identity
from dslight.checkpoints.write import write_tensors
from dslight.components import DeepStack, HFCausalLM, WindowQFormerProjector
from dslight.components.schedulers.stack import tap_of
from dslight.data.sample import IMAGE_TOKEN
from dslight.recipe.build import check
from dslight.recipe.compose import Layer
from dslight.recipe.errors import RecipeError
from dslight.run.deletion import begin_folder, end_folder, give_up_folder
from dslight.run.export import checked
from dslight.run.python import load
from dslight.train.lora import merged
from dslight.vlm import VLM

KINDS = {
    "qwen2_vl_text": "qwen2_vl",
    "qwen2_5_vl_text": "qwen2_5_vl",
    "qwen3_vl_text": "qwen3_vl",
    "qwen3_vl_moe_text": "qwen3_vl_moe",
    "cohere_compass_text": "cohere_compass",
}
"""The decoder's type -> the release's."""

TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
"""Keys of the configuration -> tokens."""


def released_form(model: VLM, tokens: Mapping[str, int]) -> tuple[Any, dict[str, Tensor]]:
    """The configuration of the release that ``model`` has the shape of, and its tensors under the release's names.

    Args:
        model: with its weights.
        tokens: ids of the tokens that :data:`TOKENS` names.

    Raises:
        ValueError: no release has its shape, and which part differs.
    """
    from transformers import AutoModelForImageTextToText

    config = _configuration(model, tokens)
    parts: dict[str, Any] = model.parts()
    family = family_of(config.model_type)
    _same(model, family.model(config))
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(deepcopy(config), trust_remote_code=False)
    theirs = whole.state_dict()
    own = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in merged(module).items()}
    if family.ours("model.visual.merger.norm.weight", config) == "projector.net.norm.weight":  # a level of its own
        own = {name.replace("projector.nets.0.", "projector.net."): tensor for name, tensor in own.items()}
    state: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name in theirs:
        ours = family.ours(name, config)
        if ours not in own or own[ours].shape != theirs[name].shape:
            raise ValueError(f"{family.title} has a tensor {name} {tuple(theirs[name].shape)}, and this model has not")
        if (key := (*identity(own[ours]), *own[ours].shape)) not in seen:  # a head may be the embedding
            state[name] = own[ours]
        seen.add(key)
    if lost := [name for name, one in own.items() if (*identity(one), *one.shape) not in seen and one.numel()]:
        raise ValueError(f"{family.title} has no place for {lost[0]}")
    config.architectures = [type(whole).__name__]
    config.dtype = parts["language_model"].model.dtype
    return config, state


def export_release(
    source: Path, out: Path, recipe: Path | None = None, dtype: str | None = None, shard_size: str = "5GB"
) -> str:
    """Write the model of a run, an export or a checkpoint as a folder that transformers opens as the release, with the
    same logits.

    Args:
        source: as :func:`dslight.load` takes it.
        out: the new folder.
        recipe: of a checkpoint that brings none.
        dtype: of the written weights, e.g. ``bfloat16``; default: the model's.
        shard_size: of a weights file at most.

    Returns:
        The class of transformers that opens it.

    Raises:
        RecipeError: no release that is known has the model's shape, or its tokenizer lacks the token of an image.
    """
    wanted = checked(dtype, shard_size)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise RecipeError(f"OUT: {out} exists and is not empty")
    model = load(source, recipe=recipe, device="cpu")
    partial = begin_folder(out)
    try:
        kind = write_back(model, partial, shard_size=shard_size, dtype=wanted)
        end_folder(partial, out)
    except ValueError as error:
        give_up_folder(partial)
        raise RecipeError(f"--release: {error}") from error
    except BaseException:
        give_up_folder(partial)
        raise
    return kind


def write_back(
    model: VLM,
    folder: Path,
    tokens: Mapping[str, int] | None = None,
    shard_size: str = "5GB",
    dtype: torch.dtype | None = None,
) -> str:
    """Write configuration, weights and tokenizer; returns the class of transformers that opens them.

    Args:
        model: with its weights.
        folder: which is there.
        tokens: see :func:`released_form`; default: those of the tokenizer.
        shard_size: of a weights file at most.
        dtype: of the written weights; default: the model's.

    Raises:
        ValueError: as :func:`released_form`; the tokenizer lacks the token of an image.
    """
    if tokens is None:
        known = model.tokenizer.get_vocab()
        tokens = {key: known[token] for key, token in TOKENS.items() if token in known}
        if "image_token_id" not in tokens and IMAGE_TOKEN in known:
            tokens["image_token_id"] = known[IMAGE_TOKEN]
        if "image_token_id" not in tokens:
            image = f"{TOKENS['image_token_id']} nor {IMAGE_TOKEN}"
            raise ValueError(f"tokenizer: has neither {image}, which stand for an image")
    config, state = released_form(model, tokens)
    config.dtype = dtype or config.dtype
    config.save_pretrained(folder)
    write_tensors(state, folder, shard_size, dtype)
    if getattr(model.language_model, "has_tokenizer", False):
        model.tokenizer.save_pretrained(folder)
    return config.architectures[0]


def _configuration(model: VLM, tokens: Mapping[str, int]) -> Any:
    """The configuration of a release as these parts would have it, whether or not they are all of its kind.

    Raises:
        ValueError: none is known with such an encoder and decoder.
    """
    lm, encoder = model.language_model, model.vision_encoder
    text = lm.model.config.get_text_config() if isinstance(lm, HFCausalLM) else None
    if text is not None and encoder.native and text.model_type in KINDS:
        return _native(model, text, tokens)
    if text is not None and text.model_type == "granite" and isinstance(model.projector, WindowQFormerProjector):
        return _granite(model, text, tokens)
    named = getattr(text, "model_type", type(lm).__name__)
    raise ValueError(
        f"no release is known here with a {type(encoder).__name__}, a {type(model.projector).__name__} and a {named}; "
        f"known: {', '.join([*KINDS.values(), 'granite4_vision'])}"
    )


def _native(model: VLM, text: Any, tokens: Mapping[str, int]) -> Any:
    from transformers import AutoConfig

    encoder: Any = model.vision_encoder
    kind, width = KINDS[text.model_type], model.language_model.width
    vision = {**encoder.model.config.to_dict(), "out_hidden_size": width}
    if "deepstack_visual_indexes" in vision:
        stacks = getattr(model.stacking, "stacks", [])
        vision["deepstack_visual_indexes"] = [encoder.resolve_tap(tap_of(stack)) - 1 for stack in stacks]
    if kind == "qwen2_vl":
        vision["hidden_size"] = width
    tied = bool(getattr(text, "tie_word_embeddings", False))
    made = {"vision_config": vision, "text_config": text.to_dict(), "tie_word_embeddings": tied, **tokens}
    return AutoConfig.for_model(kind, **made)


def _granite(model: VLM, text: Any, tokens: Mapping[str, int]) -> Any:
    from transformers import AutoConfig

    encoder, projector, stacking = (cast(Any, part) for part in (model.vision_encoder, model.projector, model.stacking))
    side, stacks = encoder.image_size[0], getattr(stacking, "stacks", [])
    pairs = [(tap_of(one), site) for one in stacks for site in one.at]
    mapped = [pair for pair, source in zip(pairs, projector.sources, strict=False) if source == "area"]
    corners = [pair for pair, source in zip(pairs, projector.sources, strict=False) if source != "area"]
    grids = [[rows * side, columns * side] for rows, columns in model.processor.rows.views.grids()]
    width = encoder.width
    former = {
        "model_type": "blip_2_qformer", "num_hidden_layers": projector.depth, "use_qformer_text_input": False,
        "hidden_size": width, "encoder_hidden_size": width, "num_attention_heads": projector.heads,
    }  # fmt: skip
    return AutoConfig.for_model(
        "granite4_vision",
        vision_config=encoder.model.config.to_dict(),
        text_config={**text.to_dict(), "model_type": "granite4_vision_text"},
        qformer_config={**former, "intermediate_size": projector.hidden, "cross_attention_frequency": 1},
        tie_word_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        vision_feature_select_strategy="default" if encoder.prefix_tokens else "full",
        image_grid_pinpoints=grids,
        downsample_rate=f"{projector.queries}/{projector.window}",
        projector_dropout=projector.dropout,
        deepstack_layer_map=mapped,
        spatial_vision_layer=corners[0][0] if corners else None,
        spatial_target_layers=[site for _, site in corners],
        image_token_index=tokens["image_token_id"],
    )


def _same(model: VLM, section: Mapping[str, Any]) -> None:
    """Whether a recipe makes these parts.

    Raises:
        ValueError: naming the first that is another.
    """
    made = cast(VLM, check(dict(Layer("a release", {"model": section}).values)).model)
    shown, wanted = _net(model.projector), _net(made.projector)
    if shown != wanted:
        raise ValueError(f"model.projector: the release's is {wanted}, this one's {shown}")
    if (found := _facts(model)) != (expected := _facts(made)):
        key = next(key for key in expected if found.get(key) != expected[key])
        raise ValueError(f"model.stacking: {key}: {found.get(key)!r}; the release would have {expected[key]!r}")


def _net(projector: Any) -> str:
    """All of a projector; of levels that have a net each, a single one is called by the same name."""
    nets = list(projector.nets) if hasattr(projector, "nets") else [getattr(projector, "net", projector)]
    return " ".join(str(nets).split())


def _facts(model: VLM) -> dict[str, Any]:
    stacking, encoder = model.stacking, model.vision_encoder
    if not isinstance(stacking, DeepStack):
        return {"class": type(stacking).__name__}
    listed = [
        (encoder.resolve_tap(tap_of(one)), site, one.view, one.sampler) for one in stacking.stacks for site in one.at
    ]
    return {
        "stacks": listed,
        "tap": [encoder.resolve_tap(tap) for tap in stacking.base_taps],
        "in the encoder": [str(stack) for stack in stacking.encoder_stacks],
        "operation": None if stacking.operation is None else type(stacking.operation).__name__,
        **{key: getattr(stacking, key) for key in ("base", "sequence", "has_newline", "unpad", "fill_to", "position")},
        **{key: getattr(stacking, key) for key in ("most", "thumbnail")},
    }
