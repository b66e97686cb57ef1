"""``dslight export``: a trained model as a Hugging Face folder.

A model that is a LLaVA to transformers is written as one. Any other is written with the same names, so that tools find
their way in the file, but under an architecture that transformers does not know: it refuses the folder, where it would
otherwise open it and silently drop the stacks. Both carry ``dslight.yaml``, the recipe, which opens the folder here bit
for bit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from dslight.checkpoints.complete import is_sharded
from dslight.checkpoints.llava import llava_config, why_not_llava
from dslight.checkpoints.write import field_names, write_json, write_tensors
from dslight.components import HFCausalLM, HFVisionEncoder
from dslight.data.images import SingleView
from dslight.data.sample import IMAGE_TOKEN, Turn
from dslight.files.atomic import write_atomically
from dslight.files.system import room_for
from dslight.files.typed import read_json_if_there
from dslight.recipe.build import Experiment, build
from dslight.recipe.compose import compose, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.deletion import begin_folder, end_folder, give_up_folder
from dslight.run.evaluate import load_checkpoint, weights_from
from dslight.run.folder import RunFolder, versions
from dslight.texts import inert, one_line, printable
from dslight.train.lora import merged
from dslight.vlm import VLM

ARCHITECTURE = "DslightVLM"
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers, which preprocessor_config.json holds."""


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
        Why transformers cannot open the folder, ``None`` if it can.

    Raises:
        RecipeError: naming the argument, before anything is written.
        NoSpaceError: the disk is full; nothing stays of what was written.
    """
    found = None if dtype is None else getattr(torch, dtype, None)
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise RecipeError(f"--dtype: {dtype!r} is no torch dtype of weights; bfloat16, float16 and float32 are")
    if not _SIZE.fullmatch(shard_size):
        raise RecipeError(f"--shard-size: {shard_size!r}; a number above 0 and KB, MB, GB or TB, as in 5GB")
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
    wanted = getattr(torch, dtype) if dtype else None
    needed = sum(tensor.numel() * (wanted or tensor.dtype).itemsize for tensor in experiment.model.parameters())
    try:
        with room_for(out, needed):
            why = _write(experiment, experiment.model, values, partial, out, wanted, shard_size)
            write_atomically(partial / "README.md", inert(printable(_card(experiment, values, checkpoint, out, why))))
            end_folder(partial, out)
    except BaseException:
        give_up_folder(partial)
        raise
    return why


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
        _write_generation(experiment, lm, config.image_token_index, folder)
        _write_processor(experiment, encoder, tokenizer, config, folder)
    else:
        write_json(_own_config(parts), folder / "config.json")
        write_json(_pixels(encoder), folder / "preprocessor_config.json")
        tokenizer.save_pretrained(folder)
    write_tensors(state, folder, shard_size, dtype)
    (folder / "dslight.yaml").write_text(to_yaml(_reopening(recipe, parts, out, vocabulary)))
    return why


def _with_rows(name: str, tensor: Tensor, vocabulary: int) -> Tensor:
    """The embedding and the head with a row for the placeholder, which is neither read nor, being suppressed, said."""
    if name not in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        return tensor
    more = tensor.new_zeros(vocabulary - len(tensor), tensor.shape[1])
    return torch.cat([tensor, more]) if len(more) else tensor


def _write_generation(experiment: Experiment, lm: HFCausalLM, image_token: int, folder: Path) -> None:
    from transformers import GenerationConfig

    settings = GenerationConfig.from_model_config(lm.model.config)
    settings.eos_token_id = experiment.data.processor.stop_ids
    settings.suppress_tokens = [image_token]
    settings.do_sample = False
    if settings.pad_token_id is None:
        settings.pad_token_id = experiment.data.processor.stop_ids[-1]
    settings.save_pretrained(folder)


def _write_processor(
    experiment: Experiment, encoder: HFVisionEncoder, tokenizer: Any, config: Any, folder: Path
) -> None:
    """Transformers' processor where it can make our views, else the tokenizer and the facts about pixels."""
    from transformers import LlavaProcessor

    images = _image_processor(experiment.data.views, encoder)
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
        chat_template=tokenizer.chat_template if experiment.data.template_name == "tokenizer" else None,
    )
    processor.save_pretrained(folder)


def _image_processor(views: Any, encoder: HFVisionEncoder) -> Any:
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


