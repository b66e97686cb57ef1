"""``dslight import``: a released multimodal model as a recipe and weights, so that its stack is a setting.

The folder is what ``dslight export`` writes: ``dslight.yaml`` with the weights under our names and the tokenizer beside
it. ``dslight chat``, ``predict`` and :func:`dslight.load` open it; a recipe or an ablation begins from it with
``bases: [FOLDER/dslight.yaml]``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from dslight.checkpoints.families import family_of
from dslight.checkpoints.families.family import Family, Section
from dslight.checkpoints.released import account, convert, opened, write_shards
from dslight.components.transformers_config import no_code, settings_of
from dslight.data.templates.chat_template import image_marks
from dslight.files.atomic import write_atomically
from dslight.files.system import room_for
from dslight.files.typed import read_json
from dslight.recipe.build import check
from dslight.recipe.compose import compose, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.run.deletion import begin_folder, end_folder, give_up_folder
from dslight.texts import inert, printable
from dslight.vlm import VLM

READ = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Files of a repository that are fetched: no pickles, and no code."""
SHARD = 5 * 10**9
RECIPE = "dslight.yaml"


def import_release(source: str, out: Path) -> list[str]:
    """Write the recipe and the weights of a released model.

    Args:
        source: a folder, or the name of a repository of the Hub.
        out: the new folder.

    Returns:
        What there is to say of it, a sentence a line.

    Raises:
        RecipeError: its kind is not known, or no recipe says what it is; before a weight is read.
        WeightsError: it does not hold what the recipe needs.
        NoSpaceError: the disk is full; nothing stays of what was written.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise RecipeError(f"--out: {out} exists and is not empty")
    try:
        config = settings_of(source, trust=False)
        family = family_of(config.model_type)
        config = getattr(config, family.inside[0]) if family.inside else config
        family.model(config)
    except (ValueError, OSError) as error:
        said = str(error)
        raise RecipeError(said if source in said else f"{source}: {said}") from error
    folder = _folder(source)
    pixels = _pixels(folder)
    try:
        tiles = family.tiles(config, pixels)
    except ValueError as error:
        raise RecipeError(f"{folder}: preprocessor_config.json: {error}") from error
    recipe = _recipe(family, config, folder, tiles, out)
    partial = begin_folder(out)
    try:
        around = (tiles or {}).get("around", family.around)
        lines = _tokenizer(family, around, config, source, folder, partial, out, recipe)
        (partial / RECIPE).write_text(to_yaml(recipe))
        made = {key: value for key, value in compose(partial / RECIPE).items() if key != "weights"}
        model = cast(VLM, check(made).model)
        file = opened(folder, config, _auto(), family.inside[1] if family.inside else "")
        found = account(family, config, file, model.parts())
        with room_for(out, sum(4 * _count(file.shapes[name]) for name in found.names)):
            write_shards(convert(family, config, file, found), partial, SHARD)
        lines = [*([] if pixels else [_UNSIZED]), *lines]
        said = [*_said(family, source, model, len(found.names)), *found.lines(), *lines]
        write_atomically(partial / "README.md", inert(printable(_card(family, source, out, said))))
        end_folder(partial, out)
    except BaseException:
        give_up_folder(partial)
        raise
    return said


_UNSIZED = (
    "no preprocessor_config.json beside it: images have the sizes, and pixels the mean and deviation, that are taken "
    "where nobody names any (data.views, model.vision_encoder); it may have been trained with others"
)


def _auto() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText


def _recipe(family: Family, config: Any, folder: Path, tiles: Section | None, out: Path) -> dict[str, Any]:
    model, pixels = family.model(config), _pixels(folder)
    if isinstance(pixels.get("image_mean"), list) and isinstance(pixels.get("image_std"), list):
        encoder = next(iter(model["vision_encoder"].values()))
        encoder.update(mean=pixels["image_mean"], std=pixels["image_std"])
    next(iter(model["language_model"].values()))["tokenizer"] = str(out)
    recipe: dict[str, Any] = {"name": out.name, "model": model, "weights": {"model": str(out)}}
    said = {"views": family.views(config, pixels), "video": family.video(config, _pixels(folder, "video_processor"))}
    if tiles is not None:
        model["stacking"] = tiles["stacking"]
        said |= {key: tiles[key] for key in ("views", "tile_marks") if key in tiles}
    data = {key: value for key, value in said.items() if value}
    return {**recipe, "data": data} if data else recipe


def _folder(source: str) -> Path:
    """Where the checkpoint lies; one of the Hub is fetched."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=list(READ)))


