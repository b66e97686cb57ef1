"""An imported model sees what its own processor shows it: the same ids, the same pixels."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

import dslight
from benchmarks.parity import CASES, IMAGE, checkpoint, pictures, tokenizer
from data_prep.digits import png
from dslight.data.caches.lengths import Measure
from dslight.data.sample import Sample, Turn
from dslight.in_transformers.settings import processor_of, settings_of
from dslight.layout import SlotLayout
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
    config = CASES[name].config
    words = {**config["text_config"], "vocab_size": len(processor.tokenizer)}
    checkpoint(replace(CASES[name], config={**config, "text_config": words}), folder / "released")
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


def compared(ours: Any, processor: Any, atol: float) -> list[tuple[int, int]]:
    """Ids and pixels of each picture alone, of all together and of text; the grids of the first."""
    found = []
    for images in [*([picture] for picture in pictures()), pictures(), []]:
        made, given = ours.processor.ask("What is it?", images or None), shown(processor, images, "What is it?")
        assert ids(made) == given["input_ids"].tolist()
        if images:
            views = made.views.pixels.split(made.views.per_image)
            last = ours.vision_encoder.normalise(torch.cat([image.roll(-1, 0) for image in views]))
            pixels = given["pixel_values"]
            theirs = pixels[0] if pixels.ndim == 5 else pixels
            torch.testing.assert_close(last, theirs, atol=atol / 127.5, rtol=0)
            found.append(made.views.grids[0])
    return found[: len(pictures())]


def test_internvl_is_asked_as_its_processor_asks(tmp_path):
    """Tiles by the proportions of the picture, then the whole picture."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<image>"}
    written = named("<image>", **names, video_token="<video>")
    pixels = transformers.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, max_patches=4)
    processor = transformers.InternVLProcessor(
        pixels, written, transformers.InternVLVideoProcessor(), 4, written.chat_template
    )
    ours = imported("internvl", tmp_path, processor)
    assert compared(ours, processor, 4.01) == [(1, 2), (2, 1), (2, 2), (1, 4)]
    assert ours.processor.ask("", pictures()[0].resize((28, 28))).views.grids == [(0, 0)]


def test_idefics_3_is_asked_as_its_processor_asks(tmp_path):
    """Tiles with texts between them that say where they lie, then the whole picture."""
    marks = ["<fake_token_around_image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2))]
    written = named("<image>")
    written.add_special_tokens({"additional_special_tokens": [*marks, "<end_of_utterance>", "<image>"]})
    pixels = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 84}, max_image_size={"longest_edge": 42}, resample=3
    )
    processor = transformers.Idefics3Processor(pixels, written, 9, written.chat_template)
    ours = imported("idefics3", tmp_path, processor)
    assert compared(ours, processor, 6.01) == [(2, 2), (2, 1), (2, 2), (1, 2)]
    made = processor_of(json.loads(json.dumps(settings_of(ours.processor, IMAGE))), ours.tokenizer)
    turns = Turn("human", "<image>\nWhat?"), Turn("gpt", "It.")
    for picture in pictures():  # as an export is asked, as a record is taught, and as its length is counted
        asked = ours.processor.ask("What?", picture)
        assert ids(made.ask("What?", picture)) == ids(asked)
        sample = Sample("a", "a", (png(np.asarray(picture)),), turns)
        rows = ours.processor.rows
        taught = pickle.loads(pickle.dumps(ours.processor.collate))([rows.train(sample)])
        assert ids(taught)[0][: asked.input_ids.shape[1]] == ids(asked)[0]
        assert (taught.labels != -100).sum() < 12
        between = rows.template.tile_texts(ours.tokenizer, ours.processor.slots)
        count = Measure(
            rows.template, "", ours.tokenizer, rows.views, rows.image_size, ours.processor.slots, between=between
        )
        assert count._count(sample) == taught.input_ids.shape[1]


def test_a_base_view_in_front_of_its_tiles_is_refused_with_texts_between_them(tmp_path):
    template = dslight.Data(template="bare", tile_marks=dslight.TileMarks(crop="<{row}>")).template_of("bare", None)
    with pytest.raises(
        ValueError, match=r"^data\.tile_marks: stand between tiles of one size with the base view behind"
    ):
        template.tile_texts(tokenizer(), SlotLayout((2, 2), crops=True))
    alone = template.tile_texts(tokenizer(), SlotLayout((2, 2)))
    assert alone is not None
    assert alone((2, 2)) == [[]]  # crops are stacked, and none stands in the sequence
