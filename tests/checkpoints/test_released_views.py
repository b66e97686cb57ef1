"""An imported model sees what its own processor shows it: the same ids, the same pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerFast

import dslight
from benchmarks.parity import CASES, IMAGE, checkpoint, pictures, tokenizer
from dslight.run.release import import_release

TURN = (
    "{{% for m in messages %}}<s>{{{{ m.role }}}}\n{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}"
    "{{% for c in m.content %}}{{% if c.type == 'image' %}}{image}{{% else %}}{{{{ c.text }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}</s>\n{{% endfor %}}{{% if add_generation_prompt %}}<s>assistant\n{{% endif %}}"
)


def named(written: str = "", **tokens: str) -> Any:
    """The tokenizer of the tiny checkpoints, with names of its tokens; ``written``: what its template writes for an
    image."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer().backend_tokenizer,
        eos_token="</s>", pad_token="<pad>", bos_token="<s>", extra_special_tokens=tokens,
    )  # fmt: skip
    made.chat_template = TURN.format(image=written) if written else None
    return made


def imported(name: str, folder: Path, processor: Any) -> Any:
    """Ours of a tiny checkpoint whose processor is this one."""
    checkpoint(CASES[name], folder / "released")
    processor.save_pretrained(folder / "released")
    import_release(str(folder / "released"), folder / "imported")
    return dslight.load(folder / "imported", device="cpu").eval()


def shown(processor: Any, images: list[Any], question: str) -> Any:
    """A question about images, put in front of it, as the processor writes it."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=[images] if images else None, text=[text], return_tensors="pt")


def ids(batch: Any) -> list[list[int]]:
    return batch.input_ids.masked_fill(batch.visual_mask, IMAGE).tolist()


def test_gemma_3_is_asked_as_its_processor_asks(tmp_path):
    names = {"image_token": "<image>", "boi_token": "<start>", "eoi_token": "<end>"}
    written = named("<start>", **names)
    pixels = transformers.Gemma3ImageProcessor(size={"height": 56, "width": 56})
    processor = transformers.Gemma3Processor(pixels, written, written.chat_template, image_seq_length=16)
    ours = imported("gemma3", tmp_path, processor)
    for images in (pictures(), pictures()[2:3], []):
        made = ours.processor.ask("What is it?", images or None)
        given = shown(processor, images, "What is it?")
        assert ids(made) == given["input_ids"].tolist()
        if images:
            torch.testing.assert_close(
                ours.vision_encoder.normalise(made.views.pixels), given["pixel_values"], atol=2.01 / 127.5, rtol=0
            )


def test_pali_gemma_is_asked_as_its_processor_asks(tmp_path):
    """No chat template: the image, the beginning, the prompt, a line break."""
    written = named()
    pixels = transformers.SiglipImageProcessor(size={"height": 28, "width": 28}, resample=3)
    checkpoint(CASES["paligemma"], tmp_path / "released")
    written.save_pretrained(tmp_path / "released")
    pixels.save_pretrained(tmp_path / "released")
    import_release(str(tmp_path / "released"), tmp_path / "imported")
    ours = dslight.load(tmp_path / "imported", device="cpu")
    (picture, *_) = pictures()
    made = ours.processor.ask("What is it?", picture)
    text = written("What is it?\n", add_special_tokens=False)["input_ids"]
    assert ids(made) == [[IMAGE] * 16 + [written.bos_token_id, *text]]
    expected = pixels(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.vision_encoder.normalise(made.views.pixels), expected, atol=2.01 / 127.5, rtol=0)


def test_llava_onevision_is_asked_as_its_processor_asks(tmp_path):
    """Tiles of a picture that stands alone, shrunk to a budget; of several, one padded view each."""
    written = named("<image>", image_token="<image>", video_token="<video>")
    grids = CASES["llava_onevision"].config["image_grid_pinpoints"]
    pixels = transformers.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=grids)
    processor = transformers.LlavaOnevisionProcessor(
        pixels, written, transformers.LlavaOnevisionVideoProcessor(), 16, "full", written.chat_template,
        vision_aspect_ratio="anyres_max_2",
    )  # fmt: skip
    ours = imported("llava_onevision", tmp_path, processor)
    for images in ([picture] for picture in pictures()), [pictures()[:3]]:
        for shown_together in images:
            made, given = ours.processor.ask("What is it?", shown_together), shown(processor, shown_together, "What?")
            assert (ids(made)[0].count(IMAGE), len(made.views.pixels)) == (
                given["input_ids"].tolist()[0].count(IMAGE),
                sum(len(views) for views in given["pixel_values"]),
            )
            theirs = given["pixel_values"].flatten(0, 1)
            found = ours.vision_encoder.normalise(made.views.pixels)
            torch.testing.assert_close(found, theirs, atol=4.01 / 127.5, rtol=0)