def _pixels(folder: Path, part: str = "image_processor") -> Section:
    """What a checkpoint says of its image processor, or of its video processor."""
    files = ["preprocessor_config.json", "processor_config.json"]
    if part == "video_processor":  # transformers' order
        files = ["processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"]
    for name in files:
        if (folder / name).is_file():
            said = read_json(folder / name, dict[str, Any])
            if part == "video_processor" and name == "processor_config.json" and part not in said:
                continue  # of images alone
            inside = said.get(part, said)
            if not isinstance(inside, dict):
                raise RecipeError(f"{folder / name}: {part}: {inside!r}; settings by name")
            return inside
    return {}


def _tokenizer(
    family: Family,
    around: tuple[str, str],
    config: Any,
    source: str,
    folder: Path,
    partial: Path,
    out: Path,
    recipe: dict[str, Any],
) -> list[str]:
    """Write the tokenizer beside the recipe, and what stands around images; returns what there is to say."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        next(iter(recipe["model"]["language_model"].values())).pop("tokenizer")
        return [f"{source} has no tokenizer; name one in {out / RECIPE}: model.language_model.init_args.tokenizer"]
    try:
        with no_code(str(folder), "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise RecipeError(f"{source}: its tokenizer cannot be read: {error}") from error
    if family.template and not tokenizer.chat_template:
        tokenizer.add_bos_token = False
        recipe.setdefault("data", {})["template"] = family.template
    tokenizer.save_pretrained(partial)
    image = tokenizer.convert_ids_to_tokens(getattr(config, family.written))
    marks = image_marks(tokenizer, image) if tokenizer.chat_template else None
    before, after = marks or ("", "")
    first, last = (_with_tokens(text, tokenizer, config) for text in around)
    before, after = before + first, last + after
    if before or after:
        recipe.setdefault("data", {})["image_marks"] = [before, after]
    if (before or after) and recipe.get("data", {}).get("video", {}).get("stamps"):
        recipe["data"]["video"]["around"] = [before, after]  # its processor leaves what stood around the video
    shown = f"around an image stand {before!r} and {after!r}"
    return [f"{shown} (data.image_marks)" + ("" if marks else "; its chat template does not say what should")]


def _with_tokens(text: str, tokenizer: Any, config: Any) -> str:
    """With the tokens that are named in braces."""

    def token(name: re.Match[str]) -> str:
        if name[1] == "bos":
            return tokenizer.bos_token or ""
        return str(tokenizer.convert_ids_to_tokens(getattr(config, name[1])))

    return re.sub(r"\{(\w+)\}", token, text)


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _said(family: Family, source: str, model: VLM, tensors: int) -> list[str]:
    entering = "; ".join(f"{part} layer {at}: {group}" for part, at, group in model.stacking.placements)
    return [f"{source} is a {family.title}: {tensors} tensors", f"visual tokens enter: {entering}", *family.remarks]


def _card(family: Family, source: str, out: Path, said: list[str]) -> str:
    lines = [f"# {out.name}", "", f"{family.title}, imported with dslight from `{source}`.", ""]
    lines += [
        *(f"- {line}" for line in said),
        "",
        "```yaml",
        "# without a stack, or with another, from here on",
        f"bases: [{out / RECIPE}]",
    ]
    return "\n".join([*lines, "model: {stacking: null}", "```", ""])