def _own_config(parts: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that transformers refuses by its ``model_type``, and that tools can read."""
    lm, encoder = parts["language_model"], parts["vision_encoder"]
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURE],
        "model_type": "dslight",
        "dslight_version": versions()["dslight"],
        "sites": list(parts["stacking"].sites),
        "parts": {name: f"{type(part).__module__}.{type(part).__qualname__}" for name, part in parts.items()},
    }
    if isinstance(lm, HFCausalLM):
        config["text_config"] = lm.model.config.to_dict()
    if isinstance(encoder, HFVisionEncoder):
        config["vision_config"] = encoder.model.config.to_dict()
    return json.loads(json.dumps(config, default=str))


def _reopening(recipe: Mapping[str, Any], parts: Mapping[str, Any], out: Path, vocabulary: int) -> dict[str, Any]:
    """The recipe with the folder in place of all files that the model was made from."""
    made = json.loads(json.dumps({key: value for key, value in recipe.items() if key not in ("weights", "run_dir")}))
    for part, module in parts.items():
        section = made["model"].get(part) or {}
        arguments = section.get("init_args") or {}
        if isinstance(module, HFCausalLM):
            arguments |= {"config": {**_settings(module.model.config), "vocab_size": vocabulary}, "tokenizer": str(out)}
            arguments.pop("pretrained", None)
        elif isinstance(module, HFVisionEncoder):
            arguments |= {"config": {**_settings(module.model.config), "image_size": module.image_size[0]}}
            arguments |= {"mean": list(module.mean), "std": list(module.std)}
            for made_it in ("pretrained", "extra_layers", "image_size"):
                arguments.pop(made_it, None)
        elif isinstance(arguments.get("pretrained"), bool):
            arguments["pretrained"] = False
        if arguments:
            section["init_args"] = arguments
    return {**made, "weights": {"model": str(out)}}


def _settings(config: Any) -> dict[str, Any]:
    left_out = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path")
    found = {key: value for key, value in config.to_diff_dict().items() if key not in left_out}
    return json.loads(json.dumps({**found, "model_type": config.model_type}, default=str))


@dataclass(frozen=True)
class _Scored:
    """What the card says of ``result.json``."""

    scores: dict[str, float | None] = field(default_factory=dict)


def _card(experiment: Experiment, recipe: Mapping[str, Any], checkpoint: Path, out: Path, why: str | None) -> str:
    model: Any = experiment.model
    stacking = model.stacking
    lines = [
        "---",
        f"library_name: {'transformers' if why is None else 'dslight'}",
        "pipeline_tag: image-text-to-text",
        "tags: [dslight, multimodal" + (", deepstack]" if stacking.num_stacks else ", llava]"),
        "---",
        "",
        f"# {one_line(recipe.get('name', out.name))}",
        "",
        "A multimodal language model, trained with dslight.",
        "",
        "| part | class | parameters |",
        "| --- | --- | ---: |",
        *(
            f"| {name} | `{type(part).__name__}` | {sum(p.numel() for p in part.parameters()):,} |"
            for name, part in model.parts().items()
        ),
        "",
        f"Visual tokens enter: {'; '.join(f'{part} layer {at}: {group}' for part, at, group in stacking.placements)}.",
        "",
    ]
    run = RunFolder(checkpoint.parent.parent)
    result = read_json_if_there(run.result_file, _Scored)
    if result and result.scores and checkpoint == run.latest_checkpoint():
        lines += [
            "| score | value |",
            "| --- | ---: |",
            *(f"| {one_line(key)} | {value:.4f} |" for key, value in result.scores.items() if value is not None),
            "",
        ]
    prompt = _prompt(experiment)
    if why is None:
        views = experiment.data.views
        made = [
            f'processor = AutoProcessor.from_pretrained("{out}", backend="pil")  # resizes as training did',
            f'inputs = processor(images=picture, text={prompt!r}, return_tensors="pt")',
        ]
        if _image_processor(views, model.vision_encoder) is None:
            made = [f"# no class of transformers pads with {tuple(views.pad_color)}: see preprocessor_config.json"]
        lines += [
            "## Open it with transformers",
            "",
            "```python",
            "from transformers import AutoProcessor, LlavaForConditionalGeneration",
            "",
            f'model = LlavaForConditionalGeneration.from_pretrained("{out}")',
            *made,
            "```",
            "",
        ]
    else:
        lines += [
            "## Plain transformers cannot open it",
            "",
            f"{why[0].upper()}{why[1:]}. So `config.json` names an architecture that transformers refuses, rather than "
            "one that it would open as another model.",
            "",
        ]
    lines += [
        "## Open it with dslight",
        "",
        "```bash",
        f"dslight predict {out}/dslight.yaml --ckpt {out} --image picture.png --question 'What is it?'",
        "```",
        "",
        f"The prompt is written as {prompt!r}. Paths in `dslight.yaml` count from the folder that you run in.",
        "",
    ]
    return "\n".join(lines)


def _prompt(experiment: Experiment) -> str:
    written, tokenizer = experiment.data.rows.template, cast(Any, experiment.model.tokenizer)
    question = [Turn("human", f"{IMAGE_TOKEN}\nWhat is it?")]
    return "".join(piece.text for piece in written.pieces(question, tokenizer, True))
