"""The model card of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dslight.data.sample import IMAGE_TOKEN, Turn
from dslight.files.typed import read_json_if_there
from dslight.recipe.experiment import Experiment
from dslight.run.export_llava import image_processor
from dslight.run.folder import RunFolder
from dslight.texts import one_line


@dataclass(frozen=True)
class _Scored:
    """What the card says of ``result.json``."""

    scores: dict[str, float | None] = field(default_factory=dict)


def card(experiment: Experiment, recipe: Mapping[str, Any], checkpoint: Path, out: Path, why: str | None) -> str:
    """What the folder's ``README.md`` says: parts, scores, how it is opened; ``why``: transformers needs dslight."""
    model: Any = experiment.model
    stacking = model.stacking
    lines = [
        "---",
        "library_name: transformers",
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
    prompt = _prompt(model)
    if why is None:
        views = experiment.views
        made = [
            f'processor = AutoProcessor.from_pretrained("{out}", backend="pil")  # resizes as training did',
            f'inputs = processor(images=picture, text={prompt!r}, return_tensors="pt")',
        ]
        if image_processor(views, model.vision_encoder) is None:
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
            "## Open it with transformers and dslight",
            "",
            "```python",
            "import dslight  # registers the classes; nothing in this folder is code",
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            "",
            f'model = AutoModelForImageTextToText.from_pretrained("{out}")',
            f'processor = AutoProcessor.from_pretrained("{out}")',
            'parts = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]',
            'messages = [{"role": "user", "content": parts}]',
            "options = dict(add_generation_prompt=True, tokenize=True, return_dict=True)",
            "inputs = processor.apply_chat_template(messages, **options)",
            "print(processor.batch_decode(model.generate(**inputs, max_new_tokens=64), skip_special_tokens=True))",
            "```",
            "",
            f"Without dslight transformers refuses it: {why}.",
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


def _prompt(model: Any) -> str:
    written, tokenizer = model.processor.rows.template, model.tokenizer
    question = [Turn("human", f"{IMAGE_TOKEN}\nWhat is it?")]
    return "".join(piece.text for piece in written.pieces(question, tokenizer, True))
