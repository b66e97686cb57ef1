"""``dslight export``: a trained model as a Hugging Face folder.

A model that is a LLaVA to transformers is written as one, and needs this library no longer. Any other is written as our
own class (:mod:`dslight.in_transformers`), which transformers knows wherever dslight is imported and refuses elsewhere:
it never opens the folder as another model, silently without the stacks. Both carry ``dslight.yaml``, the recipe, which
opens the folder here bit for bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dslight.checkpoints.complete import is_sharded
from dslight.checkpoints.llava import llava_config, why_not_llava
from dslight.checkpoints.write import field_names, write_tensors
from dslight.components import FusedEncoder, HFCausalLM, HFVisionEncoder, NaFlexEncoder, NativeVisionEncoder
from dslight.data.sample import IMAGE_TOKEN
from dslight.files.atomic import write_atomically
from dslight.files.system import room_for
from dslight.in_transformers.write import write_own
from dslight.recipe.build import build
from dslight.recipe.compose import compose, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.run.deletion import begin_folder, end_folder, give_up_folder
from dslight.run.evaluate import load_checkpoint, weights_from
from dslight.run.export_card import card
from dslight.run.export_llava import write_generation, write_processor
from dslight.run.folder import RunFolder
from dslight.texts import inert, printable
from dslight.train.lora import merged
from dslight.vlm import VLM

_SIZE = re.compile(r"0*[1-9]\d{0,9}[KMGT]B", re.IGNORECASE | re.ASCII)
"""Of a weights file."""


def export(
    source: Path, out: Path, recipe: Path | None = None, dtype: str | None = None, shard_size: str = "5GB"
) -> str | None:
    """Write the model of a run.

    Args:
        source: a run's folder (its newest checkpoint), or a checkpoint, a file or a sharded folder.
        out: the new folder.
        recipe: of the checkpoint; default: that of the run it lies in.
        dtype: of the written weights, e.g. ``bfloat16``; default: the model's.
        shard_size: of a weights file at most.

    Returns:
        Why transformers needs dslight to open the folder, ``None`` if it does not.

    Raises:
        RecipeError: naming the argument, before anything is written.
        NoSpaceError: the disk is full; nothing stays of what was written.
    """
    wanted = checked(dtype, shard_size)
    if out.is_symlink():
        raise RecipeError(f"OUT: {out} is a symbolic link; name the folder itself")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError(f"OUT: {out} exists and is not empty")
    checkpoint, file = _checkpoint_and_recipe(source, recipe)
    values = compose(file)
    experiment = build(weights_from(checkpoint, values), opens=None)
    if not isinstance(experiment.model, VLM):
        raise RecipeError("RUN_OR_CKPT: a component that was fitted alone is one file already, in the run's weights/")
    load_checkpoint(experiment.model, checkpoint)
    partial = begin_folder(out)
    needed = sum(tensor.numel() * (wanted or tensor.dtype).itemsize for tensor in experiment.model.parameters())
    try:
        with room_for(out, needed):
            why = _write(experiment, experiment.model, values, partial, out, wanted, shard_size)
            write_atomically(partial / "README.md", inert(printable(card(experiment, values, checkpoint, out, why))))
            end_folder(partial, out)
    except BaseException:
        give_up_folder(partial)
        raise
    return why


def checked(dtype: str | None, shard_size: str) -> torch.dtype | None:
    """The dtype of written weights.

    Raises:
        RecipeError: naming the option that makes no sense.
    """
    found = None if dtype is None else getattr(torch, dtype, None)
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise RecipeError(f"--dtype: {dtype!r} is no torch dtype of weights; bfloat16, float16 and float32 are")
    if not _SIZE.fullmatch(shard_size):
        raise RecipeError(f"--shard-size: {shard_size!r}; a number above 0 and KB, MB, GB or TB, as in 5GB")
    return found


def _checkpoint_and_recipe(source: Path, recipe: Path | None) -> tuple[Path, Path]:
    run = RunFolder(source)
    if run.recipe_file.exists():
        found = run.latest_checkpoint()
        if found is None:
            raise RecipeError(f"RUN_OR_CKPT: {run.checkpoints} has no complete checkpoint")
        return found, recipe or run.recipe_file
    if not source.exists():
        raise RecipeError(f"RUN_OR_CKPT: there is no {source}")
    if source.is_dir() and not is_sharded(source):
        raise RecipeError(f"RUN_OR_CKPT: {source} is neither a run's folder (no recipe.yaml) nor a checkpoint")
    beside = RunFolder(source.resolve().parent.parent).recipe_file
    if recipe is None and not beside.exists():
        raise RecipeError(
            f"--recipe: {source} does not lie in a run's checkpoints/; name the recipe it was trained with"
        )
    return source, recipe or beside


def _write(
    experiment: Experiment,
    model: VLM,
    recipe: Mapping[str, Any],
    folder: Path,
    out: Path,
    dtype: torch.dtype | None,
    shard_size: str,
) -> str | None:
    parts: dict[str, Any] = model.parts()
    tokenizer, encoder, lm = model.tokenizer, parts["vision_encoder"], parts["language_model"]
    names = field_names(parts)
    own = {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in merged(module).items()}
    state = {theirs: own[ours] for ours, theirs in names.items()}
    why = why_not_llava(parts)
    config: Any = None
    vocabulary = lm.vocabulary
    if why is None:
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens(
                {"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
            )
        image = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        vocabulary = max(lm.vocabulary, len(tokenizer))
        try:
            config = llava_config(parts, image, vocabulary)
        except ValueError as error:
            why, vocabulary = str(error), lm.vocabulary
    if config is not None:
        state = {name: _with_rows(name, tensor, vocabulary) for name, tensor in state.items()}
        if dtype is not None:
            config.dtype = dtype
        config.save_pretrained(folder)
        write_generation(model.processor, lm, config.image_token_index, folder)
        write_processor(model.processor, encoder, tokenizer, config, folder)
    reopening = _reopening(recipe, parts, out, vocabulary)
    if config is None:
        write_own(model, model.processor, reopening["model"], folder, dtype)
        state = {f"vlm.{ours}": own[ours] for ours in names}
    write_tensors(state, folder, shard_size, dtype)
    (folder / "dslight.yaml").write_text(to_yaml(reopening))
    return why


def _with_rows(name: str, tensor: Tensor, vocabulary: int) -> Tensor:
    """The embedding and the head with a row for the placeholder, which is neither read nor, being suppressed, said."""
    if name not in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        return tensor
    more = tensor.new_zeros(vocabulary - len(tensor), tensor.shape[1])
    return torch.cat([tensor, more]) if len(more) else tensor


def _reopening(recipe: Mapping[str, Any], parts: Mapping[str, Any], out: Path, vocabulary: int) -> dict[str, Any]:
    """The recipe with the folder in place of all files that the model was made from."""
    made = json.loads(json.dumps({key: value for key, value in recipe.items() if key not in ("weights", "run_dir")}))
    for part, module in parts.items():
        section = made["model"].get(part) or {}
        arguments = _without_files(module, section.get("init_args") or {})
        if isinstance(module, HFCausalLM):
            if module.model.config.get_text_config() is module.model.config:  # else its text_config says it
                arguments["config"]["vocab_size"] = vocabulary
            arguments["tokenizer"] = str(out)
        if arguments:
            section["init_args"] = arguments
    return {**made, "weights": {"model": str(out)}}


def _without_files(module: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a part, with its configuration in place of the checkpoint that it came from."""
    if isinstance(module, FusedEncoder):
        for inner, one in zip(module.encoders, arguments["encoders"], strict=True):
            one["init_args"] = _without_files(inner, one.get("init_args") or {})
    elif isinstance(module, HFCausalLM | HFVisionEncoder | NativeVisionEncoder | NaFlexEncoder):
        arguments["config"] = _settings(module.model.config)
        arguments.pop("pretrained", None)
        if not isinstance(module, HFCausalLM):
            arguments |= {"mean": list(module.mean), "std": list(module.std)}
        if isinstance(module, HFVisionEncoder):
            arguments["config"]["image_size"] = module.image_size[0]
            arguments.pop("extra_layers", None)
            arguments.pop("image_size", None)
    elif isinstance(arguments.get("pretrained"), bool):
        arguments["pretrained"] = False
    return arguments


def _settings(config: Any) -> dict[str, Any]:
    left_out = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
    found = {key: value for key, value in config.to_diff_dict().items() if key not in left_out}
    return json.loads(json.dumps({**found, "model_type": config.model_type}, default=str))
